"""Batches whose rows are drawn task by task on the host, as this library's own trainer draws them.

For batches that the number of tasks doesn't divide, and for rows drawn with the rates of a mixture
or with the task weights.
"""

import ldro_jax.t5x.installed  # noqa: F401

# isort: split
import collections
import io
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf
from clu.data import dataset_iterator

from ldro_jax import transform
from ldro_jax.runtime import checks
from ldro_jax.t5x import tasks
from ldro_jax.tasks import draws
from ldro_jax.weighting import first_weights

_IN_TURN = "took as many rows of each task for every batch"
_ONE_BY_ONE = "drew the rows of a batch one by one"
_OTHERWISE = (
    "The place in the data in {path} is of a run that {found}, but now {now}. Give the run the "
    "{what} it began with. Or let it draw its data anew: SaveCheckpointConfig.save_dataset = False "
    "and train/utils.DatasetConfig.seed = None."
)


class RowsInTurn(dataset_iterator.TfDatasetIterator):
    """Batches that hold as many rows of each task; its place in the data is saved.

    Args:
      dataset: of batches.
      num_tasks: N.
      batch_size: B, rows of all hosts.
    """

    def __init__(self, dataset: tf.data.Dataset, num_tasks: int, batch_size: int):
        super().__init__(dataset, checkpoint=True)
        self._num_tasks, self._size = num_tasks, batch_size

    def save(self, filename: Any) -> None:
        """Writes its place in the data.

        Args:
          filename: what the names of the files begin with.
        """
        super().save(filename)
        _write(filename, {"batch_size": np.array(self._size)})

    def restore(self, filename: Any) -> None:
        """Goes on from a place in the data.

        Args:
          filename: as for :meth:`save`.

        Raises:
          ValueError: if there is none, or one of batches of another size or that were drawn in
            another way.
        """
        arrays = _read(filename)
        # Rows that were read ahead have the old size. Where it isn't known, TensorFlow has to do.
        before = int(arrays.get("batch_size", self._size))
        if "drawn" in arrays or before != self._size:
            found = _ONE_BY_ONE if "drawn" in arrays else f"had BATCH_SIZE = {before}"
            now = f"BATCH_SIZE is {self._size} and the {self._num_tasks} tasks are taken in turn"
            raise ValueError(
                _OTHERWISE.format(
                    path=filename, found=found, now=now, what="BATCH_SIZE and the sampling"
                )
            )
        super().restore(filename)


class DrawnRows(dataset_iterator.DatasetIterator):
    """Batches of rows of several tasks; its place in the data is saved with a checkpoint.

    Which tasks the rows of a batch have is a function of seed, step and probabilities, the same on
    every host, so that the host's part of a batch is a part of one draw.

    Args:
      datasets: of each task, rows ``[1, ...]`` by feature.
      names: of the tasks.
      batch_size: B, rows of all hosts.
      shard: which part of the rows of a batch is this host's.
      num_shards: number of parts, which divides B.
      seed: of the draws.
      probabilities: of the tasks, ``[N]``; ``None`` for the tasks in turn.
      follows_weights: whether the trainer is to replace the probabilities by the task weights
        whenever it has taken the steps of a summary.
      interval: in every how many steps to draw as many rows again, the tasks in turn, to measure
        the interaction on; they come with the batch and don't count as drawn. ``None`` for none.
    """

    def __init__(
        self,
        datasets: Sequence[tf.data.Dataset],
        names: Sequence[str],
        batch_size: int,
        *,
        shard: int = 0,
        num_shards: int = 1,
        seed: int = 0,
        probabilities: np.ndarray | None = None,
        follows_weights: bool = False,
        interval: int | None = None,
    ):
        self._datasets = list(datasets)
        self._marks = tasks.marks(names, len(names))
        self._size, self._seed = batch_size, seed
        own = batch_size // num_shards
        self._own = slice(shard * own, (shard + 1) * own)
        self.probabilities, self.follows_weights = probabilities, follows_weights
        self._interval = interval
        self.reset()

    def reset(self) -> None:
        """Puts it at its beginning, but keeps the probabilities."""
        self._iterators = [
            dataset_iterator.TfDatasetIterator(dataset, checkpoint=True)
            for dataset in self._datasets
        ]
        # Rows that were looked at and not drawn yet.
        self._ahead = [collections.deque() for _ in self._datasets]
        self._step, self._drawn = 0, np.zeros(len(self._datasets), np.int64)
        self._measured: dict[str, np.ndarray] = {}

    @property
    def element_spec(self) -> Any:
        """The shapes and dtypes of a batch."""

        def batched(shape, dtype):
            return dataset_iterator.ArraySpec(
                shape=(self._own.stop - self._own.start, *shape), dtype=dtype
            )

        spec = self._iterators[0].element_spec
        found = {name: batched(x.shape[1:], x.dtype) for name, x in spec.items()}
        if self._interval is not None:
            found |= {tasks.MEASURED + name: x for name, x in list(found.items())}
        found[tasks.MARK] = batched((), np.int32)
        if self.probabilities is not None:
            found[tasks.SHARE] = batched((len(self._datasets),), np.float32)
        return found

    def __next__(self) -> dict[str, np.ndarray]:
        if self.probabilities is None:
            draw = draws.draw_balanced(self._drawn, self._size)
        else:
            draw = draws.draw_mixed(
                self._drawn, self._size, self.probabilities, [self._seed, self._step]
            )
        own = draw.tasks[self._own]
        batch = _joined([self._take(task) for task in own])
        if self._interval is not None:
            # What is not due is not looked at, but must be rows all the same.
            if self._step % self._interval == 0 or not self._measured:
                self._measured = self._rows_to_measure()
            batch |= self._measured
        batch[tasks.MARK] = self._marks[own]
        if self.probabilities is not None:
            batch[tasks.SHARE] = np.tile(np.float32(self.probabilities), (len(own), 1))
        self._step, self._drawn = self._step + 1, draw.drawn
        return batch

    def _take(self, task: int) -> Mapping[str, np.ndarray]:
        return self._ahead[task].popleft() if self._ahead[task] else next(self._iterators[task])

    def _rows_to_measure(self) -> dict[str, np.ndarray]:
        num_tasks = len(self._datasets)
        seen, rows = np.zeros(num_tasks, np.int64), []
        for row in range(self._own.start, self._own.stop):
            task = row % num_tasks
            while len(self._ahead[task]) <= seen[task]:
                self._ahead[task].append(next(self._iterators[task]))
            rows.append(self._ahead[task][seen[task]])
            seen[task] += 1
        return {tasks.MEASURED + name: x for name, x in _joined(rows).items()}

    def save(self, filename: Any) -> None:
        """Writes its place in the data.

        Args:
          filename: what the names of the files begin with.
        """
        self._checkpoint().write(os.fspath(filename))
        arrays = {"step": np.array(self._step), "drawn": self._drawn}
        if self.probabilities is not None:
            arrays["probabilities"] = np.asarray(self.probabilities)
        for task, rows in enumerate(self._ahead):
            if rows:
                arrays |= {f"{task}/{name}": x for name, x in _joined(list(rows)).items()}
        _write(filename, arrays)

    def restore(self, filename: Any) -> None:
        """Goes on from a place in the data.

        Args:
          filename: as for :meth:`save`.

        Raises:
          ValueError: if there is none, or it was saved with another way of drawing rows.
        """
        arrays = _read(filename)
        ways = {True: "at random", False: "in turn"}
        is_random = self.probabilities is not None
        if "drawn" not in arrays:
            what, now = "BATCH_SIZE and the sampling", "they are drawn one by one, "
            now += ways[True] if is_random else f"since the tasks don't divide {self._size}"
            raise ValueError(_OTHERWISE.format(path=filename, found=_IN_TURN, now=now, what=what))
        if ("probabilities" in arrays) != is_random:
            found = f"drew its tasks {ways['probabilities' in arrays]}"
            now = f"they are drawn {ways[is_random]}"
            raise ValueError(
                _OTHERWISE.format(path=filename, found=found, now=now, what="sampling")
            )
        self._checkpoint().read(os.fspath(filename)).assert_consumed()
        self._step, self._drawn = int(arrays["step"]), arrays["drawn"]
        if self.probabilities is not None:
            self.probabilities = arrays["probabilities"]
        self._measured = {}
        for task, rows in enumerate(self._ahead):
            rows.clear()
            found = {
                name.split("/", 1)[1]: x
                for name, x in arrays.items()
                if name.startswith(f"{task}/")
            }
            count = len(next(iter(found.values()), ()))
            rows.extend({name: x[i : i + 1] for name, x in found.items()} for i in range(count))

    def _checkpoint(self) -> tf.train.Checkpoint:
        return tf.train.Checkpoint(
            **{f"task_{i}": iterator.iterator for i, iterator in enumerate(self._iterators)}
        )


def check(
    sampling: str,
    temperature: float,
    weighting: Any,
    batch_size: int,
    num_tasks: int,
    num_shards: int,
) -> None:
    """Checks that batches can be drawn so; see :func:`ldro_jax.t5x.data.get_dataset`.

    Args:
      sampling: "uniform", "rates" or "weights".
      temperature: of the rates.
      weighting: the run's, or ``None``.
      batch_size: B.
      num_tasks: N.
      num_shards: of the data.

    Raises:
      ValueError: if not.
    """
    checks.one_of("data.get_dataset.sampling", sampling, ("uniform", "rates", "weights"))
    checks.number("data.get_dataset.temperature", temperature, "(0, inf)")
    if sampling != "uniform" and not isinstance(weighting, transform.Weighted):
        raise ValueError(
            f"sampling={sampling!r} needs the weighting of the run, but data.get_dataset.weighting "
            f"is {weighting!r}. Bind data.get_dataset.weighting = %WEIGHTING, the same as "
            "WeightedOptimizer.weighting."
        )
    measures = weighting is not None and weighting.interval is not None
    if batch_size < num_tasks and (sampling == "uniform" or measures):
        raise ValueError(
            f"batch_size must be at least {num_tasks}, a row of each task, but it is {batch_size}."
        )
    if batch_size % num_shards:
        raise ValueError(
            f"batch_size must be a multiple of the {num_shards} shards of the data, but it is "
            f"{batch_size}."
        )


def probabilities(
    mixture: Any, parts: Sequence[seqio.Task], sampling: str, temperature: float, weighting: Any
) -> np.ndarray | None:
    """The probabilities that the rows of the first batch are drawn with.

    Args:
      mixture: a mixture or task of seqio, or its name.
      parts: its tasks.
      sampling: "uniform", "rates" or "weights".
      temperature: of the rates.
      weighting: the run's, for "weights".

    Returns:
      ``[N]``; ``None`` for the tasks in turn.

    Raises:
      ValueError: if the rates of the mixture can't be drawn with.
    """
    if sampling == "uniform":
        return None
    if sampling == "weights":
        return draws.probabilities_of_weights(first_weights(weighting.weighting, len(parts)))
    if isinstance(mixture, str):
        mixture = seqio.get_mixture_or_task(mixture)
    found = [mixture.get_rate(task) if isinstance(mixture, seqio.Mixture) else 1 for task in parts]
    rates = np.array(found, np.float64)
    if not (np.isfinite(rates).all() and (rates > 0).all()):
        named = ", ".join(f"{p.name}: {rate}" for p, rate in zip(parts, found, strict=True))
        raise ValueError(
            f"The rates of the mixture must be finite and above zero, but they are {named}."
        )
    # Relative to the largest, or a low temperature overflows.
    return draws.probabilities((rates / rates.max()) ** (1 / temperature))


def inside(iterator: Any) -> DrawnRows | None:
    """The :class:`DrawnRows` inside T5X's own iterators, if that is where the batches come from.

    Args:
      iterator: of batches.

    Returns:
      It, or ``None``.
    """
    while iterator is not None and not isinstance(iterator, DrawnRows):
        wrapped = getattr(iterator, "_it", None)
        iterator = getattr(iterator, "_iterator", None) if wrapped is None else wrapped
    return iterator


def _write(filename: Any, arrays: Mapping[str, Any]) -> None:
    """Writes arrays beside a checkpoint of TensorFlow."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    with tf.io.gfile.GFile(f"{filename}.npz", "wb") as file:
        file.write(buffer.getvalue())


def _read(filename: Any) -> dict[str, np.ndarray]:
    """What is beside a checkpoint of TensorFlow, which must be there."""
    if not tf.io.gfile.exists(f"{filename}.index"):
        raise ValueError(
            f"Expected the place in the data in {filename}, but there is none: the checkpoint was "
            "saved without it, or by another number of hosts. Go on with as many hosts, or let the "
            "run draw its data anew: SaveCheckpointConfig.save_dataset = False and "
            "train/utils.DatasetConfig.seed = None."
        )
    if not tf.io.gfile.exists(f"{filename}.npz"):
        return {}
    with tf.io.gfile.GFile(f"{filename}.npz", "rb") as file:
        return dict(np.load(io.BytesIO(file.read()), allow_pickle=False))


def _joined(rows: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}

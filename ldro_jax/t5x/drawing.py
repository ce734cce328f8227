"""Batches of rows drawn task by task, as this library's own trainer draws them, for T5X.

:class:`DrawnRows` is what T5X iterates over: a :class:`~ldro_jax.tasks.drawing.Drawer` says which
rows a batch has, and :class:`TaskRows` reads them.
"""

import dataclasses
import io
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf
from clu.data import dataset_iterator
from t5x import utils
from typing_extensions import override

from ldro_jax import transform
from ldro_jax.runtime import checks
from ldro_jax.t5x import tasks
from ldro_jax.tasks import drawing
from ldro_jax.tasks.source import Source
from ldro_jax.weighting import first_weights

_ANEW = (
    "Or let it draw its data anew: SaveCheckpointConfig.save_dataset = False and "
    "train/utils.DatasetConfig.seed = None."
)


class TaskRows(Source):
    """The rows of each task in the order in which its data set gives them.

    A data set gives its rows once, but rows to measure the interaction on are asked for before they
    are drawn. So what was read is kept until a later call asks for rows after it. The numbers of
    the rows of a task follow one another in each call.

    Args:
      datasets: of each task, some rows at a time, ``[rows, ...]`` by feature.
    """

    has_state = True

    def __init__(self, datasets: Sequence[tf.data.Dataset]) -> None:
        self._iterators: list[Any] = [iter(dataset) for dataset in datasets]
        named = {f"task_{i}": iterator for i, iterator in enumerate(self._iterators)}
        self.checkpoint = tf.train.Checkpoint(**named)
        # By task: the number of the first row that is kept, and what is kept, as it was read.
        self._kept: list[tuple[int, list[dict[str, np.ndarray]]]] = [(0, []) for _ in datasets]

    @override
    def rows(self, tasks: np.ndarray, indices: np.ndarray) -> dict[str, np.ndarray]:
        rows: dict[str, np.ndarray] = {}
        for task in np.unique(tasks):
            places = np.flatnonzero(tasks == task)
            first = int(indices[places[0]])
            for name, values in self._take(task, first, first + len(places)).items():
                if name not in rows:
                    rows[name] = np.empty((len(tasks), *values.shape[1:]), values.dtype)
                rows[name][places] = values
        return rows

    def _take(self, task: int, first: int, end: int) -> dict[str, np.ndarray]:
        """The rows of a task from number ``first`` to before ``end``, by feature."""
        start, parts = self._kept[task]
        while parts and start + _length(parts[0]) <= first:
            start += _length(parts.pop(0))
        self._kept[task] = start, parts
        known = start + sum(_length(part) for part in parts)
        while known < end:
            read = next(self._iterators[task])
            parts.append({name: x.numpy() for name, x in read.items()})
            known += _length(parts[-1])
        return {name: x[first - start : end - start] for name, x in _joined(parts).items()}

    def record(self) -> dict[str, np.ndarray]:
        """What is kept, besides the state of the data sets in :attr:`checkpoint`."""
        arrays = {"first": np.array([start for start, _ in self._kept])}
        for task, (_, parts) in enumerate(self._kept):
            arrays |= {f"{task}/{name}": values for name, values in _joined(parts).items()}
        return arrays

    def keep(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Takes what :meth:`record` gave, among any other arrays, in place of what is kept."""
        for task, start in enumerate(arrays["first"]):
            own = {n.split("/", 1)[1]: x for n, x in arrays.items() if n.startswith(f"{task}/")}
            self._kept[task] = int(start), [own] if own else []


def _joined(parts: Sequence[Mapping[str, np.ndarray]]) -> Mapping[str, np.ndarray]:
    if len(parts) < 2:
        return parts[0] if parts else {}
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _length(rows: Mapping[str, np.ndarray]) -> int:
    return len(next(iter(rows.values())))


class DrawnRows(dataset_iterator.DatasetIterator):
    """Batches of rows of several tasks; its place in the data is saved with a checkpoint.

    Which tasks the rows of a batch have is the same on every host, so that the host's part of a
    batch is a part of one draw. Each host reads the rows of its part from data of its own.

    Args:
      datasets: of each task, some rows at a time, ``[rows, ...]`` by feature.
      names: of the tasks.
      drawer: of the first batch.
      shard: which part of the rows of a batch is this host's.
      num_shards: number of parts, which divides the batch.
      follows_weights: whether the probabilities are to be replaced by the task weights in
        :meth:`follow`.
      interval: in every how many steps to read as many rows again, the tasks in turn, to measure
        the interaction on; they come with the batch and don't count as drawn. ``None`` for none.
    """

    def __init__(
        self,
        datasets: Sequence[tf.data.Dataset],
        names: Sequence[str],
        drawer: drawing.Drawer,
        *,
        shard: int = 0,
        num_shards: int = 1,
        follows_weights: bool = False,
        interval: int | None = None,
    ):
        self._datasets = list(datasets)
        self._marks = tasks.marks(names, len(names))
        self._drawer = drawer
        own = drawer.size // num_shards
        self._own = slice(shard * own, (shard + 1) * own)
        self.follows_weights, self._interval = follows_weights, interval
        self.reset()

    def reset(self) -> None:
        """Puts it at its beginning, but keeps the probabilities."""
        nothing = np.zeros(len(self._datasets), np.int64)
        self._drawer = dataclasses.replace(self._drawer, counts=nothing, step=0)
        self._source = TaskRows(self._datasets)
        # Rows of each task that this host has read for batches, [N].
        self._taken = nothing
        self._measured: dict[str, np.ndarray] = {}

    @property
    def probabilities(self) -> np.ndarray | None:
        """What rows are drawn with, ``[N]``; ``None`` for the tasks in turn."""
        return self._drawer.probabilities

    def follow(self, weights: Any, seen: Any = True) -> None:
        """Draws by other task weights ``[N]`` from here on, if it follows them.

        A task that was in no batch so far, where ``seen`` ``[N]`` is false, gets an even share.
        """
        if self.follows_weights:
            self._drawer = self._drawer.following(weights, seen)

    @property
    def element_spec(self) -> Any:
        """The shapes and dtypes of a batch."""
        rows = self._own.stop - self._own.start

        def batched(shape, dtype):
            return dataset_iterator.ArraySpec(shape=(rows, *shape), dtype=dtype)

        spec: Any = self._datasets[0].element_spec
        specs = {n: batched(x.shape[1:], x.dtype.as_numpy_dtype) for n, x in spec.items()}
        if self._interval is not None:
            specs |= {tasks.MEASURED + name: x for name, x in list(specs.items())}
        specs[tasks.MARK] = batched((), np.int32)
        if self.probabilities is not None:
            specs[tasks.SHARE] = batched((len(self._datasets),), np.float32)
        return specs

    def __next__(self) -> dict[str, np.ndarray]:
        draw, after = self._drawer.next()
        own = draw.tasks[self._own]
        numbers, taken = drawing.numbered(own, self._taken)
        batch = self._source.rows(own, numbers)
        if self._interval is not None:
            # What is not due is not looked at, but must be rows all the same.
            if self._drawer.step % self._interval == 0 or not self._measured:
                ahead = np.arange(self._own.start, self._own.stop) % len(taken)
                rows = self._source.rows(ahead, drawing.numbered(ahead, taken)[0])
                self._measured = {tasks.MEASURED + name: x for name, x in rows.items()}
            batch |= self._measured
        batch[tasks.MARK] = self._marks[own]
        if self.probabilities is not None:
            batch[tasks.SHARE] = np.tile(np.float32(self.probabilities), (len(own), 1))
        self._drawer, self._taken = after, taken
        return batch

    def save(self, filename: Any) -> None:
        """Writes its place in the data, into files whose names begin with ``filename``."""
        # Files beside each other, since T5X removes them one by one.
        self._source.checkpoint.write(os.fspath(filename))
        place = np.array(json.dumps(self._drawer.record()))
        buffer = io.BytesIO()
        np.savez(buffer, place=place, taken=self._taken, **self._source.record())
        with tf.io.gfile.GFile(f"{filename}.npz", "wb") as file:
            file.write(buffer.getvalue())

    def restore(self, filename: Any) -> None:
        """Goes on from the place in the data that :meth:`save` wrote.

        Raises ``ValueError`` if there is none, or it was saved by another version or with another
        way of drawing rows.
        """
        if not tf.io.gfile.exists(f"{filename}.index"):
            raise ValueError(
                f"Expected the place in the data in {filename}, but there is none: the checkpoint "
                "was saved without it, or by another number of hosts. Go on with as many hosts. "
                f"{_ANEW}"
            )
        arrays: dict[str, np.ndarray] = {}
        if tf.io.gfile.exists(f"{filename}.npz"):
            with tf.io.gfile.GFile(f"{filename}.npz", "rb") as file:
                arrays = dict(np.load(io.BytesIO(file.read()), allow_pickle=False))
        try:
            place = json.loads(str(arrays["place"])) if "place" in arrays else None
            drawer = self._drawer.restored(place)
        except ValueError as error:
            raise ValueError(f"{filename}: {error} {_ANEW}") from error
        self._source.checkpoint.read(os.fspath(filename)).assert_consumed()
        self._source.keep(arrays)
        self._drawer, self._taken, self._measured = drawer, arrays["taken"], {}


def first_drawer(
    cfg: utils.DatasetConfig,
    parts: Sequence[seqio.Task],
    num_shards: int,
    *,
    sampling: str,
    temperature: float,
    weighting: Any,
) -> drawing.Drawer:
    """What draws the first batch of a run.

    Args:
      cfg: T5X's: the mixture, the number of rows of all hosts together, and the seed.
      parts: the tasks of the mixture.
      num_shards: of the data.
      sampling: see :func:`ldro_jax.t5x.data.get_dataset`, as for the others.
      temperature: of the rates.
      weighting: the run's, or ``None``.

    Returns:
      The drawer.

    Raises:
      ValueError: if batches can't be drawn so.
    """
    checks.one_of("data.get_dataset.sampling", sampling, ("uniform", "rates", "weights"))
    checks.number("data.get_dataset.temperature", temperature, "(0, inf)")
    if sampling != "uniform" and not isinstance(weighting, transform.Weighted):
        raise ValueError(
            f"sampling={sampling!r} needs the weighting of the run, but data.get_dataset.weighting "
            f"is {weighting!r}. Bind data.get_dataset.weighting = %WEIGHTING, the same as "
            "WeightedOptimizer.weighting."
        )
    size, num_tasks = cfg.batch_size, len(parts)
    measures = weighting is not None and weighting.interval is not None
    least = num_tasks if sampling == "uniform" or measures else 1
    if size < least:
        row = "a row of each task" if least > 1 else "a row"
        raise ValueError(f"batch_size must be at least {least}, {row}, but it is {size}.")
    if size % num_shards:
        raise ValueError(
            f"batch_size must be a multiple of the {num_shards} shards of the data, but it is "
            f"{size}."
        )
    sampler = "balanced" if sampling == "uniform" else "probabilities"
    drawer = drawing.Drawer(sampler, size, np.zeros(num_tasks, np.int64), cfg.seed or 0)
    if sampling == "rates":
        probabilities = _by_rates(cfg.mixture_or_task_name, parts, temperature)
        return dataclasses.replace(drawer, probabilities=probabilities)
    if sampling == "weights":
        return drawer.following(first_weights(weighting.weighting, num_tasks))
    return drawer


def _by_rates(mixture: Any, parts: Sequence[seqio.Task], temperature: float) -> np.ndarray:
    if isinstance(mixture, str):
        mixture = seqio.get_mixture_or_task(mixture)
    given = [mixture.get_rate(task) if isinstance(mixture, seqio.Mixture) else 1 for task in parts]
    rates = np.array(given, np.float64)
    if not (np.isfinite(rates).all() and (rates > 0).all()):
        named = ", ".join(f"{p.name}: {rate}" for p, rate in zip(parts, given, strict=True))
        raise ValueError(
            f"The rates of the mixture must be finite and above zero, but they are {named}."
        )
    # Relative to the largest, or a low temperature overflows.
    return drawing.probabilities((rates / rates.max()) ** (1 / temperature))


def inside(iterator: Any) -> DrawnRows | None:
    """The :class:`DrawnRows` inside T5X's own iterators; ``None`` if batches aren't its."""
    while iterator is not None and not isinstance(iterator, DrawnRows):
        wrapped = getattr(iterator, "_it", None)
        iterator = getattr(iterator, "_iterator", None) if wrapped is None else wrapped
    return iterator

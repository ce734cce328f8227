"""Problems whose training rows come from iterators, and need not fit into memory.

A stream is whatever gives batches of rows: a Grain dataset, a ``tf.data.Dataset``, a PyTorch
``DataLoader``, a generator function. Its batches are cut into as many rows as the trainer asks for.
"""

import base64
import enum
import functools
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from typing_extensions import override

from ldro_jax.problems import arrays, base, checked, in_memory, tables
from ldro_jax.runtime import checks, errors
from ldro_jax.tasks.base import content
from ldro_jax.tasks.source import Source

_END = object()


class _Place(enum.StrEnum):
    """What is kept of the place of an iterator."""

    BEGINNING = "beginning"
    STATE = "state"
    CHECKPOINT = "checkpoint of TensorFlow"
    COUNT = "number of batches"


def from_iterator(
    train: Any,
    *,
    model: Any,
    loss: Any,
    metrics: Mapping[base.Metric, Any],
    validation: Any,
    test: Any,
    penalty: Callable[[Any], jax.Array] | None = None,
    sizes: Mapping[str, float] | None = None,
    identity: Any = None,
) -> "arrays.ArrayProblem | tables.TableProblem":
    """Makes a problem of streams of training rows, and held-out data in memory.

    A stream is an iterable of batches, or a function of a seed that makes one. Its batches have any
    number of rows, and need not be of one size. A stream that has come to its end begins anew; a
    function is then called again, with another seed. An iterable gives the runs of all seeds the
    same rows. Rows are read ahead in a thread of its own.

    With each checkpoint the place in each stream is saved: of iterators with ``get_state()`` and
    ``set_state(state)``, such as Grain's, that state; of ``tf.data`` that of its iterator. **All
    other streams are replayed**: a resumed run asks for all batches since the stream began, and
    drops them, so they must come in the same order again. A PyTorch ``DataLoader`` that shuffles
    must be made by a function of the seed, with a ``generator`` of that seed.

    Where several processes train together, each reads the streams for itself, so they must give
    each process other rows (``grain.sharding.ShardByJaxProcess``, ``tf.data.Dataset.shard``).

    Args:
      train: in the form of ``validation``, with streams in the place of the data: for each task, by
        name, a stream of pairs ``(inputs [R, ...], targets [R, ...])``; or a stream of tables, or
        one for each table by name, whose batches are :class:`~ldro_jax.problems.Table` or tuples
        ``(inputs, {task: targets})`` or ``(inputs, {task: targets}, {task: labelled})``.
      model: see :func:`ldro_jax.problems.from_arrays`.
      loss: see there.
      metrics: see there.
      validation: held-out data to choose by, as in :func:`ldro_jax.problems.from_arrays`. Training
        rows have its shapes and dtypes.
      test: held-out data to report on.
      penalty: see :func:`ldro_jax.problems.from_arrays`.
      sizes: amount of training data of each task, in any unit, for methods that mix by size.
      identity: what tells this training data from other data, such as a version, in JSON types. The
        streams themselves aren't looked at, so that only this tells a finished or interrupted run
        that they have changed.

    Raises:
      ValueError: if the data doesn't fit together, or something is of another kind.

    Example:
      >>> import numpy as np, optax
      >>> from ldro_jax import problems
      >>> def batches(slope):
      ...     def made(seed):
      ...         rng = np.random.default_rng(seed)
      ...         for _ in range(100):
      ...             x = rng.normal(size=8).astype(np.float32)
      ...             yield x, slope * x
      ...     return made
      >>> x = np.ones(4, np.float32)
      >>> held_out = {"rises": (x, x), "falls": (x, -x)}
      >>> def squared_error(outputs, rows):
      ...     return (outputs - rows["targets"]) ** 2
      >>> problem = problems.from_iterator(
      ...     {"rises": batches(1), "falls": batches(-1)},
      ...     model=(lambda key, x: np.float32(0), lambda slope, x: slope * x),
      ...     loss=squared_error, metrics={problems.Metric("error", False): squared_error},
      ...     validation=held_out, test=held_out)
      >>> rows = problem.source(seed=0).rows(np.array([0, 1]), np.array([0, 0]))
      >>> {name: array.shape for name, array in rows.items()}
      {'inputs': (2,), 'targets': (2,), 'task': (2,)}
    """
    held_out = {"validation": validation, "test": test}
    is_one = isinstance(validation, tables.Table)
    if not is_one:
        expected = "a Table, or a dictionary by task or table, as from_arrays takes"
        checks.require(isinstance(validation, Mapping), "validation", expected, validation)
        expected = f"a stream for each of {list(validation)}, as in validation"
        is_alike = isinstance(train, Mapping) and set(train) == set(validation)
        found = list(train) if isinstance(train, Mapping) else train
        checks.require(is_alike, "train", expected, found)
    streams = {"train": train} if is_one else {f"train[{n!r}]": train[n] for n in validation}
    for name, stream in streams.items():
        kind = "an iterable of batches that can begin anew, or a function of a seed that makes one"
        fits = callable(stream) or (hasattr(stream, "__iter__") and not hasattr(stream, "__next__"))
        checks.require(fits, name, kind, stream)
    given = _Given(streams, sizes, identity)
    all_splits: Any = {"train": _example("validation", validation), **held_out}
    if is_one or any(isinstance(x, tables.Table) for x in validation.values()):
        return StreamedTables(given, all_splits, model, loss, metrics, penalty=penalty)
    names, splits = arrays.joined(all_splits)
    return StreamedRows(given, names, splits, model, loss, metrics, penalty=penalty)


def _example(where: str, held_out: Any) -> Any:
    """A row like the held-out ones of each task or table, of zeros, with all labels."""
    if isinstance(held_out, Mapping):
        return {name: _example(f"{where}[{name!r}]", given) for name, given in held_out.items()}
    if isinstance(held_out, tables.Table):
        tables.converted(where, held_out)
        held_out = tables.Table(*held_out[:2])
    else:
        held_out = arrays.checked_pair(where, held_out)
    return jax.tree.map(lambda x: np.zeros_like(np.asarray(x)[:1]), held_out)


class _Given(NamedTuple):
    """What a user says of the training data: streams, sizes by task, and what tells it apart."""

    streams: Mapping[str, Any]
    sizes: Mapping[str, float] | None
    identity: Any


class _Streamed(in_memory.InMemory):
    """A problem whose training split is a row of zeros of each task or table, and comes in streams.

    A subclass has the other methods, from a problem in memory.
    """

    def __init__(self, given: _Given, *args: Any, **kwargs: Any) -> None:
        self._given = given
        super().__init__(*args, **kwargs)
        self.on_device: base.OnDevice | None = None

    @functools.cached_property
    def _identity(self) -> dict[str, Any]:
        held_out = [self._splits[split] for split in self.splits]
        return {
            "task_names": list(self.task_names),
            "given": self._given.identity,
            "sizes": None if self.sizes is None else self.sizes.tolist(),
            "content": content(jax.tree.leaves(held_out)),
        }

    @property
    @override
    def sizes(self) -> np.ndarray | None:
        sizes = self._given.sizes
        return None if sizes is None else np.array([sizes[name] for name in self.task_names])

    @override
    def check_rows(self) -> None:
        """Takes a row of each stream."""
        expected = f"an amount of data for each of the tasks {list(self.task_names)}"
        given = self._given.sizes
        fits = given is None or (isinstance(given, Mapping) and set(given) == set(self.task_names))
        checks.require(fits, "sizes", expected, given)
        base.Problem.check_rows(self)
        numbers = np.arange(self.num_tables, dtype=np.int32)
        self.source(0).rows(numbers, np.zeros_like(numbers))


class StreamedRows(_Streamed, arrays.ArrayProblem):
    """Streams of rows of one task each; see :func:`from_iterator`."""

    @override
    def source(self, seed: int) -> "IteratorSource":
        train = self._splits["train"]
        like = {"inputs": train.inputs[:1], "targets": train.targets[:1]}
        streams = [
            _Stream(name, stream, (seed, number), _pair, like)
            for number, (name, stream) in enumerate(self._given.streams.items())
        ]
        return IteratorSource(streams, _by_row)


class StreamedTables(_Streamed, tables.TableProblem):
    """Streams of rows with labels of several tasks; see :func:`from_iterator`."""

    def __init__(self, given: _Given, *args: Any, **kwargs: Any) -> None:
        super().__init__(given, *args, **kwargs)
        assert self.labels is not None
        # How many labels are missing isn't known before.
        self.labels: np.ndarray | None = np.where(self.labels > 0, np.nan, 0)

    @override
    def source(self, seed: int) -> "IteratorSource":
        streams = []
        for number, (name, stream) in enumerate(self._given.streams.items()):
            table, own = list(self._tasks.items())[number]
            convert = functools.partial(_table, own)
            like = self._splits["train"][table]
            like = like._replace(labelled=np.ones((1, len(own)), bool))._asdict()
            streams.append(_Stream(name, stream, (seed, number), convert, like))
        return IteratorSource(streams, functools.partial(_by_table, list(self._tasks)))


def _pair(where: str, given: Any) -> dict[str, np.ndarray]:
    """A batch of a stream of one task."""
    fits = isinstance(given, (tuple, list)) and len(given) == 2
    checks.require(fits, f"a batch of {where}", "a pair (inputs, targets)", given)
    parts = zip(("inputs", "targets"), given, strict=True)
    return {part: checked.numbers(f"a batch of {where}", part, array) for part, array in parts}


def _table(own: Sequence[str], where: str, given: Any) -> dict[str, Any]:
    """A batch of a stream of rows with labels of the tasks ``own``."""
    name = f"a batch of {where}"
    fits = isinstance(given, (tuple, list)) and len(given) in (2, 3)
    expected = "a Table, or a tuple (inputs, {task: targets})"
    checks.require(fits, name, expected, given)
    table = tables.Table(*given)
    fits = isinstance(table.targets, Mapping) and set(table.targets) == set(own)
    checks.require(fits, f"{name}: targets", f"those of {list(own)}, by task", table.targets)
    ordered = table._replace(targets={task: table.targets[task] for task in own})
    return tables.converted(name, ordered)._asdict()


def _by_row(tasks: np.ndarray, parts: Sequence[Any]) -> dict[str, np.ndarray]:
    """Rows of each task, in the order of the tasks of a batch."""
    order = np.argsort(tasks, kind="stable")
    places = np.argsort(order)
    rows = jax.tree.map(lambda x: x[places], _joined(parts))
    return {**rows, "task": np.asarray(tasks, np.int32)}


def _by_table(names: Sequence[str], tables: np.ndarray, parts: Sequence[Any]) -> dict[str, Any]:
    del tables
    return dict(zip(names, parts, strict=True))


class IteratorSource(Source):
    """The next rows of streams, whatever their numbers.

    Args:
      streams: those of one process.
      join: what makes rows of the tasks of a batch and the rows of each stream.
    """

    has_state = True

    def __init__(
        self, streams: Sequence["_Stream"], join: Callable[[np.ndarray, Any], Any]
    ) -> None:
        self._streams, self._join = streams, join
        process, processes = jax.process_index(), jax.process_count()
        self._name = f"stream-{process:05d}-of-{processes:05d}"
        self.identity: Mapping[str, Any] = {"processes": processes}

    @override
    def rows(self, tasks: np.ndarray, indices: np.ndarray) -> Any:
        del indices
        counts = np.bincount(tasks, minlength=len(self._streams))
        pairs = zip(self._streams, counts, strict=True)
        return self._join(tasks, [stream.take(int(count)) for stream, count in pairs])

    @override
    def save(self, directory: pathlib.Path) -> None:
        places = [
            stream.save(directory / f"{self._name}-{number}")
            for number, stream in enumerate(self._streams)
        ]
        (directory / f"{self._name}.json").write_text(json.dumps(places, indent=1) + "\n")

    @override
    def restore(self, directory: pathlib.Path) -> None:
        places = json.loads((directory / f"{self._name}.json").read_text())
        for number, (stream, place) in enumerate(zip(self._streams, places, strict=True)):
            stream.restore(directory / f"{self._name}-{number}", place)


class _Stream:
    """A stream of batches, cut into as many rows as are asked for.

    Args:
      name: where the user gave it.
      stream: an iterable, or a function of a seed that makes one.
      seed: of the run, and the number of the stream.
      convert: from name and batch as it comes to a pytree of arrays ``[R, ...]``.
      like: a batch of one row.
    """

    def __init__(
        self, name: str, stream: Any, seed: tuple[int, int], convert: Any, like: Any
    ) -> None:
        self._name, self._stream, self._seed = name, stream, seed
        self._convert, self._like = convert, like
        self._iterator: Any = None
        # How often the stream has come to its end, and how many batches it gave since.
        self._epoch = self._batches = 0
        # The batch in use, and how many of its rows are used up.
        self._batch, self._used = jax.tree.map(lambda x: x[:0], like), 0
        self._last: Any = None

    def take(self, count: int) -> Any:
        """The next rows, a pytree of arrays ``[count, ...]``."""
        pieces = [self._cut(count)]
        while (missing := count - sum(map(_size, pieces))) > 0:
            self._batch, self._used = self._next(), 0
            pieces.append(self._cut(missing))
        return pieces[-1] if len(pieces) == 1 else _joined(pieces)

    def _cut(self, count: int) -> Any:
        where = slice(self._used, self._used + count)
        self._used = min(where.stop, _size(self._batch))
        return jax.tree.map(lambda x: x[where], self._batch)

    def _next(self) -> Any:
        given = self._asked()
        if given is _END and self._batches:
            self._epoch, self._batches, self._iterator = self._epoch + 1, 0, None
            given = self._asked()
        if given is _END:
            again = " when it is begun anew; give a function that makes it" if self._epoch else ""
            raise ValueError(f"{self._name} must give batches, but it gives none{again}.")
        self._batches += 1
        self._last = self._fitting(self._convert(self._name, given))
        return self._last

    def _asked(self) -> Any:
        """What the stream gives next, as it comes."""
        if self._iterator is None:
            with errors.of(self._name):
                self._iterator = iter(self._begun())
        with errors.of(self._name):
            return next(self._iterator, _END)

    def _begun(self) -> Any:
        if hasattr(self._stream, "__iter__") and not isinstance(self._stream, type):
            return self._stream
        seed = np.random.SeedSequence([*self._seed, self._epoch]).generate_state(1)
        return self._stream(int(seed[0]))

    def _fitting(self, batch: Any) -> Any:
        """A batch with the dtypes of the held-out rows, whose shapes it must have."""

        def fitted(path, array, like):
            dtypes = [jax.dtypes.canonicalize_dtype(x.dtype) for x in (array, like)]
            if array.shape != (size, *like.shape[1:]) or dtypes[0] != dtypes[1]:
                raise ValueError(
                    f"{self._name} must give batches of rows like those of validation, "
                    f"{jax.tree_util.keystr(path)} {['R', *like.shape[1:]]} of {dtypes[1]}, but "
                    f"it gave {list(array.shape)} of {dtypes[0]}."
                )
            return array.astype(like.dtype, copy=False)

        first = jax.tree.leaves(batch)[0]
        size = first.shape[0] if first.ndim else 0
        structures = [jax.tree.structure(x) for x in (batch, self._like)]
        expected = f"batches with the parts of validation, {structures[1]}"
        checks.require(structures[0] == structures[1], self._name, expected, structures[0])
        fitting = jax.tree_util.tree_map_with_path(fitted, batch, self._like)
        checks.require(size > 0, self._name, "batches of at least one row", "none")
        return fitting

    def save(self, path: pathlib.Path) -> dict[str, Any]:
        """Writes the rows that are left of a batch, and returns the place after it."""
        left = [x[self._used :] for x in jax.tree.leaves(self._batch)]
        with path.with_suffix(".npz").open("wb") as file:
            np.savez(file, *left)
        kind, state = _kind(self._iterator), None
        if kind == _Place.STATE:
            state = self._iterator.get_state()
            if isinstance(state, bytes):
                state = {"base64": base64.b64encode(state).decode()}
            _check_json(self._name, state)
        elif kind == _Place.CHECKPOINT and not _is_written(self._iterator, path):
            kind = _Place.COUNT
        return {
            "epoch": self._epoch,
            "batches": self._batches,
            "kind": kind,
            "state": state,
            "last": content(jax.tree.leaves(self._last)) if kind == _Place.COUNT else None,
        }

    def restore(self, path: pathlib.Path, place: Mapping[str, Any]) -> None:
        """Goes on from the place that :meth:`save` gave."""
        self._epoch = place["epoch"]
        self._iterator = None if place["kind"] == _Place.BEGINNING else iter(self._begun())
        kind, state = place["kind"], place["state"]
        if kind not in (_Place.COUNT, ours := _kind(self._iterator)):
            raise ValueError(f"the place in {self._name} is a {kind}, but now it is a {ours}")
        if kind == _Place.STATE:
            is_bytes = isinstance(state, dict) and set(state) == {"base64"}
            self._iterator.set_state(base64.b64decode(state["base64"]) if is_bytes else state)
        elif kind == _Place.CHECKPOINT:
            _checkpoint(self._iterator).read(str(path)).assert_consumed()
        elif kind == _Place.COUNT:
            self._replay(place)
        self._batches = place["batches"]
        with path.with_suffix(".npz").open("rb") as file, np.load(file, allow_pickle=False) as left:
            # NumPy's files know no bfloat16.
            leaves = [
                left[f"arr_{i}"].view(x.dtype) for i, x in enumerate(jax.tree.leaves(self._like))
            ]
        self._batch, self._used = jax.tree.unflatten(jax.tree.structure(self._like), leaves), 0

    def _replay(self, place: Mapping[str, Any]) -> None:
        logging.info("%s: replayed, %d batches.", self._name, place["batches"])
        given: Any = None
        for number in range(place["batches"]):
            if (given := next(self._iterator, _END)) is _END:
                raise ValueError(
                    f"{self._name} must give {place['batches']} batches again, but it gives "
                    f"{number}."
                )
        self._last = self._fitting(self._convert(self._name, given))
        if content(jax.tree.leaves(self._last)) != place["last"]:
            logging.warning(
                "%s gives other rows than before the interruption, so that the run goes on with "
                "others than without it. Make its order depend on the seed that a function of a "
                "seed is given.",
                self._name,
            )


def _check_json(name: str, state: Any) -> None:
    """Raises ``ValueError`` for what JSON can't hold."""
    try:
        json.dumps(state)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name} must have iterators whose get_state() gives bytes, or what JSON holds "
            f"(numbers, text, lists and dictionaries of them), but it can't be kept "
            f"({errors.first_line(error)})."
        ) from error


def _size(batch: Any) -> int:
    return len(jax.tree.leaves(batch)[0])


def _joined(pieces: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *pieces)


def _kind(iterator: Any) -> _Place:
    if iterator is None:
        return _Place.BEGINNING
    if hasattr(iterator, "get_state") and hasattr(iterator, "set_state"):
        return _Place.STATE
    is_tensorflow = type(iterator).__module__.startswith("tensorflow.")
    return _Place.CHECKPOINT if is_tensorflow else _Place.COUNT


def _checkpoint(iterator: Any) -> Any:
    import tensorflow as tf

    return tf.train.Checkpoint(iterator=iterator)


def _is_written(iterator: Any, path: pathlib.Path) -> bool:
    """Writes the state of an iterator of ``tf.data``; not of one that calls Python functions."""
    import tensorflow as tf

    try:
        _checkpoint(iterator).write(str(path))
    except tf.errors.FailedPreconditionError:
        return False
    return True

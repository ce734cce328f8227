"""Problems whose rows have labels of several tasks: one input, many labels, some of them missing.

A :class:`Table` is rows of one kind: inputs, and for each of its tasks a target. Several tables,
each with tasks of its own, may differ in everything.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from typing_extensions import override

from ldro_jax.measuring import RowLosses, trained
from ldro_jax.problems import base, checked, in_memory, models
from ldro_jax.records import traced
from ldro_jax.runtime import checks, errors
from ldro_jax.tasks.base import content
from ldro_jax.tasks.drawing import Orders
from ldro_jax.tasks.source import Source

Rows = dict[str, Any]
# The name of a table that has none.
_ONLY = "table"
# Rows of an evaluation that are computed at a time.
_GROUP = 1024
# (outputs of the model, rows) -> [R].
RowFunction = Callable[[Any, Rows], Any]


class Table(NamedTuple):
    """Rows with labels of one or several tasks.

    Attributes:
      inputs: an array ``[E, ...]``, or a pytree of such arrays.
      targets: for each task, by name, an array ``[E, ...]``. A floating-point target of which all
        is NaN is missing.
      labelled: which rows have a target, bool ``[E]``, by name of the task; for targets that can't
        be NaN. By default all that aren't NaN.
    """

    inputs: Any
    targets: Mapping[str, Any]
    labelled: Mapping[str, Any] = {}


class _Rows(NamedTuple):
    """A table as it is stored.

    Attributes:
      inputs: a pytree of arrays ``[E, ...]``.
      targets: by name of the task, ``[E, ...]``, zero where they are missing; or one array ``[E, n,
        ...]``, where those of all n tasks are alike.
      labelled: bool ``[E, n]``; ``None`` if no label is missing.
    """

    inputs: Any
    targets: Any
    labelled: np.ndarray | None

    @property
    def size(self) -> int:
        return len(jax.tree.leaves(self.inputs)[0])


class TableProblem(in_memory.InMemory):
    """Rows with labels of several tasks; see :func:`ldro_jax.problems.from_arrays`.

    Args:
      tables: ``train``, ``validation`` and ``test``, each a table, or a dictionary of tables by
        name, with the same names and tasks in all splits.
      model: see :func:`ldro_jax.problems.models.as_functions`.
      loss: a function ``(outputs, rows) -> [R]`` for all tasks, or one for each, by name.
      metrics: for each metric such a function, or one for each task; see
        :func:`ldro_jax.problems.from_arrays`.
      penalty: a loss of no task; see :func:`ldro_jax.problems.from_arrays`.

    Raises:
      ValueError: if something doesn't fit.
    """

    def __init__(
        self,
        tables: Mapping[str, Table | Mapping[str, Table]],
        model: Any,
        loss: RowFunction | Mapping[str, RowFunction],
        metrics: Mapping[base.Metric, RowFunction | Mapping[str, RowFunction]],
        *,
        penalty: Callable[[Any], jax.Array] | None = None,
    ):
        self.penalty = penalty
        self._named = not isinstance(tables["train"], Table)
        by_name = {split: _by_name(split, given) for split, given in tables.items()}
        self._tasks = {name: _names(name, t) for name, t in by_name["train"].items()}
        self.task_names: tuple[str, ...] = tuple(
            dict.fromkeys(t for tasks in self._tasks.values() for t in tasks)
        )
        self._splits: dict[str, dict[str, _Rows]] = {}
        for split, named in by_name.items():
            self._splits[split] = _stored(split, named, self._tasks, self._splits.get("train"))
        self._loss = _of_each_task("loss", loss, self.task_names)
        expected = "a dictionary from a Metric to a function (outputs, rows) -> [R] or one number"
        checks.require(isinstance(metrics, Mapping) and metrics, "metrics", expected, metrics)
        self.metrics: tuple[base.Metric, ...] = tuple(metrics)
        self.check_names()
        self._measures = {
            metric.name: _of_each_task("metrics", given, self.task_names)
            for metric, given in metrics.items()
        }
        if len(self._tasks) > 1:
            self.tables: Mapping[str, int] | None = {
                name: len(tasks) for name, tasks in self._tasks.items()
            }
        train = self._splits["train"]
        self.labels: np.ndarray | None = np.array(
            [self._frequency(name, rows) for name, rows in train.items()]
        )
        self._sizes = np.array([rows.size for rows in train.values()])
        self.on_device: base.OnDevice | None = base.OnDevice(
            self._arrays("train"),
            self._sizes,
            lambda arrays, key, step, tables, indices: self._taken(arrays, tables, indices),
        )
        with models.trying(self._example):
            self._model = models.as_functions(model, self._example, tables=self._named)
        self.draws_at_random: bool = self._model.draws
        if self._model.features is not None and self.tables is None:
            self.features: Callable[[Any], Any] | None = self._features
        self._on_host: list[str] = []
        self._evaluate = jax.jit(self._values, static_argnums=2)
        self._check_model()

    def _frequency(self, name: str, rows: _Rows) -> list[float]:
        """How often a row of a table has a label of each task of the problem."""
        own = self._tasks[name]
        shares = [1.0] * len(own) if rows.labelled is None else rows.labelled.mean(axis=0)
        known = dict(zip(own, shares, strict=True))
        return [float(known.get(task, 0)) for task in self.task_names]

    @property
    def _example(self) -> Any:
        """Inputs of a row, by table if they have names."""
        first = {
            name: jax.tree.map(lambda x: x[:1], rows.inputs)
            for name, rows in self._splits["train"].items()
        }
        return first if self._named else first[_ONLY]

    def _called(self, table: str) -> tuple[str, ...]:
        """What the model is called with besides inputs."""
        return (table,) if self._named else ()

    def _features(self, rows: Any) -> dict[str, Any]:
        (table,) = self._tasks
        assert self._model.features is not None
        return {table: self._model.features(rows[table]["inputs"], *self._called(table))}

    @override
    def init(self, key: jax.Array) -> Any:
        return self._model.init(key, jax.tree.map(jnp.asarray, self._example))

    def apply(self, params: Any, inputs: Any, *table: str) -> Any:
        """The model's outputs in an evaluation, for inputs ``[R, ...]`` of a table."""
        return self._model.apply(params, inputs, *table)

    @override
    def row_losses(self, params: Any, rows: Any) -> jax.Array:
        each = [
            self._losses_of_table(
                table, self.apply(params, rows[table]["inputs"], *self._called(table)), rows[table]
            )
            for table in self._tasks
            if table in rows
        ]
        return jnp.concatenate([losses for losses, _ in each])

    @override
    def training_losses(self, params: Any, rows: Any, key: jax.Array | None = None) -> RowLosses:
        found, counts, left = [], [], []
        for table in (name for name in self._tasks if name in rows):
            given = rows[table]
            called = given["inputs"], *self._called(table)
            perturbed = {name: x for name, x in given.items() if name == "perturbations"}
            if self._model.train is None:
                outputs = self._model.apply(params, *called, **perturbed)
            else:
                own_key = key
                if key is not None and self.tables is not None:
                    own_key = jax.random.fold_in(key, list(self._tasks).index(table))
                outputs, new = self._model.train(
                    params, called[0], own_key, *called[1:], **perturbed
                )
                left.append(new)
            losses, labelled = self._losses_of_table(table, outputs, given)
            found.append(losses)
            counts.append(labelled)
        new: Any = ()
        if left and jax.tree.leaves(left):
            # Every table begins with the same statistics, which move once.
            new = jax.tree.map(_mean, trained.hide(params, self.replaced(params)), *left)
        is_complete = all(given["labelled"] is None for given in rows.values())
        if is_complete and len(self._tasks) == 1:
            return RowLosses(found[0], auxiliary=new)
        return RowLosses(jnp.concatenate(found), jnp.concatenate(counts), auxiliary=new)

    def _losses_of_table(self, table: str, outputs: Any, rows: Rows) -> tuple[Any, Any]:
        """Losses and labels of the rows of a table in all tasks of the problem, ``[R, N]``."""
        own, labelled = self._tasks[table], rows["labelled"]
        size = len(jax.tree.leaves(rows["inputs"])[0])
        alike = len(set(map(id, self._loss.values()))) == 1 and not isinstance(
            rows["targets"], dict
        )
        if alike and len(own) > 1 and _is_stacked(outputs, own):
            one = functools.partial(self._row_losses, own[0])
            axes = (1, {"inputs": None, "targets": 1, "task": 1}, None if labelled is None else 1)
            tasks = jnp.broadcast_to(self._numbers(table), (size, len(own)))
            given = {"inputs": rows["inputs"], "targets": rows["targets"], "task": tasks}
            losses = jax.vmap(one, axes, 1)(outputs, given, labelled)
        else:
            each = self._each_task(table, outputs, rows)
            losses = jnp.stack([self._row_losses(*of_task) for of_task in each], axis=1)
        counted = jnp.ones(losses.shape) if labelled is None else labelled
        if len(self._tasks) == 1:
            return losses, counted.astype(losses.dtype)
        # The tasks of a table are numbered one after another.
        first = self.task_names.index(next(iter(own)))
        others = ((0, 0), (first, self.num_tasks - first - len(own)))
        return jnp.pad(losses, others), jnp.pad(counted.astype(losses.dtype), others)

    def _numbers(self, table: str) -> jax.Array:
        """Which of the problem's tasks those of a table are."""
        return jnp.array([self.task_names.index(t) for t in self._tasks[table]], jnp.int32)

    def _row_losses(self, task: str, outputs: Any, rows: Rows, labelled: Any) -> jax.Array:
        """Losses in one task, ``[R]``; zero, with no gradient, where the label is missing."""
        if labelled is not None:
            # What a missing label makes of outputs must not reach the gradient as 0 · ∞.
            outputs = jax.tree.map(functools.partial(_where, labelled), outputs)
        with errors.of("loss"):
            losses = self._loss[task](outputs, rows)
        if jnp.shape(losses) != rows["task"].shape:
            raise ValueError(
                f"loss must return one number for each of {rows['task'].size} rows, a shape of "
                f"{list(rows['task'].shape)}, but of {task!r} it returned {checks.shown(losses)}."
            )
        return losses if labelled is None else jnp.where(labelled, losses, 0)

    def _taken(self, arrays: Any, tables: jax.Array, indices: jax.Array) -> dict[str, Rows]:
        if len(self._tasks) == 1:
            places = [indices]
        else:
            places = indices[jnp.argsort(tables)].reshape(len(self._tasks), -1)
        return {
            name: jax.tree.map(lambda x, where=where: x[where], arrays[name])
            for name, where in zip(self._tasks, places, strict=True)
        }

    @override
    def source(self, seed: int) -> "ShuffledTables":
        return ShuffledTables(self._splits["train"], seed)

    def _each_task(self, table: str, outputs: Any, rows: Rows) -> Iterator[tuple[Any, ...]]:
        """Of each task of a table: name, outputs, rows, and which have labels; ``None`` if all."""
        own, size = self._tasks[table], len(jax.tree.leaves(rows["inputs"])[0])
        for place, task in enumerate(own):
            targets, labelled = rows["targets"], rows["labelled"]
            given = {
                "inputs": rows["inputs"],
                "targets": targets[task] if isinstance(targets, dict) else targets[:, place],
                "task": np.full(size, self.task_names.index(task), np.int32),
            }
            mine = None if labelled is None else labelled[:, place]
            yield task, _outputs_of(own, place, outputs), given, mine

    @override
    def _of_tasks(self, split: str, outputs: Any) -> Iterator[tuple[str, Any, Any]]:
        return self._labelled_rows(split, outputs, self._arrays(split))

    @override
    def _measure(self, name: str, task: str) -> RowFunction:
        return self._measures[name][task]

    def _values(
        self, params: Any, arrays: dict[str, Rows], split: str, only: str | None = None
    ) -> tuple[Any, Any]:
        """The metrics that JAX computes, ``[N]`` by name, and outputs for those that it doesn't."""
        outputs = {
            table: checked.outputs(
                lambda x, table=table: self.apply(params, x, *self._called(table)),
                rows["inputs"],
                _GROUP,
            )
            for table, rows in arrays.items()
        }
        values: dict[str, list[Any]] = {
            name: [jnp.float32(jnp.nan)] * self.num_tasks
            for name in self._measures
            if only in (None, name)
        }
        for task, mine, rows in self._labelled_rows(split, outputs, arrays):
            count = jnp.int32(len(rows["task"]))
            for name, found in values.items():
                if name not in self._on_host:
                    value = checked.value(self._measures[name][task], mine, rows, count)
                    found[self.task_names.index(task)] = value
        is_kept = self._on_host and only in (None, *self._on_host)
        return {name: jnp.stack(x) for name, x in values.items()}, outputs if is_kept else ()

    def _labelled_rows(self, split: str, outputs: Any, arrays: Any) -> Iterator[tuple[Any, ...]]:
        """Of each task its name, and outputs and rows of a split where it has labels."""
        for table, rows in arrays.items():
            for place, (task, mine, given, _) in enumerate(
                self._each_task(table, outputs[table], rows)
            ):
                labelled = self._splits[split][table].labelled
                if labelled is not None:
                    where = np.flatnonzero(labelled[:, place])
                    mine, given = jax.tree.map(lambda x, where=where: x[where], (mine, given))
                yield task, mine, given

    @override
    def _arrays(self, split: str) -> dict[str, Rows]:
        return {name: rows._asdict() for name, rows in self._splits[split].items()}

    @override
    def check_evaluation(self, params: Any) -> bool:
        for split in self.splits:
            evaluate = functools.partial(self._values, split=split)
            jax.eval_shape(evaluate, params, self._arrays(split))
        # What NumPy computes is tried.
        return not self._on_host

    @override
    def evaluation_digests(self, params: Any) -> dict[str, str]:
        arrays, digests = self._arrays(self.splits[0]), {}
        for name, measures in self._measures.items():
            evaluate = functools.partial(self._values, split=self.splits[0], only=name)
            digests[name] = traced.of(evaluate, params, arrays)
            if name in self._on_host:
                digests[name] += "".join(map(traced.of_code, measures.values()))
        return digests

    @functools.cached_property
    def _identity(self) -> dict[str, Any]:
        return {
            "task_names": list(self.task_names),
            "tables": {name: list(tasks) for name, tasks in self._tasks.items()},
            "sizes": self.sizes.tolist(),
            "content": content(jax.tree.leaves(self._splits)),
        }

    @property
    @override
    def sizes(self) -> np.ndarray:
        assert self.labels is not None
        return np.rint(self._sizes @ self.labels).astype(np.int64)

    def _check_model(self) -> None:
        """Tries the model on each table, and finds the metrics that JAX can't trace."""
        params = jax.eval_shape(self.init, jax.random.key(0))
        for table, rows in self._splits["train"].items():
            two = jax.tree.map(lambda x: jax.ShapeDtypeStruct((2, *x.shape[1:]), x.dtype), rows)
            called = self._called(table)
            outputs = jax.eval_shape(
                lambda p, x, c=called: self.apply(p, x, *c), params, two.inputs
            )
            for path, leaf in jax.tree_util.tree_leaves_with_path(outputs) or [((), None)]:
                checks.require(
                    jnp.shape(leaf)[:1] == (2,),
                    f"what the model gives{jax.tree_util.keystr(path)}",
                    "an output for each row, [R, ...]",
                    leaf,
                )
            jax.eval_shape(functools.partial(self._find_on_host, table), outputs, two._asdict())

    def _find_on_host(self, table: str, outputs: Any, rows: Rows) -> None:
        for task, mine, given, _ in self._each_task(table, outputs, rows):
            for name, measures in self._measures.items():
                if name not in self._on_host and not checked.is_traced(measures[task], mine, given):
                    self._on_host.append(name)


class ShuffledTables(Source):
    """Rows of tables in memory, every one once in an epoch.

    Args:
      tables: by name.
      seed: of their order in each epoch.
    """

    def __init__(self, tables: Mapping[str, _Rows], seed: int) -> None:
        self._tables = tables
        self._orders = Orders([rows.size for rows in tables.values()], seed)

    @override
    def rows(self, tasks: np.ndarray, indices: np.ndarray) -> dict[str, Rows]:
        found = {}
        for number, (name, rows) in enumerate(self._tables.items()):
            places = [self._orders(number, int(i))[1] for i in indices[tasks == number]]
            where = np.array(places, np.int64)
            found[name] = jax.tree.map(lambda x, where=where: x[where], rows._asdict())
        return found


def _outputs_of(own: Sequence[str], place: int, outputs: Any) -> Any:
    """The outputs of one of the tasks of a table."""
    if isinstance(outputs, Mapping) and set(own) <= set(outputs):
        return outputs[own[place]]
    if len(own) == 1:
        return outputs
    if _is_stacked(outputs, own):
        return outputs[:, place]
    raise ValueError(
        f"model must give its outputs for the tasks {list(own)} in a dictionary by task, or in one "
        f"array [R, {len(own)}, ...], but it gives {checks.shown(outputs)}."
    )


def _mean(old: Any, *values: Any) -> Any:
    """Of a statistic, over the tables that have moved it; of what isn't a number, the last one."""
    moved = [x for x in values if x is not old]
    if not moved or not jnp.issubdtype(old.dtype, jnp.inexact):
        return values[-1]
    return sum(moved[1:], moved[0]) / jnp.asarray(len(moved), old.dtype)


def _is_stacked(outputs: Any, own: Sequence[str]) -> bool:
    return getattr(outputs, "shape", ())[1:2] == (len(own),)


def _where(labelled: jax.Array, outputs: jax.Array) -> jax.Array:
    mask = labelled.reshape(labelled.shape + (1,) * (outputs.ndim - labelled.ndim))
    return jnp.where(mask, outputs, jnp.zeros_like(outputs))


def _of_each_task(name: str, given: Any, tasks: Sequence[str]) -> dict[str, RowFunction]:
    """A function for each task, of one for all or a dictionary of them."""
    functions: Any = given if isinstance(given, Mapping) else dict.fromkeys(tasks, given)
    expected = f"a function (outputs, rows) -> [R], or one for each of the tasks {list(tasks)}"
    fits = set(functions) == set(tasks) and all(map(callable, functions.values()))
    checks.require(fits, name, expected, given)
    return {task: functions[task] for task in tasks}


def _names(name: str, table: Table) -> tuple[str, ...]:
    where = "train" if name == _ONLY else f"train[{name!r}]"
    expected = "a dictionary from the name of each task to an array [E, ...]"
    is_by_task = isinstance(table.targets, Mapping) and len(table.targets) > 0
    checks.require(is_by_task, f"{where}.targets", expected, table.targets)
    return tuple(map(str, table.targets))


def _by_name(split: str, given: Any) -> dict[str, Table]:
    named = {_ONLY: given} if isinstance(given, Table) else given
    fits = (
        isinstance(named, Mapping) and named and all(isinstance(t, Table) for t in named.values())
    )
    checks.require(fits, split, "a Table, or a dictionary of them by name", given)
    return {str(name): table for name, table in named.items()}


def _stored(
    split: str,
    tables: Mapping[str, Table],
    tasks: Mapping[str, tuple[str, ...]],
    like: Mapping[str, _Rows] | None,
) -> dict[str, _Rows]:
    """The tables of a split as they are kept, checked; ``like`` are those of the first split."""
    stored = {}
    for name, table in tables.items():
        where = split if name == _ONLY else f"{split}[{name!r}]"
        stored[name] = _stored_table(where, table)
    found = {name: tuple(map(str, table.targets)) for name, table in tables.items()}
    if list(tasks) == [_ONLY] == list(found):
        own, ours = list(tasks[_ONLY]), list(found[_ONLY])
        checks.require(ours == own, split, f"a Table with the tasks {own}, in this order", ours)
    known = {name: list(own) for name, own in tasks.items() if name != _ONLY}
    ours = {name: list(own) for name, own in found.items() if name != _ONLY}
    expected = f"tables with the tasks {known}, in this order" if known else "one Table, as train"
    checks.require(list(found.items()) == list(tasks.items()), split, expected, ours or "a Table")
    names = [task for own in found.values() for task in own]
    checks.require(len(set(names)) == len(names), split, "tables with tasks of their own", names)
    for name in tables:
        where = split if name == _ONLY else f"{split}[{name!r}]"
        if like is not None:
            ours, theirs = (
                jax.tree.map(lambda x: (x.shape[1:], str(x.dtype)), rows[:2])
                for rows in (stored[name], like[name])
            )
            checks.require(ours == theirs, where, f"rows as in training, {theirs}", ours)
    return stored


def _stored_table(where: str, table: Table) -> _Rows:
    stored = converted(where, table)
    labelled: Any = stored.labelled
    for task, mask in zip(table.targets, labelled.T, strict=True):
        name = f"{where}.targets[{task!r}]"
        checks.require(mask.any(), name, "at least one row with a label", "none")
    return stored._replace(labelled=None) if labelled.all() else stored


def converted(where: str, table: Table) -> _Rows:
    """A table as it is stored, with a mask also where all rows have all labels.

    Raises:
      ValueError: if something isn't what a table has; it is found at ``where``.
    """
    for name, given in (("targets", table.targets), ("labelled", table.labelled)):
        is_by_task = isinstance(given, Mapping) and (given or name == "labelled")
        expected = "a dictionary from the name of each task to an array [E, ...]"
        checks.require(is_by_task, f"{where}.{name}", expected, given)
    inputs = jax.tree.map(lambda x: checked.numbers(where, "inputs", x), table.inputs)
    sizes = {np.shape(x)[:1] for x in jax.tree.leaves(inputs)}
    expected = "inputs that are arrays [E, ...] of as many rows, at least one"
    checks.require(len(sizes) == 1 and sizes.isdisjoint({(), (0,)}), where, expected, sizes)
    (size,) = sizes.pop()
    targets, masks = {}, {}
    for task, given in table.targets.items():
        name = f"{where}.targets[{task!r}]"
        array = checked.numbers(name, "targets", given, finite=False)
        checks.require(array.shape[:1] == (size,), name, f"an array [{size}, ...]", given)
        targets[str(task)], masks[str(task)] = _without_missing(
            name, array, table.labelled.get(task), size
        )
    unknown = sorted(set(table.labelled) - set(table.targets))
    checks.require(not unknown, f"{where}.labelled", f"masks of {list(table.targets)}", unknown)
    labelled = np.stack(list(masks.values()), axis=1)
    alike = len({(x.shape, x.dtype) for x in targets.values()}) == 1
    stored = np.stack(list(targets.values()), axis=1) if alike else targets
    return _Rows(inputs, stored, labelled)


def _without_missing(
    name: str, targets: np.ndarray, labelled: Any, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Targets with zeros where they are missing, and which aren't, bool ``[E]``."""
    mask = np.asarray(np.ones(size, bool) if labelled is None else labelled)
    if labelled is not None:
        expected = f"a mask of bools, [{size}]"
        fits = mask.shape == (size,) and mask.dtype == bool
        checks.require(fits, name.replace(".targets", ".labelled"), expected, labelled)
    if targets.dtype.kind not in "biu":
        numbers = targets.astype(np.float32).reshape(size, -1)
        missing = np.isnan(numbers).all(axis=1)
        mask = mask & ~missing
        whole = "targets that are finite, or missing as a whole (all NaN)"
        is_finite = bool(np.isfinite(numbers[np.flatnonzero(mask)]).all())
        checks.require(is_finite, name, whole, "some are infinite, or NaN in part")
    shape = (size, *(1,) * (targets.ndim - 1))
    return np.where(mask.reshape(shape), targets, np.zeros_like(targets)), mask

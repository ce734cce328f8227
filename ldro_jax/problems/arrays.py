"""Problems whose data fits into memory: a user's arrays, with any model, loss and metrics."""

import copy
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from typing_extensions import override

from ldro_jax.measuring import RowLosses
from ldro_jax.problems import base, checked, in_memory, models, tables
from ldro_jax.records import traced
from ldro_jax.runtime import checks, errors
from ldro_jax.tasks.base import Split, content
from ldro_jax.tasks.drawing import Orders
from ldro_jax.tasks.source import Source

_PARTS = ("inputs", "targets")
# (outputs of the model, rows) -> [R].
RowFunction = Callable[[Any, dict[str, jax.Array]], jax.Array]
# (outputs of the model, all rows of one task) -> [R], or one number.
MetricFunction = Callable[[Any, dict[str, jax.Array]], jax.Array]


def from_arrays(
    train: Any,
    *,
    model: Any,
    loss: RowFunction | Mapping[str, RowFunction],
    metrics: Mapping[base.Metric, MetricFunction | Mapping[str, MetricFunction]],
    validation: Any,
    test: Any,
    penalty: Callable[[Any], jax.Array] | None = None,
) -> "ArrayProblem | tables.TableProblem":
    """Makes a problem of arrays in memory.

    Tasks may have any number of examples each. With rows of one task each, all inputs have one
    shape, and all targets one. Where an input has labels of several tasks, or tasks differ in
    shape, the data is a :class:`~ldro_jax.problems.Table` or a dictionary of them. The model then
    gives the outputs of each task, in an array ``[R, tasks, ...]`` or a dictionary by task, and is
    told the name of the table where there are several. The loss of a task is the mean over the rows
    that have its label; labels that are missing count in no loss and no metric.

    Args:
      train: for each task, by name, its inputs ``[examples, ...]`` and targets ``[examples, ...]``;
        or a :class:`~ldro_jax.problems.Table`, or a dictionary of tables by name.
      model: a Flax Linen module, a function that makes a Flax NNX module, or a pair of functions;
        see :func:`ldro_jax.problems.models.as_functions`. With batch normalisation and dropout it
        is told when it trains. Then a training pass normalises over the whole batch, of all tasks,
        and moves the running statistics once; the interaction is measured in the same pass, with
        the same mask of dropout, at N backward passes over the batch (or on rows drawn apart, in a
        pass of theirs). Microbatches, and tables, are normalised each by itself, and the statistics
        move by their mean.
      loss: ``(outputs, rows) -> [R]``, from the model's outputs for some rows, and the rows, to the
        loss of each. The rows are ``{"inputs": [R, ...], "targets": [R, ...], "task": int32 [R]}``.
        With tables it is called for each task, or is a dictionary of a function for each.
      metrics: for each metric, a function of the outputs for all examples of one task, and of these
        as rows; with tables also a dictionary of such functions by task. It gives ``[R]``, whose
        mean is the task's value, or that value, one number, as a correlation is. Methods are
        compared by the first metric. What JAX can't trace, such as scikit-learn's functions, is
        given NumPy's arrays; where a metric is no number, as AUROC of one class, no checkpoint
        counts as the best. Where each task is measured in another way, the metric says what is
        better in each, ``Metric("score", {"digit": True, "angle": False})``, and without tables the
        function looks at ``rows["task"]``: ``jnp.where(rows["task"] == 0, is_right, error)``.
      validation: examples of the same tasks to choose by.
      test: examples of the same tasks to report on.
      penalty: ``params -> scalar``, a loss of no task, such as a norm of the parameters. No method
        weighs it.

    Raises:
      ValueError: if the arrays don't fit together, something is of another kind, or an evaluation
        of the model isn't a function of its parameters and inputs alone.

    Example:
      >>> import numpy as np
      >>> from ldro_jax import problems
      >>> def init(key, inputs):
      ...     return {"slope": np.float32(0)}
      >>> def apply(params, inputs):
      ...     return params["slope"] * inputs
      >>> def squared_error(outputs, rows):
      ...     return (outputs - rows["targets"]) ** 2
      >>> x = np.arange(4, dtype=np.float32)
      >>> data = {"rises": (x, x), "falls": (x, -x)}
      >>> error = problems.Metric("squared error", higher_is_better=False)
      >>> problem = problems.from_arrays(data, model=(init, apply), loss=squared_error,
      ...     metrics={error: squared_error}, validation=data, test=data)
      >>> values = problem.evaluate({"slope": np.float32(1)}, "test")
      >>> np.asarray(values["squared error"]).tolist()
      [0.0, 14.0]
    """
    splits = {"train": train, "validation": validation, "test": test}
    if isinstance(train, tables.Table) or (
        isinstance(train, Mapping) and any(isinstance(x, tables.Table) for x in train.values())
    ):
        return tables.TableProblem(splits, model, loss, metrics, penalty=penalty)
    names, joined_splits = joined(splits)
    return ArrayProblem(names, joined_splits, model, loss, metrics, penalty=penalty)


def joined(splits: Mapping[str, Any]) -> tuple[tuple[str, ...], dict[str, Split]]:
    """The names of the tasks, and the examples of all of them in each split, checked."""
    train = splits["train"]
    expected = "a dictionary from the name of each task to its inputs and targets"
    checks.require(isinstance(train, Mapping) and len(train) > 0, "train", expected, train)
    names = tuple(map(str, train))
    found: dict[str, Split] = {}
    for name, split in splits.items():
        found[name] = _joined(name, split, names, like=found.get("train"))
    return names, found


class ArrayProblem(in_memory.InMemory):
    """See :func:`from_arrays`.

    Args:
      task_names: N names.
      splits: ``train``, ``validation`` and ``test``.
      model: see :func:`ldro_jax.problems.models.as_functions`.
      loss: see :func:`from_arrays`.
      metrics: see :func:`from_arrays`.
      prepare: from inputs as they are stored, ``[R, ...]``, to those of the model; applied on the
        device, so that images can be stored as bytes.
      penalty: see :func:`from_arrays`.
      measured_names: of what held-out examples are divided into, where that isn't the tasks.
    """

    def __init__(
        self,
        task_names: Sequence[str],
        splits: Mapping[str, Split],
        model: Any,
        loss: Any,
        metrics: Mapping[base.Metric, Any],
        *,
        prepare: Callable[[jax.Array], jax.Array] = lambda inputs: inputs,
        penalty: Callable[[Any], jax.Array] | None = None,
        measured_names: Sequence[str] | None = None,
    ):
        self.penalty = penalty
        self.task_names: tuple[str, ...] = tuple(task_names)
        self.measured_names: tuple[str, ...] | None = (
            None if measured_names is None else tuple(measured_names)
        )
        checks.function("loss", loss, example="a function (outputs, rows) -> [R]")
        expected = "a dictionary from a Metric to a function (outputs, rows) -> [R] or one number"
        fits = isinstance(metrics, Mapping) and all(map(callable, metrics.values()))
        checks.require(fits and metrics, "metrics", expected, metrics)
        self.metrics: tuple[base.Metric, ...] = tuple(metrics)
        self.check_names()
        self._splits = dict(splits)
        self._loss, self._prepare = loss, prepare
        self._measures = {metric.name: function for metric, function in metrics.items()}
        self.on_device: base.OnDevice | None = self._held()
        self._model = self._looked_at(model)
        self.draws_at_random: bool = self._model.draws
        self._on_host = self._not_traced()
        self._evaluate = jax.jit(self._values, static_argnums=2)

    def _held(self) -> base.OnDevice:
        train = self._splits["train"]
        return base.OnDevice(
            {"inputs": train.inputs, "targets": train.targets},
            np.asarray(train.sizes),
            lambda arrays, key, step, tasks, indices: self._rows(arrays, tasks, indices),
        )

    def with_splits(self, splits: Mapping[str, Split]) -> Self:
        """The problem on other examples of the same form; what is compiled serves both.

        Args:
          splits: all three, with inputs and targets of the same shapes and dtypes.
        """
        other = copy.copy(self)
        for cached in ("_identity", "_placed"):
            vars(other).pop(cached, None)
        other._splits = dict(splits)
        other.on_device = other._held()
        return other

    def in_evaluation(self) -> Self:
        """The problem with its model as in an evaluation, where it trains as well."""
        other = copy.copy(self)
        other._model = models.Functions(self._model.init, self._model.apply)
        other.draws_at_random = False
        return other

    @override
    def init(self, key: jax.Array) -> Any:
        return self._model.init(key, self._prepare(jnp.asarray(self._splits["train"].inputs[:1])))

    def apply(self, params: Any, inputs: jax.Array) -> Any:
        """The model's outputs for inputs as they are stored, ``[R, ...]``."""
        return self._model.apply(params, self._prepare(inputs))

    @override
    def row_losses(self, params: Any, rows: dict[str, jax.Array]) -> jax.Array:
        outputs = self.apply(params, rows["inputs"])
        with errors.of("loss"):
            return self._loss(outputs, rows)

    @override
    def training_losses(
        self, params: Any, rows: dict[str, jax.Array], key: jax.Array | None = None
    ) -> RowLosses:
        if self._model.train is None:
            return super().training_losses(params, rows, key)
        outputs, new = self._model.train(params, self._prepare(rows["inputs"]), key)
        with errors.of("loss"):
            return RowLosses(self._loss(outputs, rows), auxiliary=new)

    @override
    def source(self, seed: int) -> "ShuffledRows":
        return ShuffledRows(self._splits["train"], seed)

    @override
    def _of_tasks(self, split: str, outputs: Any) -> Iterator[tuple[str, Any, Any]]:
        held_out = jax.tree.map(np.asarray, self._splits[split])
        for task, (start, size) in enumerate(zip(held_out.starts, held_out.sizes, strict=True)):
            if not size:
                continue
            where = slice(start, start + size)
            rows = {
                "inputs": held_out.inputs[where],
                "targets": held_out.targets[where],
                "task": np.full(size, task, np.int32),
            }
            mine = jax.tree.map(lambda x, where=where: x[where], outputs)
            yield self.measured[task], mine, rows

    @override
    def _measure(self, name: str, task: str) -> MetricFunction:
        del task  # it is in the rows
        return self._measures[name]

    @override
    def _arrays(self, split: str) -> Split:
        return self._splits[split]

    def _not_traced(self) -> list[str]:
        """The metrics that JAX can't trace, such as scikit-learn's; NumPy computes them."""
        inputs, rows, outputs = self._abstract_rows(2)
        del inputs
        return [n for n, f in self._measures.items() if not checked.is_traced(f, outputs, rows)]

    def _abstract_rows(self, size: int) -> tuple[Any, dict[str, Any], Any]:
        """Shapes of the inputs of so many held-out rows, of these rows, and of their outputs."""
        held_out = self._splits[self.splits[0]]
        inputs, targets = (
            jax.ShapeDtypeStruct((size, *x.shape[1:]), jax.dtypes.canonicalize_dtype(x.dtype))
            for x in (held_out.inputs, held_out.targets)
        )
        rows = {"inputs": inputs, "targets": targets, "task": jnp.zeros(size, jnp.int32)}
        params = jax.eval_shape(self.init, jax.random.key(0))
        return inputs, rows, jax.eval_shape(self.apply, params, inputs)

    @override
    def check_evaluation(self, params: Any) -> bool:
        for name in self.splits:
            evaluate = functools.partial(self._values, form=self._form(name))
            jax.eval_shape(evaluate, params, self._splits[name])
        # What NumPy computes is tried.
        return not self._on_host

    @override
    def evaluation_digests(self, params: Any) -> dict[str, str]:
        size = int(np.max(self._splits[self.splits[0]].sizes))
        inputs, rows, outputs = self._abstract_rows(size)
        model = traced.of(self.apply, params, inputs)
        return {
            name: model
            + (
                traced.of_code(measure)
                if name in self._on_host
                else traced.of(measure, outputs, rows)
            )
            for name, measure in self._measures.items()
        }

    @functools.cached_property
    def _identity(self) -> dict[str, Any]:
        parts = [array for name in ("train", *self.splits) for array in self._splits[name]]
        return {
            "task_names": list(self.task_names),
            **({} if self.measured_names is None else {"measured": list(self.measured_names)}),
            "sizes": self.sizes.tolist(),
            "content": content(parts),
        }

    @property
    @override
    def sizes(self) -> np.ndarray:
        return np.asarray(self._splits["train"].sizes)

    def _rows(self, arrays, tasks, indices):
        where = jnp.asarray(self._splits["train"].starts, jnp.int32)[tasks] + indices
        return {**{name: array[where] for name, array in arrays.items()}, "task": tasks}

    def _looked_at(self, model: Any) -> models.Functions:
        """The model's functions, tried on an input."""
        inputs: Any = self._splits["train"].inputs[:1]
        with models.trying(inputs):
            taken = jax.eval_shape(self._prepare, inputs)
            functions = models.as_functions(model, taken)
            params = jax.eval_shape(functions.init, jax.random.key(0), taken)
            outputs = jax.eval_shape(functions.apply, params, taken)
        if not jax.tree.leaves(outputs):
            raise ValueError("model must give outputs, but it gives none.")
        return functions

    @override
    def _form(self, split: str) -> tuple[int, ...]:
        return tuple(np.asarray(self._splits[split].sizes).tolist())

    def _values(self, params, arrays, form):
        """The metrics that JAX computes, each task on its own rows alone, ``[N]`` by name.

        And the outputs, for those that NumPy computes.
        """
        inputs, targets, counts = arrays
        sizes = np.array(form)
        starts = np.cumsum(sizes) - sizes
        # The activations of as many rows as the largest task has are enough to hold.
        outputs = checked.outputs(lambda x: self.apply(params, x), inputs, int(sizes.max()))

        def one_task(part, size):
            task, start, count = part
            mine, rows = jax.tree.map(
                lambda x: jax.lax.dynamic_slice_in_dim(x, start, size),
                (outputs, {"inputs": inputs, "targets": targets}),
            )
            rows["task"] = jnp.full(size, task, jnp.int32)
            return {name: checked.value(f, mine, rows, count) for name, f in measures.items()}

        measures = {n: f for n, f in self._measures.items() if n not in self._on_host}
        values = {name: jnp.full(len(self.measured), jnp.nan, jnp.float32) for name in measures}
        # A function of all rows has no use for a mask, so each size is traced for itself.
        for size in np.unique(sizes[sizes > 0]):
            tasks = np.flatnonzero(sizes == size)
            where = jnp.asarray(tasks, jnp.int32), jnp.asarray(starts[tasks], jnp.int32)
            measure = functools.partial(one_task, size=int(size))
            measured = jax.lax.map(measure, (*where, counts[tasks]))
            values = jax.tree.map(lambda x, new, t=tasks: x.at[t].set(new), values, measured)
        return values, outputs if self._on_host else ()


class ShuffledRows(Source):
    """Examples in memory, every one once in an epoch.

    Args:
      split: the examples.
      seed: of their order in each epoch.
    """

    def __init__(self, split: Split, seed: int) -> None:
        self._split, self._starts = jax.tree.map(np.asarray, split), split.starts
        self._orders = Orders(self._split.sizes, seed)

    @override
    def rows(self, tasks: np.ndarray, indices: np.ndarray) -> dict[str, np.ndarray]:
        places = [self._orders(int(t), int(i))[1] for t, i in zip(tasks, indices, strict=True)]
        where = self._starts[np.asarray(tasks)] + np.array(places, np.int64)
        return {
            "inputs": self._split.inputs[where],
            "targets": self._split.targets[where],
            "task": np.asarray(tasks, np.int32),
        }


def _joined(name: str, split: Any, names: tuple[str, ...], like: Split | None) -> Split:
    """The examples of all tasks, checked; ``like`` is a split whose shapes and dtypes they have."""
    is_mapping = isinstance(split, Mapping)
    found = list(split) if is_mapping else split
    expected = f"a dictionary of the tasks {list(names)}, in this order"
    checks.require(is_mapping and tuple(map(str, split)) == names, name, expected, found)
    pairs: list[tuple[np.ndarray, np.ndarray]] = []
    for task, pair in split.items():
        where = f"{name}[{task!r}]"
        pairs.append(checked_pair(where, pair))
        for part, ours, theirs in zip(_PARTS, pairs[-1], (like or pairs[0])[:2], strict=True):
            if ours.shape[1:] != theirs.shape[1:] or ours.dtype != theirs.dtype:
                raise ValueError(
                    f"{where} must have {part} of the shape {list(theirs.shape[1:])} and dtype "
                    f"{theirs.dtype}, as the first task has, but they are of the shape "
                    f"{list(ours.shape[1:])} and dtype {ours.dtype}. Tasks that differ are given "
                    "as tables, problems.Table(inputs, {task: targets})."
                )
    return Split.join(pairs)


def checked_pair(name: str, pair: Any) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets of a task as arrays."""
    if not (isinstance(pair, (tuple, list)) and len(pair) == 2):
        raise ValueError(
            f"{name} must be a pair (inputs, targets), but it is a {type(pair).__name__}."
        )
    inputs, targets = (
        checked.numbers(name, part, array) for part, array in zip(_PARTS, pair, strict=True)
    )
    if not (inputs.ndim and targets.ndim and len(inputs) == len(targets) and len(inputs)):
        raise ValueError(
            f"{name} must have as many inputs as targets, and at least one, but their shapes "
            f"are {list(inputs.shape)} and {list(targets.shape)}."
        )
    return inputs, targets

"""Problems whose data fits into memory: a user's arrays, with any model, loss and metrics."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from typing_extensions import override

from ldro_jax import checks
from ldro_jax.problems import base, models
from ldro_jax.tasks import orders
from ldro_jax.tasks.base import Split, content
from ldro_jax.tasks.source import Source

# (outputs of the model, rows) -> [R].
RowFunction = Callable[[Any, dict[str, jax.Array]], jax.Array]


def from_arrays(
    train: Mapping[str, tuple[Any, Any]],
    *,
    model: Any,
    loss: RowFunction,
    metrics: Mapping[base.Metric, RowFunction],
    validation: Mapping[str, tuple[Any, Any]],
    test: Mapping[str, tuple[Any, Any]],
) -> "ArrayProblem":
    """Makes a problem of arrays in memory.

    Tasks may have any number of examples each. All inputs have one shape, and all targets one:
    where they differ between tasks, fill them up, and let the loss look at ``rows["task"]``.

    Args:
      train: for each task, by name, its inputs ``[examples, ...]`` and targets ``[examples, ...]``.
      model: what :func:`ldro_jax.problems.models.as_functions` takes: a Flax Linen module, a
        function that makes a Flax NNX module, or a pair of functions.
      loss: from the model's outputs for some rows, and the rows, to the loss of each, ``[R]``. The
        rows are ``{"inputs": [R, ...], "targets": [R, ...], "task": int32 [R]}``.
      metrics: the same for each metric, whose mean over the examples of a task is its value. The
        first is the one that methods are compared by.
      validation: examples of the same tasks to choose by.
      test: examples of the same tasks to report on.

    Returns:
      The problem.

    Raises:
      ValueError: if the arrays don't fit together, or something is of another kind.

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
    checks.require(
        isinstance(train, Mapping) and len(train) > 0,
        "train",
        "a dictionary from the name of each task to its inputs and targets",
        train,
    )
    names = tuple(map(str, train))
    splits = {"train": train, "validation": validation, "test": test}
    stacked = {name: _stacked(name, split, names) for name, split in splits.items()}
    for name in ("validation", "test"):
        for part in ("inputs", "targets"):
            _check_like(part, name, getattr(stacked[name], part), getattr(stacked["train"], part))
    return ArrayProblem(names, stacked, models.as_functions(model), loss, metrics)


class ArrayProblem(base.Problem):
    """See :func:`from_arrays`.

    Args:
      task_names: N names.
      splits: ``train``, ``validation`` and ``test``.
      model: the model.
      loss: see :func:`from_arrays`.
      metrics: see :func:`from_arrays`.
      prepare: from inputs as they are stored, ``[R, ...]``, to those of the model; applied on the
        device, so that images can be stored as bytes.
    """

    def __init__(
        self,
        task_names: Sequence[str],
        splits: Mapping[str, Split],
        model: models.Functions,
        loss: RowFunction,
        metrics: Mapping[base.Metric, RowFunction],
        *,
        prepare: Callable[[jax.Array], jax.Array] = lambda inputs: inputs,
    ):
        self.task_names = tuple(task_names)
        checks.function("loss", loss, example="a function (outputs, rows) -> [R]")
        expected = "a dictionary from a Metric to a function (outputs, rows) -> [R]"
        fits = isinstance(metrics, Mapping) and all(map(callable, metrics.values()))
        checks.require(fits and metrics, "metrics", expected, metrics)
        self.metrics = tuple(metrics)
        self.check_names()
        self._splits = dict(splits)
        self._model, self._loss, self._prepare = model, loss, prepare
        self._measures = {metric.name: function for metric, function in metrics.items()}
        train = self._splits["train"]
        self.on_device = base.OnDevice(
            {"inputs": train.inputs, "targets": train.targets},
            np.asarray(train.sizes),
            lambda arrays, key, step, tasks, indices: self._rows(arrays, tasks, indices),
        )
        self._evaluate = jax.jit(self._task_means)

    @override
    def init(self, key: jax.Array) -> Any:
        return self._model.init(
            key, self._prepare(jnp.asarray(self._splits["train"].inputs[0, :1]))
        )

    def apply(self, params: Any, inputs: jax.Array) -> Any:
        """The model's outputs.

        Args:
          params: of the model.
          inputs: as they are stored, ``[R, ...]``.

        Returns:
          Whatever the model gives.
        """
        return self._model.apply(params, self._prepare(inputs))

    @override
    def row_losses(self, params: Any, rows: dict[str, jax.Array]) -> jax.Array:
        return self._loss(self.apply(params, rows["inputs"]), rows)

    @override
    def source(self, seed: int) -> "ShuffledRows":
        return ShuffledRows(self._splits["train"], seed)

    @override
    def evaluate(self, params: Any, split: str) -> dict[str, Any]:
        return self._evaluate(params, self._placed[split])

    @override
    def check_evaluation(self, params: Any) -> None:
        for name in self.splits:
            jax.eval_shape(self._evaluate, params, self._splits[name])

    @functools.cached_property
    def _placed(self) -> dict[str, Any]:
        return {name: jax.device_put(self._splits[name]) for name in self.splits}

    @property
    @override
    def identity(self) -> dict[str, Any]:
        return {**self._identity, **self.reference_identity}

    @functools.cached_property
    def _identity(self) -> dict[str, Any]:
        parts = [array for name in ("train", *self.splits) for array in self._splits[name]]
        return {
            "task_names": list(self.task_names),
            "sizes": self.sizes.tolist(),
            "content": content(parts),
        }

    @property
    def sizes(self) -> np.ndarray:
        """Training examples of each task, ``[N]``."""
        return np.asarray(self._splits["train"].sizes)

    @staticmethod
    def _rows(arrays, tasks, indices):
        return {**{name: array[tasks, indices] for name, array in arrays.items()}, "task": tasks}

    def _task_means(self, params, split):
        def one_task(part):
            task, inputs, targets, size = part
            rows = {
                "inputs": inputs,
                "targets": targets,
                "task": jnp.full(len(inputs), task, jnp.int32),
            }
            outputs = self.apply(params, inputs)
            is_real = jnp.arange(len(inputs)) < size

            def mean(measure):
                values = jnp.asarray(measure(outputs, rows))
                if values.shape != is_real.shape:
                    raise ValueError(
                        "metrics must give one value for each row, a shape of "
                        f"{list(is_real.shape)}, but {measure.__name__} gives "
                        f"{list(values.shape)}."
                    )
                values = jnp.where(is_real, values.astype(jnp.float32), 0)
                return jnp.sum(values) / size.astype(jnp.float32)

            return {name: mean(measure) for name, measure in self._measures.items()}

        # One task after another: the activations of one are enough to hold.
        tasks = jnp.arange(self.num_tasks, dtype=jnp.int32)
        return jax.lax.map(one_task, (tasks, split.inputs, split.targets, split.sizes))


class ShuffledRows(Source):
    """Examples in memory, every one once in an epoch.

    Args:
      split: the examples.
      seed: of their order in each epoch.
    """

    def __init__(self, split: Split, seed: int):
        self._split = jax.tree.map(np.asarray, split)
        self._orders = orders.Orders(self._split.sizes, seed)

    @override
    def rows(self, tasks: np.ndarray, indices: np.ndarray) -> dict[str, np.ndarray]:
        places = [self._orders(int(t), int(i))[1] for t, i in zip(tasks, indices, strict=True)]
        where = (np.asarray(tasks), np.array(places, np.int64))
        return {
            "inputs": self._split.inputs[where],
            "targets": self._split.targets[where],
            "task": np.asarray(tasks, np.int32),
        }


def _stacked(name: str, split: Mapping[str, tuple[Any, Any]], names: tuple[str, ...]) -> Split:
    """The examples of all tasks, each task filled up to the largest with its first example."""
    same = isinstance(split, Mapping) and tuple(map(str, split)) == names
    found = list(split) if isinstance(split, Mapping) else split
    checks.require(same, name, f"a dictionary of the tasks {list(names)}, in this order", found)
    parts: dict[str, list[np.ndarray]] = {"inputs": [], "targets": []}
    for task, pair in split.items():
        is_pair = isinstance(pair, (tuple, list)) and len(pair) == 2
        checks.require(
            is_pair, f"{name}[{task!r}]", "a pair (inputs, targets)", type(pair).__name__
        )
        inputs, targets = (np.asarray(array) for array in pair)
        fits = inputs.ndim and targets.ndim and len(inputs) == len(targets) and len(inputs)
        expected = "as many inputs as targets, and at least one"
        shapes = f"of the shapes {inputs.shape} and {targets.shape}"
        checks.require(fits, f"{name}[{task!r}]", expected, shapes)
        for part, array in zip(parts, (inputs, targets), strict=True):
            _check_numbers(f"{name}[{task!r}]", part, array)
            parts[part].append(array)
    for part, arrays in parts.items():
        for task, array in zip(names, arrays, strict=True):
            _check_like(part, f"{name}[{task!r}]", array[None], arrays[0][None])
    sizes = np.array([len(array) for array in parts["inputs"]], np.int32)
    room = np.arange(sizes.max())
    filled = {
        part: np.stack([a[np.where(room < len(a), room, 0)] for a in arrays])
        for part, arrays in parts.items()
    }
    return Split(filled["inputs"], filled["targets"], sizes)


def _check_numbers(name: str, part: str, array: np.ndarray) -> None:
    numeric = array.dtype.kind in "biuf" or array.dtype.name == "bfloat16"
    checks.require(numeric, name, f"{part} that are numbers", f"of the dtype {array.dtype}")
    finite = array.dtype.kind in "biu" or np.isfinite(array.astype(np.float32)).all()
    checks.require(finite, name, f"{part} that are finite", "with NaN or inf")


def _check_like(part: str, name: str, array: np.ndarray, like: np.ndarray) -> None:
    """Checks the shape of an example, and its dtype; the arrays are ``[task, example, ...]``."""
    ours, theirs = ((list(a.shape[2:]), str(a.dtype)) for a in (array, like))
    expected = f"{part} of the shape {theirs[0]} and dtype {theirs[1]}, as the first task has"
    checks.require(ours == theirs, name, expected, f"of {ours[0]} and {ours[1]}")

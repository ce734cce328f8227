"""What can be trained: the interface between a user's tasks and the trainer.

A problem has N tasks, a model, a loss for each row of data, and metrics. Everything else (methods,
seeds, resuming, devices, the report) works for every problem.
"""

import abc
import copy
import dataclasses
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import checkify

from ldro_jax.measuring import RowLosses
from ldro_jax.problems import starting
from ldro_jax.records import relative, traced
from ldro_jax.runtime import checks, errors
from ldro_jax.tasks.base import content
from ldro_jax.tasks.source import Source


@dataclasses.dataclass(frozen=True)
class Metric:
    """What is measured on held-out data, one value for each task.

    Attributes:
      name: such as "accuracy".
      higher_is_better: its direction; or, by task, that of each: ``{"segmentation": True, "depth":
        False}``. The average and the worst task, which methods and checkpoints are chosen by, are
        then those of the values with a minus where lower is better. What stands for one task keeps
        its unit.
    """

    name: str
    higher_is_better: bool | Mapping[str, bool] = dataclasses.field(hash=False)

    def direction(self, task_names: Sequence[str]) -> bool | dict[str, bool]:
        """Whether higher is better: one bool for all tasks, or by task where they differ."""
        if not isinstance(self.higher_is_better, Mapping):
            return bool(self.higher_is_better)
        by_task = {name: bool(self.higher_is_better[name]) for name in task_names}
        return by_task[task_names[0]] if len(set(by_task.values())) == 1 else by_task


class OnDevice(NamedTuple):
    """Training rows that fit on the device, where compiled steps draw them.

    Attributes:
      arrays: a pytree, the same for all runs.
      sizes: examples of each task, a NumPy array ``[N]``; or of each table, ``[T]``.
      take: ``(arrays, key of the run, step, tasks [B], indices [B]) -> rows``, a pytree of arrays
        ``[B, ...]``, where ``indices`` are examples of their task, or table. It is traced.
    """

    arrays: Any
    sizes: np.ndarray
    take: Callable[[Any, jax.Array, jax.Array, jax.Array, jax.Array], Any]


class Problem(abc.ABC):
    """What is trained.

    A subclass sets ``task_names`` and ``metrics``, and has at least the abstract methods. What
    ``init`` returns may have logical axes (``flax.linen.with_logical_partitioning``); elsewhere the
    parameters come without them.

    Attributes:
      task_names: N different names.
      metrics: what is measured. The first is the one that methods are compared by.
      splits: what can be evaluated. "test", if it is there, is for the final figures.
      on_device: the training rows on the device, if they fit there; ``None`` if they come from
        ``source`` alone.
      measured_names: what held-out values are of, where that isn't the tasks: groups that training
        doesn't know, say. ``None`` for the tasks.
      reference: parameters of a reference model, if there is one; see :meth:`with_reference`.
      reference_identity: what tells one reference from another, a part of ``identity``.
      observe: what to keep of the parameters after every step, ``params -> [D]``, if anything.
      starting: parameters to begin with in the place of new ones, a tree like the parameters with
        ``None`` for those that are new; see :meth:`with_parameters`.
      penalty: a loss of no task, ``params -> scalar``, whose gradient is added to the weighted one;
        ``None`` if there is none.
      labels: where a row has labels of several tasks: how often a row of each table has one of each
        task, between 0 and 1, ``[T, N]``; NaN where that isn't known. Rows are then drawn from
        tables, and :meth:`training_losses` gives ``[R, N]``. ``None`` if each row is of one task,
        so that each task has a table of its own.
      tables: where there are several such tables, by name, how many tasks the rows of each have
        labels of, the first tasks first. Rows are then a dictionary of tables, and
        :meth:`training_losses` is also called with some of them.
      draws_at_random: whether a training pass needs a key, as dropout does.
      rows_depend: whether what a training pass says of a row depends on the other rows, as with a
        CVaR over them.
      features: ``rows -> zeros`` by table, like what the model names as its features there; rows
        with ``perturbations`` in a table then have these added. ``None`` if it names none.
    """

    task_names: tuple[str, ...]
    metrics: tuple[Metric, ...]
    splits: tuple[str, ...] = ("validation", "test")
    on_device: OnDevice | None = None
    measured_names: tuple[str, ...] | None = None
    reference: Any = None
    features: Callable[[Any], Any] | None = None
    reference_identity: Mapping[str, Any] = types.MappingProxyType({})
    observe: Callable[[Any], jax.Array] | None = None
    starting: Any = None
    penalty: Callable[[Any], jax.Array] | None = None
    labels: np.ndarray | None = None
    tables: Mapping[str, int] | None = None
    draws_at_random: bool = False
    rows_depend: bool = False

    @abc.abstractmethod
    def init(self, key: jax.Array) -> Any:
        """Makes the parameters, a pytree of arrays, with a PRNG key."""

    @abc.abstractmethod
    def row_losses(self, params: Any, rows: Any) -> jax.Array:
        """The loss of each row, which is differentiated.

        Args:
          params: those of the model.
          rows: some of a source's, arrays ``[R, ...]``.

        Returns:
          ``[R]``, float32 or float64. The loss of a task is the mean over its rows.
        """

    def training_losses(self, params: Any, rows: Any, key: jax.Array | None = None) -> RowLosses:
        """What a training pass says of some rows: their losses, and what becomes of the model.

        Args:
          params: of the model.
          rows: some of a source's, arrays ``[R, ...]``.
          key: for what is drawn at random; given if :attr:`draws_at_random`.

        Returns:
          Losses of the rows, ``[R]``; or with :attr:`labels`, ``[R, N]`` and how much counts
          of each, zero for a label that is missing. As auxiliary output the new values of the
          parameters that :meth:`replaced` names, in a tree like the parameters with ``None`` for
          the others.
        """
        del key
        return RowLosses(self.row_losses(params, rows))

    def replaced(self, params: Any) -> Any:
        """Which parameters each training pass replaces, such as running statistics.

        Args:
          params: arrays or their shapes.

        Returns:
          A tree of bools like ``params``; ``None`` if there are none.
        """
        del params
        return None

    def row_excess(self, params: Any, reference: Any, rows: Any) -> jax.Array:
        """By how much each row is worse than with a reference model's parameters, or zero.

        The rows are arrays ``[R, ...]``, and the result is ``[R]``.
        """
        return jnp.maximum(self.row_losses(params, rows) - self.row_losses(reference, rows), 0)

    def with_reference(self, params: Any) -> Self:
        """The problem with a reference model, for methods that compare rows with it (DoReMi).

        Its parameters are those of a model like the one that is trained.
        """
        other = copy.copy(self)
        other.reference = params
        other.reference_identity = {"reference": content(jax.tree.leaves(params))}
        return other

    def with_parameters(self, params: Any) -> Self:
        """The problem with parameters to begin with, such as a pretrained trunk, for all runs.

        What is to stay as it is, or to move more slowly, is the optimizer's affair
        (``ldro.only``, ``optax.partition``).

        Args:
          params: some or all parameters, arrays in a tree like that which ``init`` makes, such as
            :func:`ldro_jax.load` gives. The others are new for each seed.

        Raises:
          ValueError: if one of them isn't the model's, or has another shape.
        """
        other = copy.copy(self)
        other.starting = starting.aligned(starting.shapes_of(self.init), params)
        return other

    @abc.abstractmethod
    def source(self, seed: int) -> Source:
        """Where the rows of a run come from, at its beginning; the seed decides their order."""

    @abc.abstractmethod
    def evaluate(self, params: Any, split: str) -> Mapping[str, Any]:
        """Measures all tasks on one of ``splits``.

        Returns:
          For each metric, by name, the values of all tasks, ``[N]``, or of what
          :attr:`measured_names` says.
        """

    @property
    def measured(self) -> tuple[str, ...]:
        """The names of what :meth:`evaluate` gives values of."""
        return self.measured_names or self.task_names

    @property
    def measured_kind(self) -> str:
        """What errors call these."""
        return "tasks" if self.measured_names is None else "measured_names"

    @property
    def whole(self) -> "Problem":
        """The problem with all its tasks, where this has some of them; otherwise this."""
        return self

    @property
    def num_tasks(self) -> int:
        """Number of tasks, N."""
        return len(self.task_names)

    @property
    def num_tables(self) -> int:
        """Number of tables that rows are drawn from, T."""
        return self.num_tasks if self.labels is None else len(self.labels)

    def in_each_table(self, rows: int) -> int:
        """How many there are in each array of so many rows, which several tables share evenly."""
        return rows // len(self.tables or [0])

    def labelled(self, rows: Any) -> Any:
        """How many rows of each task there are on average among rows of each table.

        Args:
          rows: how many of each table, ``[T]``, a NumPy or JAX array.

        Returns:
          ``[N]``; ``None`` if it isn't known.
        """
        if self.labels is None:
            return rows
        if not np.isfinite(self.labels).all():
            return None
        return (rows[:, None] * np.asarray(self.labels, np.float32)).sum(axis=0)

    @property
    def identity(self) -> dict[str, Any]:
        """What tells this data from other data of the same tasks, in plain JSON types.

        Rows on the device are looked at anyway. Of a problem with rows from a source alone, only
        the first of each task is, so such a problem should tell them apart here.
        """
        return {"task_names": list(self.task_names), **self.reference_identity}

    @property
    def sizes(self) -> np.ndarray | None:
        """Amount of training data of each task, in any unit, ``[N]``; ``None`` if unknown."""
        return None

    def row_shapes(self) -> Any:
        """Shapes and dtypes of one row: a pytree of ``jax.ShapeDtypeStruct`` without a row axis.

        Raises:
          ValueError: if the source doesn't give rows, or has a state that it can't save.
        """
        with errors.of("source"):
            source = self.source(0)
            # One of each table, where rows come as a dictionary of them.
            tables = np.arange(len(self.tables or [0]), dtype=np.int32)
            makes = "a function of seed that makes a Source"
            checks.require(hasattr(source, "rows"), "source", makes, source)
            rows = source.rows(tables, np.zeros_like(tables))
        if source.has_state and isinstance(source, Source):
            for name in ("save", "restore"):
                is_own = getattr(type(source), name) is not getattr(Source, name)
                expected = "its own method, as has_state is True"
                checks.require(is_own, f"source.{name}", expected, source)
        for path, array in jax.tree_util.tree_leaves_with_path(rows) or [((), rows)]:
            fits = _is_numeric(array) and array.shape[:1] == (1,)
            name = f"rows{jax.tree_util.keystr(path)} of the source"
            checks.require(fits, name, "numbers in an array [R, ...], for R = 1", array)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), rows)

    def score(self, values: Mapping[str, np.ndarray]) -> float:
        """How good a checkpoint is, to keep the best.

        Args:
          values: of all metrics on validation.

        Returns:
          The average of the first metric, with a minus where lower is better.
        """
        metric = self.metrics[0]
        signs = relative.signs(metric.direction(self.measured), self.measured)
        found = np.asarray(values[metric.name])
        return float(np.mean(signs.astype(found.dtype) * found))

    def on(self, mesh: jax.sharding.Mesh, batch_size: int) -> "Problem":
        """The problem for a mesh of devices, with the axes ``data`` and ``model``.

        This one, unless its model has something to arrange there. ``batch_size`` is the number of
        rows of a training batch.
        """
        del mesh, batch_size
        return self

    def check_evaluation(self, params: Any) -> bool:
        """Finds out before the training whether an evaluation will fail, without making one.

        Args:
          params: their shapes.

        Returns:
          Whether that is known now. By default it isn't, and :meth:`evaluate` is tried once on each
          split, with parameters from :meth:`init`. Where that takes too long, do less of it here.

        Raises:
          ValueError: if something doesn't fit.
        """
        del params
        return False

    def evaluation_digests(self, params: Any) -> dict[str, str]:
        """What tells how the metrics are measured from other ways under the same names.

        Args:
          params: their shapes.

        Returns:
          A digest for each metric, by name; see :mod:`ldro_jax.records.traced`. Here it is that of
          :meth:`evaluate` as a whole: traced, or of its code where it needs numbers.
        """
        try:
            digest = "".join(
                traced.of(lambda params, split=split: self.evaluate(params, split), params)
                for split in self.splits
            )
        except Exception:  # whatever a function says that isn't made to be traced
            digest = traced.of_code(self.evaluate)
        return {metric.name: digest for metric in self.metrics}

    def check_names(self) -> None:
        """Raises ``ValueError`` unless tasks, splits and metrics are what a subclass must set."""
        # Values are kept by name, so one of two of the same name would be lost.
        checks.names("task_names", getattr(self, "task_names", None), "('red', 'blue')")
        if self.measured_names is not None:
            checks.names("measured_names", self.measured_names, "('red', 'blue')")
        checks.names("splits", self.splits, "('validation', 'test')")
        metrics: Any = getattr(self, "metrics", None)
        checks.sequence("metrics", metrics, "metrics, such as [Metric('accuracy', True)]")
        for metric in metrics:
            checks.instance("metrics", metric, Metric, "Metric('accuracy', True)")
            checks.text("Metric.name", metric.name)
            self._check_direction(metric.higher_is_better)
        names = [metric.name for metric in metrics]
        different = len(set(names)) == len(names)
        checks.require(different, "metrics", "a list of metrics with names that all differ", names)

    def _check_direction(self, given: Any) -> None:
        name = "Metric.higher_is_better"
        if not isinstance(given, Mapping):
            return checks.flag(name, given)
        expected = f"True or False for each of the tasks {list(self.measured)}"
        checks.require(set(given) == set(self.measured), name, expected, list(given))
        for task, direction in given.items():
            checks.flag(f"{name}[{task!r}]", direction)

    def check_rows(self) -> None:
        """Checks the numbers of rows, and the rows on the device.

        Raises:
          ValueError: if there isn't a number for each task, JAX can't hold the rows, or the last
            one of a task isn't there.
        """
        is_mapping = isinstance(self.identity, Mapping)
        checks.require(is_mapping, "identity", "a dictionary", self.identity)
        if self.sizes is not None:
            _checked_sizes("sizes", self.sizes, self.num_tasks, "number")
        if self.on_device is not None:
            _check_on_device(self.on_device, self.num_tables)


def _check_on_device(data: Any, num_tasks: int) -> None:
    checks.instance("on_device", data, OnDevice, "OnDevice(arrays, sizes, take)")
    example = "a function (arrays, key, step, tasks, indices) -> rows"
    checks.function("on_device.take", data.take, example=example)
    sizes = _checked_sizes("on_device.sizes", data.sizes, num_tasks, "integer").astype(np.int32)
    for path, array in jax.tree_util.tree_leaves_with_path(data.arrays):
        name = f"arrays{jax.tree_util.keystr(path)}"
        checks.require(_is_numeric(array), f"on_device.{name}", "an array of numbers", array)
        checks.on_device("on_device", name, array)
    # JAX takes an index beyond the end for the last one.
    take = checkify.checkify(data.take, errors=checkify.index_checks)
    tasks, last = jnp.arange(num_tasks, dtype=jnp.int32), jnp.asarray(sizes - 1)
    with errors.of("on_device.take"):
        arrays = jax.device_put(data.arrays)
        error, rows = take(arrays, jax.random.key(0), jnp.int32(0), tasks, last)
    for path, array in jax.tree_util.tree_leaves_with_path(rows) or [((), None)]:
        name = f"rows{jax.tree_util.keystr(path)} of on_device.take"
        fits = getattr(array, "shape", ())[:1] == (num_tasks,)
        checks.require(fits, name, f"an array [R, ...], for R = {num_tasks}", array)
    if (beyond := error.get()) is not None:
        raise ValueError(
            f"on_device.sizes must be the numbers of rows that on_device.arrays has of each "
            f"task, but they are {sizes.tolist()}, and take reads a last row that isn't there "
            f"({errors.first_line(beyond)})."
        )


def _checked_sizes(name: str, sizes: Any, num_tasks: int, kind: str) -> np.ndarray:
    """Numbers of rows or amounts of data, one for each task; ``kind`` is "integer" or "number"."""
    try:
        numbers = np.asarray(sizes)
    except ValueError:  # ragged
        numbers = np.array(None)
    kinds = "iu" if kind == "integer" else "iuf"
    fits = numbers.dtype.kind in kinds and numbers.shape == (num_tasks,)
    fits = fits and np.isfinite(numbers).all() and (numbers > 0).all()
    checks.require(fits, name, f"a positive {kind} for each of the {num_tasks} tasks", sizes)
    return numbers


def _is_numeric(array: Any) -> bool:
    if isinstance(array, jax.Array):
        return True
    is_array = isinstance(array, (np.ndarray, np.generic))
    return is_array and (array.dtype == bool or jnp.issubdtype(array.dtype, np.number))

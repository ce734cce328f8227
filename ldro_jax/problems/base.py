"""What can be trained: the interface between a user's tasks and the trainer.

A problem has N tasks, a model, a loss for each row of data, and metrics. Everything else (methods,
seeds, resuming, devices, the report) works for every problem.
"""

import abc
import copy
import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

from ldro_jax import checks
from ldro_jax.records import traced
from ldro_jax.tasks.base import content
from ldro_jax.tasks.source import Source


class Metric(NamedTuple):
    """What is measured on held-out data, one value for each task.

    Attributes:
      name: such as "accuracy".
      higher_is_better: its direction.
    """

    name: str
    higher_is_better: bool


class OnDevice(NamedTuple):
    """Training rows that fit on the device, where compiled steps draw them.

    Attributes:
      arrays: a pytree, the same for all runs.
      sizes: examples of each task, a NumPy array ``[N]``.
      take: ``(arrays, key of the run, step, tasks [B], indices [B]) -> rows``, a pytree of arrays
        ``[B, ...]``, where ``indices`` are examples of their task. It is traced.
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
      reference: parameters of a reference model, if there is one; see :meth:`with_reference`.
      reference_identity: what tells one reference from another, a part of ``identity``.
      observe: what to keep of the parameters after every step, ``params -> [D]``, if anything.
    """

    task_names: tuple[str, ...]
    metrics: tuple[Metric, ...]
    splits: tuple[str, ...] = ("validation", "test")
    on_device: OnDevice | None = None
    reference: Any = None
    reference_identity: Mapping[str, Any] = types.MappingProxyType({})
    observe: Callable[[Any], jax.Array] | None = None

    @abc.abstractmethod
    def init(self, key: jax.Array) -> Any:
        """Makes the parameters.

        Args:
          key: a PRNG key.

        Returns:
          A pytree of arrays.
        """

    @abc.abstractmethod
    def row_losses(self, params: Any, rows: Any) -> jax.Array:
        """The loss of each row, which is differentiated.

        Args:
          params: of the model.
          rows: some of a source's, arrays ``[R, ...]``.

        Returns:
          ``[R]``, float32 or float64. The loss of a task is the mean over its rows.
        """

    def row_excess(self, params: Any, reference: Any, rows: Any) -> jax.Array:
        """By how much each row is worse than with a reference model, or zero.

        Args:
          params: of the model.
          reference: of the reference model.
          rows: some of a source's, arrays ``[R, ...]``.

        Returns:
          ``[R]``.
        """
        return jnp.maximum(self.row_losses(params, rows) - self.row_losses(reference, rows), 0)

    def with_reference(self, params: Any) -> Self:
        """The problem with a reference model, for methods that compare rows with it (DoReMi).

        Args:
          params: of the reference, a model like the one that is trained.

        Returns:
          The problem.
        """
        other = copy.copy(self)
        other.reference = params
        other.reference_identity = {"reference": content(jax.tree.leaves(params))}
        return other

    @abc.abstractmethod
    def source(self, seed: int) -> Source:
        """Where the rows of a run come from.

        Args:
          seed: of the run; it decides their order.

        Returns:
          A source at its beginning.
        """

    @abc.abstractmethod
    def evaluate(self, params: Any, split: str) -> Mapping[str, Any]:
        """Measures all tasks on held-out data.

        Args:
          params: of the model.
          split: one of ``splits``.

        Returns:
          For each metric, by name, the values of all tasks, ``[N]``.
        """

    @property
    def num_tasks(self) -> int:
        """Number of tasks, N."""
        return len(self.task_names)

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
        """Shapes and dtypes of one row.

        Returns:
          A pytree of ``jax.ShapeDtypeStruct``, without the leading axis of rows.
        """
        one = np.zeros(1, np.int32)
        rows = self.source(0).rows(one, one)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), rows)

    def score(self, values: Mapping[str, np.ndarray]) -> float:
        """How good a checkpoint is, to keep the best.

        Args:
          values: of all metrics on validation.

        Returns:
          The higher the better: the average of the first metric, with its sign.
        """
        name, higher_is_better = self.metrics[0]
        return float(np.mean(values[name])) * (1 if higher_is_better else -1)

    def on(self, mesh: jax.sharding.Mesh, batch_size: int) -> "Problem":
        """The problem for a mesh of devices.

        Args:
          mesh: with the axes ``data`` and ``model``.
          batch_size: rows of a training batch.

        Returns:
          This one, unless its model has something to arrange there.
        """
        del mesh, batch_size
        return self

    def check_evaluation(self, params: Any) -> None:
        """Traces an evaluation where that is possible, to find what doesn't fit before training.

        Args:
          params: their shapes.

        Raises:
          ValueError: if something doesn't.
        """
        del params

    def evaluation_digests(self, params: Any) -> dict[str, str]:
        """What tells how the metrics are measured from other ways under the same names.

        Args:
          params: their shapes.

        Returns:
          A digest for each metric, by name; see :mod:`ldro_jax.records.traced`. Here it is that of
          :meth:`evaluate` as a whole: traced, or of its code where it needs numbers.
        """
        try:
            found = "".join(
                traced.of(lambda params, split=split: self.evaluate(params, split), params)
                for split in self.splits
            )
        except Exception:  # whatever a function says that isn't made to be traced
            found = traced.of_code(self.evaluate)
        return {metric.name: found for metric in self.metrics}

    def check_names(self) -> None:
        """Checks what a subclass has set.

        Raises:
          ValueError: if the tasks or metrics aren't what they must be.
        """
        names: Any = getattr(self, "task_names", None)
        checks.sequence("task_names", names, "names, such as ('red', 'blue')")
        # Values are kept by name, so one of two tasks of the same name would be lost.
        different = len({str(name) for name in names}) == len(names)
        checks.require(different, "task_names", "a list of names that all differ", names)
        metrics: Any = getattr(self, "metrics", None)
        checks.sequence("metrics", metrics, "metrics, such as [Metric('accuracy', True)]")
        for metric in metrics:
            checks.instance("metrics", metric, Metric, "Metric('accuracy', True)")

"""Some tasks of a problem, as a problem."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from typing_extensions import override

from ldro_jax.measuring import RowLosses
from ldro_jax.problems import base
from ldro_jax.tasks.source import Source


class Subset(base.Problem):
    """M tasks of a problem whose rows are on the device, with its model and its metrics.

    A program that trains it trains any M of the tasks: which they are is data of each run, as rates
    are, so one compilation is enough for all groups of a size. Of rows with one task each, those of
    other tasks aren't drawn; where a row has labels of all tasks, those of others aren't counted.
    A task has the same rows in the same order whatever the others are.

    Args:
      whole: the problem.
      tasks: places of its tasks, ascending, ``[M]``.

    Attributes:
      tasks: which they are, int32 ``[M]``; traced in a program.
    """

    def __init__(self, whole: base.Problem, tasks: Sequence[int]) -> None:
        assert whole.on_device is not None
        self._whole = whole
        self.metrics: tuple[base.Metric, ...] = whole.metrics
        self.splits: tuple[str, ...] = whole.splits
        self.on_device: base.OnDevice | None = whole.on_device
        self.reference: Any = whole.reference
        self.reference_identity: Mapping[str, Any] = whole.reference_identity
        self.labels: np.ndarray | None = whole.labels
        self.observe: Callable[[Any], jax.Array] | None = whole.observe
        self.starting: Any = whole.starting
        self.penalty: Callable[[Any], jax.Array] | None = whole.penalty
        self.tables: Mapping[str, int] | None = whole.tables
        self.features: Callable[[Any], Any] | None = whole.features
        self.draws_at_random: bool = whole.draws_at_random
        self.rows_depend: bool = whole.rows_depend
        self._choose(np.asarray(tasks, np.int32))

    def _choose(self, tasks: Any) -> None:
        self.tasks = tasks
        if isinstance(tasks, np.ndarray):
            self.task_names: tuple[str, ...] = tuple(self._whole.task_names[task] for task in tasks)

    def of(self, tasks: Any) -> Self:
        """The same for as many other tasks, ``[M]``."""
        other = copy.copy(self)
        other._choose(tasks if isinstance(tasks, jax.Array) else np.asarray(tasks, np.int32))
        return other

    @property
    @override
    def whole(self) -> base.Problem:
        return self._whole

    @override
    def init(self, key: jax.Array) -> Any:
        return self._whole.init(key)

    @override
    def row_losses(self, params: Any, rows: Any) -> jax.Array:
        return self._mine(self._whole.row_losses(params, rows))

    @override
    def training_losses(self, params: Any, rows: Any, key: jax.Array | None = None) -> RowLosses:
        found = self._whole.training_losses(params, rows, key)
        counts = None if found.counts is None else self._mine(found.counts)
        return found._replace(sums=self._mine(found.sums), counts=counts)

    def _mine(self, values: Any) -> Any:
        """What belongs to these tasks, of numbers for each row or each row and task."""
        return values if self.labels is None else values[:, self.tasks]

    @override
    def labelled(self, rows: Any) -> Any:
        return rows if self.labels is None else _at(self._whole.labelled(rows), self.tasks)

    @override
    def replaced(self, params: Any) -> Any:
        return self._whole.replaced(params)

    @override
    def row_excess(self, params: Any, reference: Any, rows: Any) -> jax.Array:
        return self._mine(self._whole.row_excess(params, reference, rows))

    @override
    def source(self, seed: int) -> Source:
        raise ValueError("Some tasks of a problem are trained on rows on the device alone.")

    @override
    def evaluate(self, params: Any, split: str) -> dict[str, Any]:
        values = self._whole.evaluate(params, split)
        return {name: np.asarray(value)[self.tasks] for name, value in values.items()}

    @property
    @override
    def identity(self) -> dict[str, Any]:
        return self._whole.identity

    @property
    @override
    def sizes(self) -> np.ndarray | None:
        return None if self._whole.sizes is None else np.asarray(self._whole.sizes)[self.tasks]

    @override
    def check_evaluation(self, params: Any) -> bool:
        return self._whole.check_evaluation(params)

    @override
    def evaluation_digests(self, params: Any) -> dict[str, str]:
        return self._whole.evaluation_digests(params)

    @override
    def check_rows(self) -> None:
        self._whole.check_rows()


def _at(values: Any, places: Any) -> Any:
    return None if values is None else jnp.asarray(values)[places]

"""What problems whose data is in memory have in common, whatever the form of the data."""

import abc
import copy
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

import jax
import numpy as np
from typing_extensions import override

from ldro_jax.problems import base, checked, models


class InMemory(base.Problem):
    """Splits of arrays, a model, and metrics that JAX or NumPy computes.

    A subclass sets what is listed here. ``_evaluate`` is its :meth:`_values`, compiled.
    """

    _model: models.Functions
    _loss: Any
    # From the name of a metric to what it is measured with.
    _measures: Mapping[str, Any]
    _splits: Mapping[str, Any]
    # The names of the metrics that JAX can't trace.
    _on_host: list[str]
    _evaluate: Callable[..., Any]

    def with_loss(self) -> Self:
        """The problem with the loss as one of its metrics, under the name "loss"."""
        if "loss" in (metric.name for metric in self.metrics):
            return self
        other = copy.copy(self)
        other.metrics = (*self.metrics, base.Metric("loss", higher_is_better=False))
        other._measures = {**self._measures, "loss": self._loss}
        other._evaluate = jax.jit(other._values, static_argnums=2)
        return other

    @property
    @abc.abstractmethod
    def _identity(self) -> dict[str, Any]:
        """What tells the data from other data; a cached property."""

    @abc.abstractmethod
    def _arrays(self, split: str) -> Any:
        """The arrays of a split, a pytree."""

    def _form(self, split: str) -> Any:
        """What of a split is known when its evaluation is compiled, hashable."""
        return split

    @abc.abstractmethod
    def _values(self, params: Any, arrays: Any, form: Any) -> tuple[Any, Any]:
        """The metrics that JAX computes, ``[N]`` by name, and outputs for those that it doesn't."""

    @abc.abstractmethod
    def _of_tasks(self, split: str, outputs: Any) -> Iterator[tuple[str, Any, Any]]:
        """Of each task its name, and outputs and rows of a split, NumPy arrays."""

    @abc.abstractmethod
    def _measure(self, name: str, task: str) -> Callable[[Any, Any], Any]:
        """The function that measures a task."""

    @override
    def replaced(self, params: Any) -> Any:
        return None if self._model.replaced is None else self._model.replaced(params)

    @override
    def evaluate(self, params: Any, split: str) -> dict[str, Any]:
        values, outputs = self._evaluate(params, self._placed[split], self._form(split))
        if not self._on_host:
            return values
        unknown = np.full(len(self.measured), np.nan, np.float32)
        found = {name: unknown.copy() for name in self._on_host}
        for task, mine, rows in self._of_tasks(split, jax.device_get(outputs)):
            for name in self._on_host:
                number = checked.number(self._measure(name, task), mine, rows)
                found[name][self.measured.index(task)] = number
        return {**values, **found}

    @property
    @override
    def identity(self) -> dict[str, Any]:
        return {**self._identity, **self.reference_identity}

    @override
    def check_rows(self) -> None:
        pass  # the splits are checked, and the rows on the device are theirs

    @functools.cached_property
    def _placed(self) -> dict[str, Any]:
        return {split: jax.device_put(self._arrays(split)) for split in self.splits}

"""The best run of a record, and its parameters."""

import dataclasses
import math
import os
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ldro_jax.records import relative, shown

if TYPE_CHECKING:
    from ldro_jax.records.kept import Kept
    from ldro_jax.records.results import Results, Run


@dataclasses.dataclass(frozen=True)
class Best:
    """A run, and where its parameters are kept.

    Attributes:
      run: its record.
      step: that of the parameters.
      directory: of the experiment; ``None`` if it isn't known.
    """

    run: "Run"
    step: int
    directory: pathlib.Path | None

    @property
    def params(self) -> Any:
        """The parameters, NumPy arrays in dictionaries; see :func:`ldro_jax.load`.

        Raises:
          FileNotFoundError: if they aren't kept.
          ValueError: if the record isn't of an experiment's directory.
        """
        from ldro_jax.records import kept  # with JAX, which tables and figures do without

        if self.directory is None:
            raise ValueError(
                "params are kept in the directory of an experiment, which this record doesn't "
                "know. Use what ldro_jax.compare returns, or load the directory's results.json."
            )
        return kept.load(self.directory, **self._asked)

    def checkpoint(self, newest: "Sequence[Kept]") -> pathlib.Path:
        """The folder of the checkpoint that has them, among those of the experiment.

        Raises:
          FileNotFoundError: if they aren't kept.
        """
        from ldro_jax.records import kept

        assert self.directory is not None
        found, _ = kept.find(self.directory, newest, **self._asked)
        return found.folder / str(found.step)

    @property
    def _asked(self) -> dict[str, Any]:
        kinds = (bool, int, float, str, type(None))
        settings = {k: v for k, v in self.run.hyperparameters.items() if isinstance(v, kinds)}
        # A run that ended before others of its group is in their last checkpoint.
        step = "last" if self.step == self.run.early_stop else self.step
        return {
            "method": self.run.method,
            "seed": self.run.seed,
            "settings": settings,
            "step": step,
        }


def of(results: "Results", method: str | None) -> Best:
    """See :meth:`ldro_jax.records.results.Results.best`."""
    found = each(results, method)
    if not found:
        known = ", ".join(dict.fromkeys(repr(run.method) for run in results.runs)) or "none"
        raise ValueError(
            f"method must have a run that has finished with a value on validation, but it is "
            f"{method!r}. The record has runs of {known}."
        )
    return max(found, key=lambda one: one[0])[1]


def each(results: "Results", method: str | None = None) -> list[tuple[float, Best]]:
    """The parameters of every run that has finished with a value on validation, and how good."""
    found: list[tuple[float, Best]] = []
    sign = 1.0 if results.direction(results.metric) else -1.0
    for run in results.runs:
        if run.stopped is not None or method not in (None, run.method):
            continue
        ours = [e for e in run.evaluations if (e.split, e.metric) == ("validation", results.metric)]
        tested = relative.last(run, "test", results.metric)
        step = tested.step if tested else max((e.step for e in ours), default=0)
        for e in ours:
            score = sign * getattr(e, results.select_by)
            if e.step == step and math.isfinite(score):
                found.append((score, Best(run, step, results.directory)))
    return found


def table(results: "Results", method: str | None = None) -> shown.Table:
    """Every run's parameters: their values on validation and test, and where they are kept.

    Args:
      results: of an experiment's directory.
      method: the only one to show.

    Raises:
      ValueError: as :func:`of`.
    """
    from ldro_jax.records import kept

    assert results.directory is not None
    best = of(results, method).run
    newest = list(kept.newest(results.directory))
    labels = {id(run): name for name, runs in relative.groups(results.runs).items() for run in runs}
    rows, splits, whiches = [], ("validation", "test"), ("average", "worst")
    for _, one in each(results, method):
        at = {e.split: e for e in one.run.evaluations if _is_at(e, one.step, results.metric)}
        numbers = [f"{getattr(at[s], w):.4g}" if s in at else "–" for s in splits for w in whiches]
        try:
            place = os.path.relpath(one.checkpoint(newest), results.directory / "checkpoints")
        except FileNotFoundError:
            place = "not kept"
        rows.append([labels[id(one.run)], str(one.run.seed), str(one.step), *numbers, place])
    header = ["method", "seed", "step", "val. avg", "val. worst", "test avg", "test worst"]
    direction = relative.better(results.direction(results.metric))
    title = f"{results.experiment}: {results.metric} ({direction}) of what is in checkpoints/"
    note = f"Best on validation by the {results.select_by} value: "
    note += f"{labels[id(best)]}, seed {best.seed}."
    return shown.Table(title, [*header, "parameters"], rows, note=note)


def _is_at(evaluation: Any, step: int, metric: str) -> bool:
    return (evaluation.step, evaluation.metric) == (step, metric)

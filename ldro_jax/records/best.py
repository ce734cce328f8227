"""The best run of a record, and its parameters."""

import dataclasses
import math
import pathlib
from typing import TYPE_CHECKING, Any

from ldro_jax.records import relative

if TYPE_CHECKING:
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
        kinds = (bool, int, float, str, type(None))
        settings = {k: v for k, v in self.run.hyperparameters.items() if isinstance(v, kinds)}
        asked = {"method": self.run.method, "seed": self.run.seed, "settings": settings}
        # A run that ended before others of its group is in their last checkpoint.
        step = "last" if self.step == self.run.early_stop else self.step
        return kept.load(self.directory, **asked, step=step)


def of(results: "Results", method: str | None) -> Best:
    """See :meth:`ldro_jax.records.results.Results.best`."""
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
    if not found:
        known = ", ".join(dict.fromkeys(repr(run.method) for run in results.runs)) or "none"
        raise ValueError(
            f"method must have a run that has finished with a value on validation, but it is "
            f"{method!r}. The record has runs of {known}."
        )
    return max(found, key=lambda one: one[0])[1]

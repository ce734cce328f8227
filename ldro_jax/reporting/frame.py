"""A record as a table: one row per evaluation, beside the run and the setting that it is of."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import pandas as pd

from ldro_jax.records import relative
from ldro_jax.records.results import Run

# pandas doesn't say what most of its methods return, so checkers take its tables for anything.
DataFrame: TypeAlias = Any
Series: TypeAlias = Any
_COLUMNS = {
    **{"setting": int, "method": object, "seed": int, "stopped": bool},
    **{"split": object, "metric": object, "step": int},
    **{"average": float, "worst": float, "worst_task": object, "per_task": object},
}


@dataclasses.dataclass(frozen=True, eq=False)
class Setting:
    """The runs of one method with one choice of hyperparameters: they differ in the seed only.

    Attributes:
      place: its place among all settings of the record.
      method: the method's name.
      hyperparameters: the choice.
      label: the name to show; it has what differs where the method has several settings.
      runs: one for each seed.
    """

    place: int
    method: str
    hyperparameters: Mapping[str, Any]
    label: str
    runs: Sequence[Run]

    @property
    def differing(self) -> str:
        """What tells this setting from others of its method."""
        return self.label.removeprefix(f"{self.method} (").removesuffix(")")


def settings(runs: Iterable[Run]) -> list[Setting]:
    """Groups runs by method and hyperparameters; see :func:`ldro_jax.records.relative.groups`."""
    return [
        Setting(place, ours[0].method, ours[0].hyperparameters, label, ours)
        for place, (label, ours) in enumerate(relative.groups(runs).items())
    ]


def evaluations(settings: Sequence[Setting]) -> DataFrame:
    """All evaluations of all runs, a row for each, in the order of the record.

    The columns are setting (its place), method, seed, stopped (whether the run has ended early),
    split, metric, step, average, worst, worst_task and per_task (a mapping).
    """
    rows = [
        (
            *(setting.place, setting.method, run.seed, run.stopped is not None, e.split, e.metric),
            *(e.step, e.average, e.worst, e.worst_task, e.per_task),
        )
        for setting in settings
        for run in setting.runs
        for e in run.evaluations
    ]
    return pd.DataFrame(rows, columns=list(_COLUMNS)).astype(_COLUMNS)


def rows_of(evaluations: DataFrame, setting: Setting, split: str, metric: str) -> DataFrame:
    """The evaluations of one setting on one split by one metric."""
    e = evaluations
    return e[(e.setting == setting.place) & (e.split == split) & (e.metric == metric)]


def report_split(rows: DataFrame) -> str:
    """The split to report: "test" if a finished run has it, else "validation", else "train"."""
    finished = set(rows.split[~rows.stopped])
    return next((s for s in ("test", "validation", "train") if s in finished), "test")


def progress_split(rows: DataFrame) -> str:
    """The split to follow training on: the one with most evaluations, validation of equals."""
    counts = rows.split.value_counts()
    return max(("validation", "test", "train"), key=lambda name: counts.get(name, 0))


def last(rows: DataFrame) -> DataFrame:
    """The last evaluation of each run that reached its end, by seed, given those of a setting."""
    rows = rows[~rows.stopped]
    return rows.loc[rows.groupby("seed", sort=False).step.idxmax()].set_index("seed")


def common_steps(rows: DataFrame, setting: Setting) -> DataFrame:
    """Average and worst value by step, means over the finished runs of a setting.

    `rows` are its evaluations on one split. Steps that a run lacks are left out, and a mean is NaN
    where one of its values is.
    """
    finished = sum(run.stopped is None for run in setting.runs)
    by_step = rows[~rows.stopped].groupby("step")[["average", "worst"]]
    means = by_step.agg(lambda values: values.mean(skipna=False))
    return means[by_step.size() == finished]

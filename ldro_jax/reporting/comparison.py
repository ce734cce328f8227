"""What a report compares, resolved once: splits, settings, the baseline, the order of the tasks.

Everything that is drawn or written afterwards is read from here, so that no two parts of a report
can mean different runs.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from ldro_jax.records import relative as relative_lib
from ldro_jax.records.results import Results, summarise_evaluation
from ldro_jax.reporting import frame
from ldro_jax.reporting.frame import DataFrame, Setting
from ldro_jax.reporting.statistics import Difference, Spread, difference, spread
from ldro_jax.runtime import checks

# Looks that can be told apart in one picture.
_AT_ONCE = 12
_OVERALL = ["average", "worst", "worst_task"]


@dataclasses.dataclass(frozen=True, eq=False)
class Values:
    """The final values of what is compared.

    Attributes:
      metric: what was measured.
      direction: whether higher is better; by task where they differ.
      split: where.
      settings: what is compared.
      baseline: one of them.
      overall: by setting, for each finished seed, the columns average, worst and worst_task; where
        directions differ, of values with a minus where lower is better.
      tasks: by setting, for each finished seed, a column for each task.
    """

    metric: str
    direction: bool | Mapping[str, bool]
    split: str
    settings: Sequence[Setting]
    baseline: Setting
    overall: Mapping[Setting, DataFrame]
    tasks: Mapping[Setting, DataFrame]

    @property
    def higher_is_better(self) -> bool:
        """The direction of averages and worst values."""
        return bool(self.direction)

    @property
    def sign(self) -> float:
        """1 if higher is better, else -1."""
        return 1.0 if self.higher_is_better else -1.0

    @property
    def lower_tasks(self) -> list[str]:
        """The tasks with a direction of their own, in which lower is better."""
        by_task = self.direction if isinstance(self.direction, Mapping) else {}
        return [name for name, is_higher in by_task.items() if not is_higher]

    def task_direction(self, task: str) -> bool:
        """Whether higher values of a task are better."""
        return self.direction[task] if isinstance(self.direction, Mapping) else self.direction

    def named(self, task: str, name: str = "") -> str:
        """The name of a task, or a shorter one, with an arrow where directions differ."""
        arrow = (" ↑" if self.task_direction(task) else " ↓") if self.lower_tasks else ""
        return (name or task) + arrow

    @property
    def better(self) -> str:
        """Which averages and worst values are better, in words."""
        return relative_lib.better(self.direction)

    @property
    def any(self) -> bool:
        """Whether some run has finished with a value."""
        return any(map(len, self.overall.values()))

    @property
    def others(self) -> list[Setting]:
        """All settings but the baseline."""
        return [s for s in self.settings if s is not self.baseline]

    def spreads(self, which: str) -> list[Spread]:
        """Mean and spread over seeds of the "average" or "worst" value of each setting."""
        return [spread(self.overall[s][which]) for s in self.settings]

    def differences(self, which: str) -> dict[str, Difference]:
        """How the others differ from the baseline seed by seed, by label."""
        values = {s: self.overall[s][which] for s in self.settings}
        return {s.label: difference(values[s], values[self.baseline]) for s in self.others}

    def task_spread(self, setting: Setting, task: str) -> Spread:
        """Mean and spread over seeds of one task."""
        return spread(self.tasks[setting][task])


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """Everything that is compared.

    Attributes:
      record: what it was made from.
      settings: all settings of all methods.
      evaluations: of all settings, see :func:`frame.evaluations`.
      shown: one setting of each method, labelled by the method; or all settings.
      baseline: the one of `shown` that the others are compared with; without runs an empty one.
      values: final values on the split that is reported.
      relative: final values relative to models of one task each, in per cent; None without them.
      own: by task, the values of those models; NaN where there is none.
      delta_p: what tasks gain on average over those models, or over the baseline; None without
        anything to compare with.
      progress_split: where training is followed: the split with most evaluations.
      task_order: from the baseline's worst task to its best; those without a value come first.
    """

    record: Results
    settings: Sequence[Setting]
    evaluations: DataFrame
    shown: Sequence[Setting]
    baseline: Setting
    values: Values
    relative: Values | None
    own: Mapping[str, float]
    delta_p: relative_lib.DeltaP | None
    progress_split: str
    task_order: Sequence[str]

    @property
    def notable(self) -> Sequence[Setting]:
        """The baseline, and as many of the best by worst task as a picture can tell apart."""
        if not self.has_many:
            return self.shown
        others = self.values.others
        means = [self.values.sign * s.mean for s in self.values.spreads("worst")]
        ranks = dict(zip(self.values.settings, np.nan_to_num(means, nan=-np.inf), strict=True))
        best = sorted(others, key=lambda s: -ranks[s])[: _AT_ONCE - 1]
        return [s for s in self.shown if s is self.baseline or s in best]

    @property
    def has_many(self) -> bool:
        """Whether there are more methods than a picture can tell apart."""
        return len(self.shown) > _AT_ONCE

    @property
    def is_sweep(self) -> bool:
        """Whether some method has several settings."""
        return len(self.methods) < len(self.settings)

    @property
    def methods(self) -> dict[str, list[Setting]]:
        """All settings of each method, in order of first appearance."""
        by_method: dict[str, list[Setting]] = {}
        for setting in self.settings:
            by_method.setdefault(setting.method, []).append(setting)
        return by_method

    def rows(self, setting: Setting, split: str) -> DataFrame:
        """The evaluations of a setting on a split, by the metric that is compared."""
        return frame.rows_of(self.evaluations, setting, split, self.record.metric)

    def checkpoints(self, setting: Setting) -> DataFrame:
        """Mean average and worst value by step, see :func:`frame.common_steps`."""
        return frame.common_steps(self.rows(setting, self.values.split), setting)


def compare(
    record: Results, *, baseline: str | None = None, every_setting: bool = False
) -> Comparison:
    """Resolves what is compared.

    Args:
      record: what was run.
      baseline: a method or the label of a setting; by default the first that trains on the average
        loss, going by its name ("average", "uniform", "equal", "ERM"), or else simply the first.
      every_setting: compare all settings, instead of the one of each method whose value
        `record.select_by` was best on validation.

    Returns:
      The comparison.

    Raises:
      ValueError: if there is no method of the name `baseline`.
    """
    checks.instance("record", record, Results, "what load_results gives")
    settings = frame.settings(record.runs)
    evaluations = frame.evaluations(settings)
    base = _baseline(settings, baseline)
    if every_setting or not settings:
        shown = settings
    else:
        chosen = _chosen(record, settings, evaluations)
        shown = [dataclasses.replace(s, label=s.method) for s in chosen]
        base = next(s for s in shown if s.method == base.method)
    compared = evaluations[evaluations.metric == record.metric]
    split = frame.report_split(compared)
    finals = {s: frame.last(frame.rows_of(compared, s, split, record.metric)) for s in shown}
    values = _values(record, split, shown, base, finals)
    known = record.references.get(split, {})
    own = {name: known.get(name, math.nan) for name in record.task_names}
    return Comparison(
        record=record,
        settings=settings,
        evaluations=evaluations,
        shown=shown,
        baseline=base,
        values=values,
        relative=_relative(values, own),
        own=own,
        delta_p=relative_lib.of_groups(record, {s: s.runs for s in shown}, base, split, base.label),
        progress_split=frame.progress_split(compared),
        task_order=_task_order(values, record.task_names),
    )


def _baseline(settings: Sequence[Setting], name: str | None) -> Setting:
    if not settings:
        return Setting(0, "", {}, "", ())
    return settings[relative_lib.choose([(s.label, s.method) for s in settings], name)]


def _chosen(record, settings, evaluations) -> list[Setting]:
    """The setting of each method that is best on validation, the first of equals.

    A run is judged by its value at the step of its last test evaluation, so that it is the tested
    checkpoint that is judged; without one, by its last value.
    """
    sign = 1.0 if record.direction(record.metric) else -1.0
    best: dict[str, tuple[float, Setting]] = {}
    for setting in settings:
        rows = frame.rows_of(evaluations, setting, "validation", record.metric)
        final = frame.last(rows)[record.select_by]
        tested = frame.last(frame.rows_of(evaluations, setting, "test", record.metric)).step
        at = dict(zip(zip(rows.seed, rows.step, strict=True), rows[record.select_by], strict=True))
        judged = [at.get((seed, tested.get(seed)), value) for seed, value in final.items()]
        score = sign * spread(judged).mean
        score = score if math.isfinite(score) else -math.inf
        if setting.method not in best or score > best[setting.method][0]:
            best[setting.method] = (score, setting)
    return [setting for _, setting in best.values()]


def _values(record, split, settings, baseline, finals) -> Values:
    tasks = {
        s: pd.DataFrame(
            [[e.get(name, math.nan) for name in record.task_names] for e in rows.per_task],
            index=rows.index,
            columns=list(record.task_names),
            dtype=float,
        )
        for s, rows in finals.items()
    }
    overall = {s: rows[_OVERALL] for s, rows in finals.items()}
    direction = record.direction(record.metric)
    return Values(record.metric, direction, split, settings, baseline, overall, tasks)


def _relative(values: Values, own: Mapping[str, float]) -> Values | None:
    """100 (value - own) / |own| by task, where |own| isn't 0, and their average and worst task.

    Where directions differ, with a minus where lower is better.
    """
    names = [name for name, value in own.items() if math.isfinite(value) and value != 0]
    if not names or not values.settings:
        return None
    references, sign, direction = np.array([own[name] for name in names]), 1.0, values.direction
    if values.lower_tasks:
        sign, direction = relative_lib.signs(direction, names), True
    metric = f"relative {values.metric}"
    tasks, overall = {}, {}
    for setting, table in values.tasks.items():
        by = np.abs(references) / 100
        found = [sign * (row - references) / by for row in table[names].to_numpy()]
        entries = [
            summarise_evaluation(0, values.split, metric, names, row, direction) for row in found
        ]
        tasks[setting] = pd.DataFrame(found, table.index, names, dtype=float)
        rows = [(e.average, e.worst, e.worst_task) for e in entries]
        overall[setting] = pd.DataFrame(rows, table.index, _OVERALL)
    return dataclasses.replace(
        values, metric=metric, direction=direction, overall=overall, tasks=tasks
    )


def _task_order(values: Values, names: Sequence[str]) -> list[str]:
    if not values.settings:
        return list(names)
    means = np.array([values.task_spread(values.baseline, name).mean for name in names])
    keys = np.where(np.isnan(means), -np.inf, relative_lib.signs(values.direction, names) * means)
    return [names[int(place)] for place in np.argsort(keys, kind="stable")]

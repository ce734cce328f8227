"""From runs to comparisons: settings, final values, spreads over seeds, paired differences.

Two methods that ran with the same seeds share their data order and initial parameters, so they are
compared seed by seed. A difference counts as **clear** when there are at least three common seeds
and the 95 % interval of the mean paired difference (Student's t) leaves out zero. The interval
speaks of seeds only, not of other test examples, and isn't corrected for comparing many methods.
"""

import dataclasses
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ldro_jax.records.json_types import plain
from ldro_jax.records.results import Evaluation, Results, Run

MIN_SEEDS = 3
# 97.5 % quantiles of Student's t for 1, 2, ... degrees of freedom; the last also serves for more.
_T = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


@dataclasses.dataclass(frozen=True)
class Group:
    """The runs of one method with one setting: they differ in the seed only.

    Attributes:
      method: the method's name.
      hyperparameters: the setting.
      label: the name to show; it includes what differs if the method has several settings.
      runs: one run per seed.
    """

    method: str
    hyperparameters: Mapping[str, Any]
    label: str
    runs: Sequence[Run]


@dataclasses.dataclass(frozen=True)
class Spread:
    """A mean over `n` seeds and their sample standard deviation (NaN for fewer than two)."""

    mean: float
    std: float
    n: int


@dataclasses.dataclass(frozen=True)
class Difference:
    """A mean paired difference over `n` common seeds, with the half width of its 95 % interval.

    Attributes:
      mean: the mean of "method minus baseline"; NaN without common seeds.
      half_width: the 95 % interval is `mean ± half_width`; NaN for fewer than two seeds.
      n: how many seeds both have.
    """

    mean: float
    half_width: float
    n: int

    @property
    def clear(self) -> bool:
        """Whether the seeds separate the two: three or more, and zero is outside the interval."""
        return self.n >= MIN_SEEDS and abs(self.mean) > self.half_width


def group_runs(runs: Iterable[Run]) -> list[Group]:
    """Groups runs by method and hyperparameters.

    Args:
      runs: any runs.

    Returns:
      The groups in order of first appearance. A method with one setting is labelled by its name,
      one with several by its name and the hyperparameters that differ between them.
    """
    keyed: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        setting = json.dumps(plain(run.hyperparameters), sort_keys=True)
        keyed.setdefault((run.method, setting), []).append(run)
    settings: dict[str, list[Mapping[str, Any]]] = {}
    for (method, _), members in keyed.items():
        settings.setdefault(method, []).append(members[0].hyperparameters)
    return [
        Group(method, members[0].hyperparameters, _label(members[0], settings[method]), members)
        for (method, _), members in keyed.items()
    ]


def _label(run: Run, settings: Sequence[Mapping[str, Any]]) -> str:
    names = dict.fromkeys(name for setting in settings for name in setting)
    differing = [
        name for name in names if len({json.dumps(plain(s.get(name))) for s in settings}) > 1
    ]
    if not differing:
        return run.method
    values = (run.hyperparameters.get(name) for name in differing)
    shown = (
        f"{n}={v:g}" if isinstance(v, float) else f"{n}={v}"
        for n, v in zip(differing, values, strict=True)
    )
    return f"{run.method} ({', '.join(shown)})"


def default_baseline(groups: Sequence[Group], name: str | None = None) -> Group:
    """Chooses what the others are compared with.

    Args:
      groups: all groups, at least one.
      name: a method name or label; by default the first that trains on the average loss, going by
        its name ("average", "uniform", "equal", "ERM"), or else simply the first.

    Returns:
      The baseline.

    Raises:
      ValueError: if no group has that name, or there is no group.
    """
    if not groups:
        raise ValueError("Expected at least one run to compare; found none.")
    if name is not None:
        for group in groups:
            if name in (group.label, group.method):
                return group
        labels = ", ".join(repr(group.label) for group in groups)
        raise ValueError(f"Expected the baseline to be one of {labels}; found {name!r}.")
    for group in groups:
        if re.search(r"\b(average|uniform|equal|erm)\b", group.method.lower().replace("_", " ")):
            return group
    return groups[0]


def final_evaluation(run: Run, split: str, metric: str) -> Evaluation | None:
    """The last evaluation of a run on a split.

    Args:
      run: the run.
      split: "train", "validation" or "test".
      metric: only evaluations of this metric count.

    Returns:
      The evaluation, or None: there is none, or the run stopped early and has no final state.
    """
    found = [e for e in run.evaluations if e.split == split and e.metric == metric]
    return max(found, key=lambda e: e.step) if found and run.stopped is None else None


def final_values(group: Group, split: str, metric: str, which: str) -> dict[int, float]:
    """The final average or worst value of each seed.

    Args:
      group: the runs.
      split: "train", "validation" or "test".
      metric: the metric's name.
      which: "average", "worst", or the name of a task after "task:", such as "task:noisy".

    Returns:
      The value by seed; a seed that stopped early is left out.
    """
    values = {}
    for run in group.runs:
        entry = final_evaluation(run, split, metric)
        if entry is None:
            continue
        if which.startswith("task:"):
            values[run.seed] = entry.per_task.get(which.removeprefix("task:"), math.nan)
        else:
            values[run.seed] = {"average": entry.average, "worst": entry.worst}[which]
    return values


def mean_spread(values: Iterable[float]) -> Spread:
    """Mean and sample standard deviation.

    Args:
      values: one number per seed.

    Returns:
      The spread; the mean is NaN if there is no value or one of them is not finite.
    """
    array = np.asarray(list(values), dtype=np.float64)
    n = len(array)
    if not n or not np.all(np.isfinite(array)):
        return Spread(math.nan, math.nan, n)
    return Spread(float(array.mean()), float(array.std(ddof=1)) if n > 1 else math.nan, n)


def mean_interval(values: Sequence[float]) -> Difference:
    """A mean over seeds with its 95 % interval (Student's t).

    Args:
      values: one number per seed.

    Returns:
      The mean and half the width of its interval.
    """
    spread = mean_spread(values)
    if spread.n < 2:
        return Difference(spread.mean, math.nan, spread.n)
    quantile = _T[min(spread.n - 1, len(_T)) - 1]
    return Difference(spread.mean, quantile * spread.std / math.sqrt(spread.n), spread.n)


def seed_difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Difference:
    """The mean of "ours minus theirs" over the common seeds, with its 95 % interval.

    Args:
      ours: values by seed.
      theirs: values by seed.

    Returns:
      The difference.
    """
    return mean_interval([ours[seed] - theirs[seed] for seed in ours if seed in theirs])


def paired_difference(
    group: Group, baseline: Group, *, split: str, metric: str, which: str
) -> Difference:
    """The mean difference to the baseline over the seeds both finished.

    Args:
      group: the method.
      baseline: what it is compared with.
      split: "train", "validation" or "test".
      metric: the metric's name.
      which: as in `final_values`.

    Returns:
      The difference "group minus baseline"; its `clear` says whether it counts.
    """
    ours = final_values(group, split, metric, which)
    theirs = final_values(baseline, split, metric, which)
    return seed_difference(ours, theirs)


def report_split(results: Results) -> str:
    """The split to report: "test" if some finished run has it, else "validation", else "train"."""
    for split in ("test", "validation", "train"):
        if any(final_evaluation(run, split, results.metric) for run in results.runs):
            return split
    return "test"


def progress_split(results: Results) -> str:
    """The split to show over training: the one with most evaluations, validation if equal."""
    splits = ("validation", "test", "train")
    counts = [
        sum(
            e.split == split and e.metric == results.metric
            for r in results.runs
            for e in r.evaluations
        )
        for split in splits
    ]
    return splits[int(np.argmax(counts))]


def select_best(results: Results, *, split: str = "validation", by: str = "worst") -> Results:
    """Keeps the best setting of each method, as for the table of a sweep.

    A run is judged by its value on `split` at the step of its last test evaluation, so that it is
    the tested checkpoint that is judged; without one, by its last value.

    Args:
      results: the record of a sweep.
      split: where to choose; not the split that is reported.
      by: "worst" or "average".

    Returns:
      The record with one setting per method. A method without a finished evaluation on the split
      keeps its first setting.
    """
    sign = 1.0 if results.higher_is_better else -1.0
    best: dict[str, tuple[float, Group]] = {}
    for group in group_runs(results.runs):
        judged = [_tested(run, split, results.metric) for run in group.runs]
        mean = sign * mean_spread(getattr(e, by) for e in judged if e is not None).mean
        score = mean if math.isfinite(mean) else -math.inf
        if group.method not in best or score > best[group.method][0]:
            best[group.method] = (score, group)
    runs = [run for _, group in best.values() for run in group.runs]
    return dataclasses.replace(results, runs=runs)


def _tested(run: Run, split: str, metric: str) -> Evaluation | None:
    last, test = (final_evaluation(run, name, metric) for name in (split, "test"))
    at = {e.step: e for e in run.evaluations if (e.split, e.metric) == (split, metric)}
    return last if last is None or test is None else at.get(test.step, last)

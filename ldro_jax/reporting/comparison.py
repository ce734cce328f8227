"""One row of numbers per method, and the order and verdicts that tables and figures share."""

import collections
import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from ldro_jax.records.results import Results
from ldro_jax.reporting.numbers import MISSING
from ldro_jax.reporting.summary import (
    MIN_SEEDS,
    Difference,
    Group,
    Spread,
    default_baseline,
    final_evaluation,
    final_values,
    group_runs,
    mean_spread,
    report_split,
)

_VERDICTS = {
    "better": "clearly better",
    "worse": "clearly worse",
    "not separated": "not separated",
    MISSING: "cannot be compared",
}


@dataclasses.dataclass(frozen=True)
class Row:
    """One method in the headline table.

    Attributes:
      label: the method's name.
      average: the final average over the tasks.
      worst: the final value of the worst task.
      worst_task: the task that is worst in most seeds, or None.
      seconds: the time per step.
      time_ratio: the time per step divided by the baseline's; NaN if either is unknown.
      finished: seeds that ended with an evaluation.
      seeds: seeds started.
    """

    label: str
    average: Spread
    worst: Spread
    worst_task: str | None
    seconds: Spread
    time_ratio: float
    finished: int
    seeds: int


def step_seconds(group: Group) -> Spread:
    """The time per step of a group, over the runs that measured it."""
    times = [r.seconds_per_step for r in group.runs]
    return mean_spread(t for t in times if t is not None and _positive(t))


def headline_rows(
    results: Results, *, split: str | None = None, baseline: str | None = None
) -> list[Row]:
    """The content of the headline table.

    Args:
      results: the record.
      split: the split to report; by default `report_split(results)`.
      baseline: the method that times are relative to; by default see `default_baseline`.

    Returns:
      One row per group, in order of first appearance.

    Raises:
      ValueError: if no group has the name `baseline`.
    """
    groups = group_runs(results.runs)
    if not groups:
        return []
    split = split or report_split(results)
    reference = step_seconds(default_baseline(groups, baseline)).mean
    rows = []
    for group in groups:
        final = [final_evaluation(run, split, results.metric) for run in group.runs]
        final = [entry for entry in final if entry is not None]
        names = collections.Counter(entry.worst_task for entry in final)
        seconds = step_seconds(group)
        rows.append(
            Row(
                label=group.label,
                average=mean_spread(entry.average for entry in final),
                worst=mean_spread(entry.worst for entry in final),
                worst_task=names.most_common(1)[0][0] if names else None,
                seconds=seconds,
                time_ratio=seconds.mean / reference,
                finished=len(final),
                seeds=len(group.runs),
            )
        )
    return rows


def verdict(difference: Difference, higher_is_better: bool) -> str:
    """One or two words on a paired difference: "better", "worse", "not separated" or "n/a"."""
    if not math.isfinite(difference.mean):
        return MISSING
    if not difference.clear:
        return "not separated"
    return "better" if (difference.mean > 0) == higher_is_better else "worse"


def judgement(difference: Difference, higher_is_better: bool) -> str:
    """A clause on a paired difference that is a number: whether it is clear, and if not, why."""
    found = verdict(difference, higher_is_better)
    if found != "not separated":
        return f"clearly {found}"
    if difference.n < MIN_SEEDS:
        seeds = "one common seed" if difference.n == 1 else f"{difference.n} common seeds"
        return f"with {seeds} this cannot be told from chance"
    return "these seeds do not separate the two"


def sorted_out(differences: Mapping[str, Difference], higher_is_better: bool) -> str:
    """Which methods are clearly better or worse than the baseline, and which are not.

    Args:
      differences: to the baseline, by method.
      higher_is_better: the direction.

    Returns:
      Lists of methods, such as "clearly better: A, B; not separated: C".
    """
    lists = collections.defaultdict(list)
    for method, difference in differences.items():
        lists[verdict(difference, higher_is_better)].append(method)
    names = {
        key: f"all {len(found)}" if len(found) == len(differences) > 3 else ", ".join(found)
        for key, found in lists.items()
    }
    return "; ".join(f"{text}: {names[key]}" for key, text in _VERDICTS.items() if key in names)


def task_order(
    results: Results, *, split: str | None = None, baseline: str | None = None
) -> list[str]:
    """The task names from the baseline's worst to its best; those without a value come first."""
    groups = group_runs(results.runs)
    if not groups:
        return list(results.task_names)
    base = default_baseline(groups, baseline)
    split = split or report_split(results)
    means = [
        mean_spread(final_values(base, split, results.metric, f"task:{name}").values()).mean
        for name in results.task_names
    ]
    sign = 1.0 if results.higher_is_better else -1.0
    keys = np.where(np.isnan(means), -np.inf, sign * np.array(means))
    return [results.task_names[int(i)] for i in np.argsort(keys, kind="stable")]


def _positive(value) -> bool:
    return value is not None and math.isfinite(value) and value > 0

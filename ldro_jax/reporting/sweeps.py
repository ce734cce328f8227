"""Sweeps: what the checkpoints of all settings of a method amount to, seed by seed.

Michel et al. 2021, section 5.1, report the Pareto frontier of all checkpoints of each method,
"across epochs and hyper-parameter configurations", in the plane of average and worst accuracy. Here
a frontier also has a number, its hypervolume, so that methods can be compared seed by seed. It is
picked on the split it is shown for; `choose` makes the comparison that picks on validation alone.

A seed counts for a method if the record has all its settings with that seed: with fewer settings a
frontier is lower for no merit of another method. Checkpoints of runs that stopped later do count.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from ldro_jax.evaluation.pareto import hypervolume, non_dominated
from ldro_jax.records.results import Results, Run
from ldro_jax.reporting.summary import (
    Group,
    default_baseline,
    group_runs,
    progress_split,
    report_split,
)

# Rules of choice on validation, by name: how the table calls what they look at.
RULES = {
    "worst": "the worst task",
    "average": "the average",
    "balance": "the mean of average and worst task",
}


def settings(results: Results) -> dict[str, list[Group]]:
    """The settings of each method, methods and settings in order of first appearance."""
    found: dict[str, list[Group]] = {}
    for group in group_runs(results.runs):
        found.setdefault(group.method, []).append(group)
    return found


def is_sweep(results: Results) -> bool:
    """Whether some method has several settings."""
    return any(len(groups) > 1 for groups in settings(results).values())


def further_metrics(results: Results) -> list[str]:
    """The metrics in the evaluations other than the one that is compared, in order."""
    names = dict.fromkeys(e.metric for run in results.runs for e in run.evaluations)
    return [name for name in names if name != results.metric]


def for_metric(results: Results, metric: str | None) -> Results:
    """The record with another metric as the one that is compared.

    Args:
      results: the record.
      metric: a metric of its evaluations, or None for `results.metric`.

    Returns:
      The record; its direction is the one in which the metric's worst values are the worst.
    """
    if metric in (None, results.metric):
        return results
    entries = (e for run in results.runs for e in run.evaluations if e.metric == metric)
    higher = not any(e.worst > e.average for e in entries)
    return dataclasses.replace(results, metric=metric, higher_is_better=higher)


def checkpoints(run: Run, split: str, metric: str) -> np.ndarray:
    """Step, average and worst value of each evaluation in the order of steps, shape [C, 3]."""
    found = [e for e in run.evaluations if (e.split, e.metric) == (split, metric)]
    rows = sorted((e.step, e.average, e.worst) for e in found)
    return np.array(rows, dtype=float).reshape(-1, 3)


def complete_seeds(groups: Sequence[Group]) -> list[int]:
    """The seeds that all settings of a method have, in order."""
    return sorted(set.intersection(*({run.seed for run in group.runs} for group in groups)))


def frontier_split(results: Results) -> str:
    """The split whose checkpoints make frontiers: the reported one, if its runs have several there.

    Where a run is tested once, at the end, it is the split of `progress_split`.
    """

    def most(split):
        return max(
            (len(checkpoints(run, split, results.metric)) for run in results.runs), default=0
        )

    split = report_split(results)
    return split if most(split) > 1 else max((split, progress_split(results)), key=most)


def default_reference(results: Results, split: str) -> np.ndarray:
    """What hypervolumes are relative to: zero, or where lower is better a bad point of the record.

    Args:
      results: the record.
      split: the split.

    Returns:
      Average and worst value, shape [2]. For a metric where lower is better, each is the largest on
      the frontier of any method and seed, plus a tenth of the range there, so that a point at the
      end of all frontiers counts too. What is off the frontiers doesn't matter: the perplexity of
      untrained models is so large that next to it all others would look the same. Hypervolumes of
      different records don't compare.
    """
    if results.higher_is_better:
        return np.zeros(2)
    frontiers = [np.zeros((0, 2))]
    for groups in settings(results).values():
        for seed in {run.seed for group in groups for run in group.runs}:
            runs = [run for group in groups for run in group.runs if run.seed == seed]
            clouds = [checkpoints(run, split, results.metric)[:, 1:] for run in runs]
            frontiers.append(non_dominated(np.concatenate(clouds), higher_is_better=False))
    points = np.concatenate(frontiers)
    if not len(points):
        return np.zeros(2)
    return points.max(axis=0) + 0.1 * np.ptp(points, axis=0)


def hypervolumes(
    results: Results,
    *,
    metric: str | None = None,
    split: str | None = None,
    reference: ArrayLike | None = None,
    per_setting: bool = False,
) -> dict[str, dict[int, float]]:
    """The hypervolume of each method's checkpoints, seed by seed.

    Args:
      results: the record.
      metric: by default `results.metric`.
      split: by default see `frontier_split`.
      reference: average and worst value; by default `default_reference(results, split)`.
      per_setting: instead of pooling the settings, take the mean over settings of the hypervolume
        of one setting's checkpoints, in which more settings are no advantage.

    Returns:
      By method, by complete seed.
    """
    results = for_metric(results, metric)
    split = split or frontier_split(results)
    corner = default_reference(results, split) if reference is None else reference
    found: dict[str, dict[int, float]] = {}
    for method, groups in settings(results).items():
        found[method] = {}
        for seed in complete_seeds(groups):
            runs = [run for group in groups for run in group.runs if run.seed == seed]
            clouds = [checkpoints(run, split, results.metric)[:, 1:] for run in runs]
            if not per_setting:
                clouds = [np.concatenate(clouds)]
            if any(len(cloud) for cloud in clouds):
                areas = [hypervolume(c, corner, results.higher_is_better) for c in clouds]
                found[method][seed] = float(np.mean(areas))
    return found


@dataclasses.dataclass(frozen=True)
class Choice:
    """One checkpoint, chosen on validation: its setting, its step, and its values on test."""

    setting: Group
    step: int
    average: float
    worst: float


def choose(
    results: Results, *, by: str = "worst", metric: str | None = None
) -> dict[str, dict[int, Choice]]:
    """The checkpoint of each method and seed that is best on validation, among all settings.

    Args:
      results: the record.
      by: what is looked at on validation: "worst", "average", or "balance", their mean.
      metric: by default `results.metric`.

    Returns:
      By method, by complete seed. Of equally good ones the earliest is chosen, of those the one of
      the first setting. What was not evaluated on both splits cannot be chosen.

    Raises:
      ValueError: if `by` is no rule.
    """
    if by not in RULES:
        raise ValueError(f"Expected by to be one of {', '.join(map(repr, RULES))}; found {by!r}.")
    results = for_metric(results, metric)
    sign = 1.0 if results.higher_is_better else -1.0
    found: dict[str, dict[int, Choice]] = {}
    for method, groups in settings(results).items():
        found[method] = {}
        for seed in complete_seeds(groups):
            candidates = []
            for place, group in enumerate(groups):
                run = next(run for run in group.runs if run.seed == seed)
                tested = {row[0]: row for row in checkpoints(run, "test", results.metric)}
                for step, average, worst in checkpoints(run, "validation", results.metric):
                    scores = {
                        "worst": worst,
                        "average": average,
                        "balance": (average + worst) / 2,
                    }
                    score = sign * scores[by]
                    if math.isfinite(score) and step in tested:
                        candidates.append((-score, step, place, *tested[step][1:]))
            if candidates:
                # No two are equal in step and place, so the test values never decide.
                _, step, place, average, worst = min(candidates)
                found[method][seed] = Choice(groups[place], int(step), average, worst)
    return found


def baseline_method(results: Results, baseline: str | None = None) -> str:
    """The method that others are compared with, with all its settings; see `default_baseline`."""
    return default_baseline(group_runs(results.runs), baseline).method

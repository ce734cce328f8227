"""Sweeps: what the checkpoints of all settings of a method amount to, seed by seed.

Michel et al. 2021, section 5.1, report the Pareto frontier of all checkpoints of each method,
"across epochs and hyper-parameter configurations", in the plane of average and worst accuracy. Here
a frontier also has a number, its hypervolume, so that methods can be compared seed by seed. It is
picked on the split it is shown for; `choices` makes the comparison that picks on validation alone.

A seed counts for a method if the record has all its settings with that seed: with fewer settings a
frontier is lower for no merit of another method. Checkpoints of runs that stopped later do count.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from ldro_jax.records import relative
from ldro_jax.reporting import frame
from ldro_jax.reporting.comparison import Comparison
from ldro_jax.reporting.frame import DataFrame, Series, Setting
from ldro_jax.reporting.pareto import hypervolume, non_dominated

# Rules of choice on validation, by name: how the table calls what they look at.
RULES = {
    "worst": "the worst task",
    "average": "the average",
    "balance": "the mean of average and worst task",
}


@dataclasses.dataclass(frozen=True, eq=False)
class Frontiers:
    """The checkpoints of a sweep by one metric, and how large an area they reach.

    Attributes:
      metric: what was measured.
      direction: whether higher is better; by task where they differ.
      split: where.
      corner: average and worst value that areas begin at, shape [2].
      clouds: by method and seed, average and worst value of all checkpoints, shape [C, 2].
      pooled: by method, for each complete seed, the hypervolume of all checkpoints.
      single: the same of one setting's checkpoints, mean over the settings. A method with more
        settings has no advantage in this one.
    """

    metric: str
    direction: bool | Mapping[str, bool]
    split: str
    corner: np.ndarray
    clouds: Mapping[str, Mapping[int, np.ndarray]]
    pooled: Mapping[str, Series]
    single: Mapping[str, Series]

    @property
    def higher_is_better(self) -> bool:
        """The direction of averages and worst values."""
        return bool(self.direction)

    @property
    def better(self) -> str:
        """Which averages and worst values are better, in words."""
        return relative.better(self.direction)


def further_metrics(comparison: Comparison) -> list[str]:
    """The metrics in the evaluations other than the one that is compared, in order."""
    metrics = comparison.evaluations.metric.unique()
    return [name for name in metrics if name != comparison.record.metric]


def frontiers(comparison: Comparison, metric: str | None = None) -> Frontiers:
    """The frontiers of all methods by the metric that is compared, or by another one.

    They are of the reported split, if runs have several evaluations there; where a run is tested
    once, at the end, of the split with most evaluations.
    """
    rows = comparison.evaluations
    # The parameters that a run begins with are none of its checkpoints.
    rows = rows[(rows.metric == (metric or comparison.record.metric)) & (rows.step > 0)]
    direction = comparison.record.direction(metric or comparison.record.metric)
    higher = bool(direction)
    split = _split(rows)
    rows = rows[rows.split == split].sort_values("step", kind="stable")
    parts = {
        method: {seed: _clouds(rows, settings, seed) for seed in _seeds(settings)}
        for method, settings in comparison.methods.items()
    }
    clouds = {m: {s: np.concatenate(p) for s, p in by_seed.items()} for m, by_seed in parts.items()}
    corner = _corner([c for by_seed in clouds.values() for c in by_seed.values()], direction)
    pooled, single = {}, {}
    for method, settings in comparison.methods.items():
        together, each = {}, {}
        for seed in complete_seeds(settings):
            if len(cloud := clouds[method][seed]):
                areas = [hypervolume(part, corner, higher) for part in parts[method][seed]]
                together[seed], each[seed] = hypervolume(cloud, corner, higher), np.mean(areas)
        pooled[method] = pd.Series(together, dtype=float)
        single[method] = pd.Series(each, dtype=float)
    name = metric or comparison.record.metric
    return Frontiers(name, direction, split, corner, clouds, pooled, single)


def _clouds(rows: DataFrame, settings: Sequence[Setting], seed: int) -> list[np.ndarray]:
    """Average and worst value of all checkpoints of each setting with a seed."""
    ours = rows[rows.seed == seed]
    return [ours[ours.setting == s.place][["average", "worst"]].to_numpy() for s in settings]


def _seeds(settings: Sequence[Setting]) -> list[int]:
    return sorted({run.seed for setting in settings for run in setting.runs})


def complete_seeds(settings: Sequence[Setting]) -> list[int]:
    """The seeds that all settings of a method have, in order."""
    return sorted(set.intersection(*({run.seed for run in s.runs} for s in settings)))


def _split(rows: DataFrame) -> str:
    split = frame.report_split(rows)
    most = rows.groupby(["split", "setting", "seed"]).size().groupby("split").max()
    if most.get(split, 0) > 1:
        return split
    return max((split, frame.progress_split(rows)), key=lambda name: most.get(name, 0))


def _corner(clouds: Sequence[np.ndarray], direction: bool | Mapping[str, bool]) -> np.ndarray:
    """What hypervolumes begin at: zero, or where lower is better a bad point of the record.

    That is the worst on the frontier of any method and seed, plus a tenth of the range there, so
    that a point at the end of all frontiers counts too. What is off the frontiers doesn't matter:
    the perplexity of untrained models is so large that next to it all others would look the same.
    Hypervolumes of different records don't compare.
    """
    if direction is True:
        return np.zeros(2)
    higher = bool(direction)
    points = np.concatenate([np.zeros((0, 2)), *(non_dominated(c, higher) for c in clouds)])
    if not len(points):
        return np.zeros(2)
    tenth = 0.1 * np.ptp(points, axis=0)
    return points.min(axis=0) - tenth if higher else points.max(axis=0) + tenth


def choices(comparison: Comparison, by: str) -> dict[str, DataFrame]:
    """The checkpoint of each method and seed that is best on validation, among all settings.

    Args:
      comparison: of the sweep.
      by: what is looked at on validation, one of `RULES`.

    Returns:
      By method, for each complete seed, the columns setting, step, and average and worst on test.
      Of equals the earliest is chosen, of those the one of the first setting. What was not
      evaluated on both splits cannot be chosen.
    """
    rows = comparison.evaluations
    rows = rows[(rows.metric == comparison.record.metric) & (rows.step > 0)]
    keys = ["method", "seed", "setting", "step"]
    validation, test = (
        rows[rows.split == split].drop_duplicates(keys, keep="last")
        for split in ("validation", "test")
    )
    both = validation.merge(test, on=keys, suffixes=("_seen", ""))
    seen = {"worst": both.worst_seen, "average": both.average_seen}
    seen["balance"] = (both.average_seen + both.worst_seen) / 2
    both = both.assign(cost=-comparison.values.sign * seen[by])
    both = both[np.isfinite(both.cost)].sort_values(["cost", "step", "setting"])
    best = both.drop_duplicates(["method", "seed"]).sort_values("seed")
    chosen = {}
    for method, settings in comparison.methods.items():
        ours = best[(best.method == method) & best.seed.isin(complete_seeds(settings))]
        chosen[method] = ours.set_index("seed")[["setting", "step", "average", "worst"]]
    return chosen

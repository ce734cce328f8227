"""What the report of an experiment on groups of tasks says besides how the ways compare."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ldro_jax.grouping import gain as gains_lib
from ldro_jax.grouping.gain import ALL, ALONE
from ldro_jax.records.results import Results, Run
from ldro_jax.reporting.figures import affinities as affinities_figure
from ldro_jax.reporting.statistics import MISSING, Difference, interval, number, with_interval

# A way to choose groups, and how many, at most.
Way = tuple[str, int | None]
_LONGEST = 400


def sections(
    record: Results,
    *,
    groups: Mapping[Way, Sequence[Sequence[Sequence[str]]]],
    costs: Mapping[Way, tuple[float, float]],
    affinities: Sequence[tuple[str, np.ndarray, float | None]],
    gains: gains_lib.Gains,
    reliability: float,
) -> list[tuple[str, str, Any]]:
    """Sections for :func:`ldro_jax.reporting.write_report`.

    Args:
      record: the ways to choose as methods.
      groups: of each way, the groups of each choice: names of tasks.
      costs: of each way, the training of the groups, and what was trained to choose them, both in
        trainings of all tasks together.
      affinities: name, ``[N, N]``, and what a training that measures it takes, in trainings that
        don't; ``None`` if it isn't measured in training.
      gains: what was measured, mean over seeds.
      reliability: see :func:`ldro_jax.grouping.gain.reliability`.
    """
    found: list[tuple[str, str, Any]] = [
        ("Ways to choose groups", _WAYS, _ways(record, costs)),
        ("The groups", _GROUPS, _chosen(groups)),
    ]
    if affinities:
        names = list(record.task_names)
        figure = affinities_figure.affinities([(n, z) for n, z, _ in affinities], names)
        table = _predictions(affinities, gains, reliability)
        found += [
            ("What predicts the gains", _PREDICTIONS, table),
            ("Affinities", _AFFINITIES, figure),
        ]
    return found


_WAYS = (
    "The number is that of groups, at most. On the test set. Total loss: the sum over tasks; "
    "differences are paired with all tasks in one model, seed by seed. Δp: mean relative "
    "difference of the tasks' losses to a model of each task alone, with the same seed, in %, "
    "higher is better. Training and search are in trainings of all tasks together: that of the "
    "groups, and what was trained to choose them; measured, where an affinity is measured on the "
    "way. ± is half the 95 % interval of the mean over seeds."
)
_GROUPS = (
    "How many different choices there were over the seeds, the mean number of groups and of tasks "
    "in a group, and the choice that came most often."
)
_PREDICTIONS = (
    "Correlations over all members of all groups that were trained, of the gains, 1 − loss in the "
    "group / loss alone on validation, mean over seeds, with what an affinity says: the mean over "
    "the others of a group. Within a task: the mean over tasks of the rank correlation over the "
    "groups of one task. Larger: groups of three and more, which trained pairs predict as well. "
    "Measuring: the time of a training that measures it, in trainings that don't."
)
_AFFINITIES = (
    "The affected task in the row, mean over seeds, without the diagonal; similar tasks side by "
    "side, in the same order in all. Each row is shown relative to its mean, in its standard "
    "deviations: a number added to a row changes no choice of groups."
)


class _Tested(NamedTuple):
    """What the models of one choice came to: losses ``[N]``, and the metric."""

    losses: np.ndarray
    average: float
    worst: float


def _ways(record: Results, costs: Mapping[Way, tuple[float, float]]) -> list[list[str]]:
    tested: dict[Way, dict[int, list[_Tested]]] = {}
    for run in record.runs:
        way = run.method, run.hyperparameters.get("groups")
        of_way = tested.setdefault(way, {})
        of_way.setdefault(run.seed, []).append(_at_the_end(run, record.metric))
    (whole,) = (by_seed for way, by_seed in tested.items() if way[0] == ALL)
    (alone,) = (by_seed for way, by_seed in tested.items() if way[0] == ALONE)

    def over_seeds(of: Callable[[int, _Tested], float], by_seed) -> Difference:
        """The mean over draws and seeds."""
        means = (np.mean([of(seed, x) for x in draws]) for seed, draws in by_seed.items())
        return interval(map(float, means))

    def total(seed: int, x: _Tested) -> float:
        del seed
        return float(x.losses.sum())

    def less(seed: int, x: _Tested) -> float:
        return float(x.losses.sum() - whole[seed][0].losses.sum())

    def relative(seed: int, x: _Tested) -> float:
        return float(100 * np.mean(1 - x.losses / alone[seed][0].losses))

    metric = record.metric
    rows = [
        [
            *("groups by", "total loss", "minus all in one", f"average {metric}"),
            *(f"worst {metric}", "Δp, %", "training", "search"),
        ]
    ]
    for (way, most), by_seed in tested.items():
        training, search = costs[way, most]
        rows.append(
            [
                way if most is None else f"{way}, {most}",
                with_interval(over_seeds(total, by_seed), 2, signed=False),
                "" if way == ALL else with_interval(over_seeds(less, by_seed), 2),
                with_interval(over_seeds(lambda _, x: x.average, by_seed), signed=False),
                with_interval(over_seeds(lambda _, x: x.worst, by_seed), signed=False),
                "" if way == ALONE else with_interval(over_seeds(relative, by_seed), 1),
                *(number(training, 2), number(search, 2) if search else ""),
            ]
        )
    return rows


def _at_the_end(run: Run, metric: str) -> _Tested:
    """On the split "test", or on validation where there is none."""
    split = "test" if any(e.split == "test" for e in run.evaluations) else "validation"
    # The last of each metric stays.
    last = {e.metric: e for e in run.evaluations if e.split == split}
    losses = np.array(list(last["loss"].per_task.values()))
    return _Tested(losses, last[metric].average, last[metric].worst)


def _chosen(groups: Mapping[Way, Sequence[Sequence[Sequence[str]]]]) -> list[list[str]]:
    rows = [["groups by", "choices", "groups", "tasks in each", "most often", "times"]]
    for (way, most), choices in groups.items():
        if most is None:
            continue
        texts = ["; ".join("{" + ", ".join(group) + "}" for group in choice) for choice in choices]
        ((text, times),) = Counter(texts).most_common(1)
        sizes = [len(group) for choice in choices for group in choice]
        short = text if len(text) <= _LONGEST else f"{text[:_LONGEST]} …"
        rows.append(
            [
                *(f"{way}, {most}", f"{len(set(texts))} of {len(texts)}"),
                number(float(np.mean([len(choice) for choice in choices])), 1),
                number(float(np.mean(sizes)), 1),
                *(short, str(times)),
            ]
        )
    return rows


def _predictions(
    affinities: Sequence[tuple[str, np.ndarray, float | None]],
    gains: gains_lib.Gains,
    reliability: float,
) -> list[list[str]]:
    pairs = {group: values for group, values in gains.items() if len(group) == 2}
    larger = {group: values for group, values in gains.items() if len(group) > 2}
    rows = [
        [
            "affinity",
            "pairs: r",
            "ranks",
            "within a task",
            "larger: r",
            "ranks",
            "within a task",
            "measuring",
        ]
    ]
    for name, matrix, ratio in affinities:
        cells = []
        for measured in (pairs, larger):
            if measured is pairs and ratio is None:
                cells += [""] * 3  # they are what is predicted
                continue
            known = gains_lib.agreement(gains_lib.predicted(matrix, measured), measured)
            cells += [number(x, 2, signed=True) for x in known[:3]]
        rows.append([name, *cells, "" if ratio is None else f"{number(ratio, 2)} ×"])
    half = number(reliability, 2, signed=True)
    if half != MISSING:
        most = number(gains_lib.ceiling(reliability), 2, signed=True)
        rows.append([f"halves of the seeds: {half}; at most", most, "", "", most, "", "", ""])
    return rows

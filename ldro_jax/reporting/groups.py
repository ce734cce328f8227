"""What the report of an experiment on groups of tasks says besides how the ways compare."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ldro_jax.grouping import gain as gains_lib
from ldro_jax.grouping.gain import ALL, ALONE
from ldro_jax.records.results import Results, Run
from ldro_jax.reporting.figures import affinities as affinities_figure
from ldro_jax.reporting.statistics import Difference, interval, number, with_interval

# A way to choose groups, and how many, at most.
Way = tuple[str, int | None]
# Of some seeds: affinities by name, [N, N], and gains.
Half = tuple[Mapping[str, np.ndarray], gains_lib.Gains]
_LONGEST = 400


def sections(
    record: Results,
    *,
    groups: Mapping[Way, Sequence[Sequence[Sequence[str]]]],
    costs: Mapping[Way, tuple[float, float]],
    affinities: Mapping[str, np.ndarray],
    halves: Sequence[Half],
    measuring: Mapping[str, float],
) -> list[tuple[str, str, Any]]:
    """Sections for :func:`ldro_jax.reporting.write_report`.

    Args:
      record: the ways to choose as methods.
      groups: of each way, the groups of each choice: names of tasks.
      costs: of each way, the training of the groups, and what was trained to choose them, both in
        trainings of all tasks together.
      affinities: by name, ``[N, N]``, the mean over seeds.
      halves: the same of two halves of the seeds, and the gains that were measured with them.
      measuring: what a training takes that measures an affinity, by name, in trainings that don't;
        none for those that come from trained groups.
    """
    where = "the test set" if _split(record.runs[0]) == "test" else "validation, which chose them"
    figure = affinities_figure.affinities(list(affinities.items()), list(record.task_names))
    return [
        ("Ways to choose groups", _WAYS.format(where=where), _ways(record, costs)),
        ("The groups", _GROUPS, _chosen(groups)),
        ("What predicts the gains", _PREDICTIONS, _predictions(halves, measuring)),
        ("Affinities", _AFFINITIES, figure),
    ]


_WAYS = (
    "The number is that of groups, at most. On {where}. Total loss: the sum over tasks; "
    "differences are paired with all tasks in one model, seed by seed. Δp: mean relative "
    "difference of the tasks' losses to a model of each task alone, with the same seed, in %, "
    "higher is better. Training and search are in trainings of all tasks together: that of the "
    "groups, also of those that were trained in the search, and all that was trained to choose "
    "them; measured, where an affinity is measured on the way. ± is half the 95 % interval of the "
    "mean over seeds."
)
_GROUPS = (
    "How many different choices there were over the seeds, the mean number of groups and of tasks "
    "in a group, and the choice that came most often."
)
_PREDICTIONS = (
    "Correlations of gains, 1 − loss in the group / loss alone on validation, with what an "
    "affinity says, the mean over the others of a group; over all members of all groups that were "
    "trained. The affinity is of one half of the seeds and the gains of the other, both ways, as "
    "with the same seeds they have noise in common (with one seed there is one half). Ranks within "
    "a task: the mean over tasks of the rank correlation over the groups of one task. Larger: "
    "groups of three and more. At most: what the true gains would have, the root of the "
    "correlation between the gains of the halves. Measuring: the time of a training that measures "
    "it, in trainings that don't."
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
    tested: dict[Way, dict[int, _Tested]] = {}
    for run in record.runs:
        way = run.method, run.hyperparameters.get("groups")
        tested.setdefault(way, {})[run.seed] = _at_the_end(run, record.metric)
    (whole,) = (by_seed for way, by_seed in tested.items() if way[0] == ALL)
    (alone,) = (by_seed for way, by_seed in tested.items() if way[0] == ALONE)

    def over_seeds(of: Callable[[int, _Tested], float], by_seed) -> Difference:
        return interval(of(seed, x) for seed, x in by_seed.items())

    def total(seed: int, x: _Tested) -> float:
        del seed
        return float(x.losses.sum())

    def less(seed: int, x: _Tested) -> float:
        return float(x.losses.sum() - whole[seed].losses.sum())

    def relative(seed: int, x: _Tested) -> float:
        return float(100 * np.mean(1 - x.losses / alone[seed].losses))

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


def _split(run: Run) -> str:
    """The split that is reported."""
    return "test" if any(e.split == "test" for e in run.evaluations) else "validation"


def _at_the_end(run: Run, metric: str) -> _Tested:
    # The last of each metric stays.
    last = {e.metric: e for e in run.evaluations if e.split == _split(run)}
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


def _predictions(halves: Sequence[Half], measuring: Mapping[str, float]) -> list[list[str]]:
    rows = [
        [
            *("affinity", "pairs: r", "ranks", "within a task"),
            *("larger: r", "ranks", "within a task", "measuring"),
        ]
    ]
    # Which groups: pairs, or larger ones.
    columns = [_of_sizes(halves, lambda size: size == 2), _of_sizes(halves, lambda size: size > 2)]
    for name in halves[0][0]:
        cells = []
        for gains in columns:
            both = [
                gains_lib.agreement(gains_lib.predicted(affinities[name], other), other)[:3]
                for (affinities, _), other in zip(halves, gains[::-1], strict=True)
            ]
            cells += [number(x, 2, signed=True) for x in np.mean(both, axis=0)]
        ratio = measuring.get(name)
        rows.append([name, *cells, "" if ratio is None else f"{number(ratio, 2)} ×"])
    most = [np.sqrt(max(gains_lib.reliability(*gains), 0.0)) for gains in columns]
    first, second = (number(float(x), 2, signed=True) for x in most)
    rows.append(["At most", first, "", "", second, "", "", ""])
    return rows


def _of_sizes(halves: Sequence[Half], fits: Callable[[int], bool]) -> list[gains_lib.Gains]:
    """The gains of both halves in groups of some sizes."""
    return [{g: x for g, x in gains.items() if fits(len(g))} for _, gains in halves]

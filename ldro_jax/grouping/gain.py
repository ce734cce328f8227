"""What a task gains in a group, measured and predicted.

The gain of task i in a group is ``1 − loss in the group / loss alone``: by which share its held-out
loss is lower than that of a model of its own (of a loss below zero, by which share of its size). A
table of gains is a dictionary from groups, tuples of tasks in ascending order, to the gains of
their members.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ldro_jax.runtime import checks

Group = tuple[int, ...]
Gains = Mapping[Group, np.ndarray]

# How records call all tasks in one model, and a model for each.
ALL, ALONE = "All in one", "One model a task"

# A regression needs some groups to begin with.
FEWEST = 5
# What the regression is penalised with, of which the best is chosen by leaving each group out.
_PENALTIES = tuple(10.0**power for power in range(-3, 5))
_DEGREE = 3


def gains(losses: Mapping[Group, Sequence[float]]) -> dict[Group, np.ndarray]:
    """The gains of groups whose members were measured, and each of them alone as well.

    Args:
      losses: from a group to the losses of its members; of each task that is in one there is the
        group of it alone.

    Returns:
      From each group of two or more to the gains of its members; NaN where a loss isn't finite, or
      that of the task alone is zero.

    Raises:
      ValueError: if a task's loss alone is missing, or a group has another number of losses than
        members.
    """
    alone: dict[int, float] = {}
    for group, values in losses.items():
        fits = np.shape(values) == (len(group),)
        expected = f"a loss for each member of the group {group}"
        checks.require(fits, "losses", expected, values)
        if len(group) == 1:
            alone[group[0]] = float(values[0])
    lacking = sorted({task for group in losses for task in group} - set(alone))
    expected = "the loss of each task alone"
    checks.require(not lacking, "losses", expected, f"none for {lacking}")
    found = {}
    for group, values in losses.items():
        if len(group) > 1:
            own = np.array([alone[task] for task in group])
            with np.errstate(divide="ignore", invalid="ignore"):
                gain = (own - np.asarray(values, float)) / np.abs(own)
            found[group] = np.where(np.isfinite(gain), gain, np.nan)
    return found


def of_pairs(measured: Gains, num_tasks: int) -> np.ndarray:
    """The affinity that gains in pairs are, ``[N, N]``, the affected task in the row (HOA).

    The diagonal is zero, what a task gains alone. Raises ``ValueError`` if a pair is missing.

    References:
      Standley et al., *Which Tasks Should Be Learned Together in Multi-task Learning?*, ICML 2020.
    """
    found = np.zeros((num_tasks, num_tasks))
    for i, j in itertools.combinations(range(num_tasks), 2):
        checks.require((i, j) in measured, "measured", f"the gains of the pair {(i, j)}", None)
        found[i, j], found[j, i] = measured[i, j]
    return found


def predicted(affinity: np.ndarray, groups: Iterable[Group]) -> dict[Group, np.ndarray]:
    """What an affinity ``[N, N]`` says of groups: of each member the mean over the others."""
    affinity = np.asarray(affinity, float)
    return {
        group: np.array([np.mean([affinity[i, j] for j in group if j != i]) for i in group])
        for group in groups
        if len(group) > 1
    }


def every_group(num_tasks: int, least: int = 2, most: int | None = None) -> Iterator[Group]:
    """All groups of at least and at most so many tasks."""
    sizes = range(least, (num_tasks if most is None else most) + 1)
    return itertools.chain.from_iterable(itertools.combinations(range(num_tasks), n) for n in sizes)


class Agreement(NamedTuple):
    """How well predictions agree with measured gains, over all groups and their members.

    Attributes:
      pearson: their correlation.
      spearman: that of their ranks.
      within: the mean over tasks of the rank correlation over the groups of one task, which doesn't
        ask whether one task gains more than another.
      count: how many pairs of a group and a member there are.
    """

    pearson: float
    spearman: float
    within: float
    count: int


def agreement(predictions: Gains, measured: Gains) -> Agreement:
    """Compares predictions with measured gains, on the groups that both have.

    NaN where there are fewer than three values, or all are equal.
    """
    # It takes a second to import, which a program that trains without groups need not wait for.
    from scipy import stats

    common = [g for g in measured if g in predictions]
    entries = [
        (t, p, m) for g in common for t, p, m in zip(g, predictions[g], measured[g], strict=True)
    ]
    found = np.array([e for e in entries if np.isfinite(e[1:]).all()], float).reshape(-1, 3)
    tasks, x, y = found.T
    own = [
        _correlation(stats.rankdata(x[tasks == t]), stats.rankdata(y[tasks == t]))
        for t in np.unique(tasks)
    ]
    own = [value for value in own if np.isfinite(value)]
    within = float(np.mean(own)) if own else np.nan
    return Agreement(
        _correlation(x, y), _correlation(stats.rankdata(x), stats.rankdata(y)), within, len(x)
    )


def reliability(one: Gains, other: Gains) -> float:
    """How far gains repeat themselves: the correlation of those of two halves of the seeds.

    What predicts the true gains without an error correlates with those of one half by the root of
    this number, and nothing that knows none of that half's noise by more. So predictions are to be
    of one half and gains of the other: with the same seeds, both have the noise of the same losses
    alone, the same first parameters and the same rows.

    Args:
      one: the mean gains over some seeds.
      other: those over others; groups that both have count.
    """
    common = [group for group in one if group in other]
    both = [np.concatenate([half[g] for g in common] or [[]]) for half in (one, other)]
    finite = np.isfinite(both).all(axis=0)
    return _correlation(*(x[finite] for x in both))


def mean(by_seed: Sequence[Gains]) -> dict[Group, np.ndarray]:
    """The mean gains of each group over the seeds that have it."""
    groups = dict.fromkeys(group for each in by_seed for group in each)
    return {g: np.mean([each[g] for each in by_seed if g in each], axis=0) for g in groups}


def fitted(
    affinity: np.ndarray, measured: Gains, groups: Iterable[Group]
) -> dict[Group, np.ndarray]:
    """Gains as a regression from some measured groups predicts them (ETAP's step).

    The gain of a member is a polynomial of third degree in the mean affinity from the others, and a
    part for each pair of tasks that are together. Both are penalised (ridge); how much is what
    predicts best the measured groups that are left out one at a time.

    Args:
      affinity: ``[N, N]``, the affected task in the row.
      measured: the gains of five groups or more.
      groups: those to predict.

    Returns:
      From each of the groups of two or more to the gains of its members.

    Raises:
      ValueError: if fewer groups were measured, or something isn't finite.

    References:
      Ayman et al., *ETAP: Ensemble Task Affinity Predictor*, 2026.
    """
    affinity = np.asarray(affinity, float)
    known = {g: np.asarray(v, float) for g, v in measured.items() if len(g) > 1}
    enough = len(known) >= FEWEST
    checks.require(enough, "measured", f"the gains of {FEWEST} groups or more", list(known))
    columns = _Columns(affinity)
    x, y = columns.of(known), np.concatenate(list(known.values()))
    finite = np.isfinite(x).all() and np.isfinite(y).all()
    checks.require(finite, "affinity and measured", "finite numbers", "NaN or infinite ones")
    ends = np.cumsum([len(group) for group in known])
    places = [range(end - len(group), end) for group, end in zip(known, ends, strict=True)]

    def error(penalties):
        products = (x / columns.penalty(*penalties)) @ x.T
        smooth = np.linalg.solve(products + np.eye(len(x)), products).T
        misses = y - smooth @ y
        # What a group would be missed by if it were left out, without fitting once more.
        own = [np.eye(len(at)) - smooth[np.ix_(at, at)] for at in places]
        left_out = [np.linalg.solve(m, misses[at]) for m, at in zip(own, places, strict=True)]
        return np.mean(np.concatenate(left_out) ** 2)

    penalty = columns.penalty(*min(itertools.product(_PENALTIES, repeat=2), key=error))
    scaled = x / penalty
    coefficients = scaled.T @ np.linalg.solve(scaled @ x.T + np.eye(len(x)), y)
    wanted = [group for group in groups if len(group) > 1]
    values = columns.of(wanted) @ coefficients
    ends = np.cumsum([len(group) for group in wanted])[:-1]
    return dict(zip(wanted, np.split(values, ends), strict=True))


class _Columns:
    """What a regression of gains looks at, of a member of a group."""

    def __init__(self, affinity: np.ndarray) -> None:
        self._affinity, self._num_tasks = affinity, len(affinity)
        others = affinity[~np.eye(len(affinity), dtype=bool)]
        self._centre, self._scale = others.mean(), others.std() or 1.0

    def of(self, groups: Iterable[Group]) -> np.ndarray:
        """A row for each member of each group."""
        rows = []
        for group, values in predicted(self._affinity, groups).items():
            for task, value in zip(group, values, strict=True):
                together = np.zeros((self._num_tasks, self._num_tasks))
                together[task, [other for other in group if other != task]] = 1 / (len(group) - 1)
                x = (value - self._centre) / self._scale
                rows.append([*(x**power for power in range(_DEGREE + 1)), *together.ravel()])
        return np.array(rows)

    def penalty(self, polynomial: float, pairs: float) -> np.ndarray:
        """Of each column; the constant has none."""
        return np.array([1e-6, *[polynomial] * _DEGREE, *[pairs] * self._num_tasks**2])


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    if len(x) < 3 or not (np.std(x) > 0 and np.std(y) > 0):
        return float("nan")
    return float(np.corrcoef(x, y)[0, 1])

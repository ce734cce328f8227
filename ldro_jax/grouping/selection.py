"""The best choice of a few groups of tasks, which may overlap, that covers all tasks.

A model is trained for each group, and each task is then used from the model that serves it best. So
a choice of groups is a partition of the tasks into blocks, a block for each model, and for each
block S a group G ⊇ S: the tasks of S are used from the model of G, the others of G are trained
there to help them. The best choice maximises Σ f(S) over the blocks, where
f(S) = max over G ⊇ S of Σ_{i∈S} value(i, G).

Exactly: f for all S from the 3^N pairs S ⊆ G, then the best partition of each set into at most k
blocks, from those of its subsets. Where a group's value comes from affinities between pairs, f(S)
is also found by sorting: of all G of one size, the best adds the tasks with the largest
Σ_{i∈S} Z[i, j]. With that, the heuristic moves one task at a time from block to block.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ldro_jax.runtime import checks

# Up to so many tasks "auto" is exact, which takes two seconds then.
_QUICK = 14
# Two more take nine times as long.
_MOST = 16
# How often the heuristic starts anew, half of the tasks put in other blocks at random.
_KICKS = 100


class Selection(NamedTuple):
    """The groups that were chosen.

    Attributes:
      groups: the tasks of each group, their indices, sorted.
      score: the mean of ``values``.
      values: [N], what the group that serves a task best gives it.
      serves: [N], the index in ``groups`` of that group.
      exact: whether no other choice has a higher score.
    """

    groups: tuple[tuple[int, ...], ...]
    score: float
    values: tuple[float, ...]
    serves: tuple[int, ...]
    exact: bool


def select(affinity: Any, max_groups: int, *, alone: Any = None, method: str = "auto") -> Selection:
    """Chooses groups of tasks by how well the tasks of each pair go together.

    A group G gives its member i the mean of Z[i, j] over its other members j. Of equal choices that
    with the fewest tasks in all is taken, as far as rounding lets one see that they are equal.
    Adding a number to a row, and to what its task scores alone, changes no choice.

    Args:
      affinity: [N, N], Z[i, j] is what training with task j does to task i. Higher is better, and
        all may be negative. The diagonal is ignored.
      max_groups: at most so many groups are chosen, from 1 to N.
      alone: what a group of one scores, a number or one for each task. By default there are none.
      method: "exact" takes 3^N steps and at most 16 tasks; "heuristic" is a local search, the same
        in each call; "auto" is exact for at most 14 tasks.

    Returns:
      The selection.

    Raises:
      ValueError: for affinities that aren't square or finite, an impossible ``max_groups``, or
        one task that may not be alone.

    Example:
      >>> affinity = [[0, 4, 1], [3, 0, 1], [-3, -1, 0]]
      >>> select(affinity, 2)
      Selection(groups=((0, 1), (1, 2)), score=2.0, values=(4.0, 3.0, -1.0), serves=(0, 0, 1), \
exact=True)

    References:
      Fifty et al., Efficiently Identifying Task Groupings for Multi-Task Learning, 2021.
      Standley et al., Which Tasks Should Be Learned Together in Multi-task Learning?, 2020.
    """
    affinity_NxN = _matrix(affinity)
    tasks = len(affinity_NxN)
    max_groups = checks.integer("max_groups", max_groups, high=tasks)
    alone_N = _alone(alone, tasks)
    checks.one_of("method", method, ("auto", "exact", "heuristic"))
    if method == "exact" and tasks > _MOST:
        raise ValueError(
            f"method must be 'heuristic' or 'auto' for more than {_MOST} tasks, but it is 'exact', "
            f"and affinity has {tasks}."
        )
    exact = method == "exact" or (method == "auto" and tasks <= _QUICK)
    if tasks == 1:
        groups = np.ones((1, 1), bool)
    else:
        # So that a row with a large constant is rounded like one without.
        others = affinity_NxN[~np.eye(tasks, dtype=bool)].reshape(tasks, tasks - 1)
        middle = np.median(others, axis=1)
        centred_NxN, alone_less_N = affinity_NxN - middle[:, None], alone_N - middle
        np.fill_diagonal(centred_NxN, 0.0)
        if exact:
            every = _members(np.arange(2**tasks), tasks)
            table = _values(every, centred_NxN, alone_less_N)
            groups = _members(_best_groups(table, max_groups), tasks)
        else:
            groups = _search(centred_NxN, alone_less_N, max_groups)
    return _selection(groups, _values(groups, affinity_NxN, alone_N), exact=exact or tasks == 1)


def select_groups(values: Mapping[tuple[int, ...], Sequence[float]], max_groups: int) -> Selection:
    """Chooses among groups whose values were measured: the best choice that covers all tasks.

    Args:
      values: what each group gives its members, by the tuple of their indices and in its order,
        such as ``{(0, 2): (0.1, -0.3)}``. Higher is better. The tasks are those from 0 to the
        largest.
      max_groups: at most so many groups are chosen, from 1 to the number of tasks.

    Returns:
      The selection, which is exact; for more than 16 tasks to a millionth of the values, and equal
      choices are not told apart.

    Raises:
      ValueError: for a group with a task twice or with more or fewer values than tasks, for values
        that aren't finite, or if no ``max_groups`` of the groups cover all tasks.

    Example:
      >>> select_groups({(0, 1): (4.0, 2.0), (1, 2): (3.0, -1.0), (0, 1, 2): (1.0, 0.0, 3.0)}, 2)
      Selection(groups=((0, 1), (0, 1, 2)), score=3.0, values=(4.0, 2.0, 3.0), serves=(0, 0, 1), \
exact=True)
    """
    values_GxN = _measured(values)
    tasks = values_GxN.shape[1]
    max_groups = checks.integer("max_groups", max_groups, high=tasks)
    groups = np.isfinite(values_GxN)
    # As in `select`, so that equal choices are seen to be equal.
    middle = np.array([np.median(v[np.isfinite(v)]) for v in values_GxN.T])
    if tasks <= _MOST:
        masks = groups @ (1 << np.arange(tasks))
        table = np.full((2**tasks, tasks), -np.inf)
        table[masks] = values_GxN - middle
        chosen = np.flatnonzero(np.isin(masks, _best_groups(table, max_groups)))
    else:
        chosen = _by_program(values_GxN - middle, max_groups)
    if not len(chosen):
        raise ValueError(
            f"max_groups must be so large that as many of the given groups cover all {tasks} "
            f"tasks, but no {max_groups} do. Raise it, or give larger groups."
        )
    return _selection(groups[chosen], values_GxN[chosen], exact=True)


def _numbers(name: str, expected: str, value: Any) -> np.ndarray:
    """The numbers, float64; ``ValueError`` if they aren't numbers."""
    try:
        return np.asarray(value, np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be {expected}, but it is {checks.shown(value)}.") from None


def _matrix(affinity: Any) -> np.ndarray:
    """The affinities, float64; ``ValueError`` unless they are square and finite."""
    matrix = _numbers("affinity", "a matrix of numbers, [N, N]", affinity)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.size:
        raise ValueError(
            "affinity must be square, [N, N], a row for each affected task, but its shape is "
            f"{matrix.shape}."
        )
    wrong = np.argwhere(~np.isfinite(matrix) & ~np.eye(len(matrix), dtype=bool))
    if len(wrong):
        i, j = wrong[0]
        raise ValueError(
            f"affinity must be finite, but that of task {i} for training with task {j}, "
            f"affinity[{i}, {j}], is {matrix[i, j]}. Measure it anew, or leave one of them out."
        )
    return matrix


def _alone(alone: Any, tasks: int) -> np.ndarray:
    """[N], what each task scores alone, -inf where it may not be."""
    expected = f"None, or one finite number or {tasks}, one for each task"
    if alone is None:
        if tasks == 1:
            checks.require(False, "alone", "a number, since there is but one task", alone)
        return np.full(tasks, -np.inf)
    alone_N = _numbers("alone", expected, alone)
    fits = alone_N.shape in ((), (tasks,)) and np.isfinite(alone_N).all()
    checks.require(fits, "alone", expected, alone)
    return np.broadcast_to(alone_N, tasks)


def _measured(values: Any) -> np.ndarray:
    """[G, N], what each group gives each task, -inf for those that aren't in it."""
    is_mapping = isinstance(values, Mapping) and len(values)
    checks.require(is_mapping, "values", "a dictionary such as {(0, 2): (0.1, -0.3)}", values)
    rows: dict[tuple[int, ...], np.ndarray] = {}
    for group, given in values.items():
        is_group = isinstance(group, tuple) and group
        checks.require(is_group, "A group of values", "a tuple of task indices", group)
        for task in group:
            checks.integer(f"A task of the group {group}", task, low=0)
        once = len(set(group)) == len(group)
        checks.require(once, "A group of values", "tasks that are all different", group)
        if tuple(sorted(group)) in rows:
            raise ValueError(
                f"values must have each group once, but it has the tasks {group} twice, in "
                "different orders."
            )
        expected = f"{len(group)} finite numbers, one for each of its tasks"
        row = _numbers(f"values[{group}]", expected, given)
        fits = row.shape == (len(group),) and np.isfinite(row).all()
        checks.require(fits, f"values[{group}]", expected, given)
        rows[tuple(sorted(group))] = row[np.argsort(group)]
    known = set().union(*rows)
    tasks = next(task for task in range(len(known) + 1) if task not in known)
    if tasks < len(known):
        raise ValueError(
            f"values must have a group with each task from 0 to {max(known)}, but none has task "
            f"{tasks}."
        )
    table = np.full((len(rows), tasks), -np.inf)
    for gives, (group, row) in zip(table, rows.items(), strict=True):
        gives[list(group)] = row
    return table


def _members(masks: Any, tasks: int) -> np.ndarray:
    """[G, N], whether each task is in each group, from integers with a bit for each task."""
    return (np.asarray(masks, np.int64)[:, None] >> np.arange(tasks) & 1).astype(bool)


def _values(groups: np.ndarray, affinity_NxN: np.ndarray, alone_N: np.ndarray) -> np.ndarray:
    """[G, N], what each group gives each task by the affinities, -inf for those outside it."""
    others = np.where(np.eye(len(affinity_NxN), dtype=bool), 0.0, affinity_NxN)
    size = groups.sum(axis=1, keepdims=True)
    means = groups @ others.T / np.maximum(size - 1, 1)
    return np.where(groups, np.where(size == 1, alone_N, means), -np.inf)


def _selection(groups: np.ndarray, values: np.ndarray, *, exact: bool) -> Selection:
    """The selection of these groups, [G, N], without those that serve no task."""
    used = np.unique(values.argmax(axis=0))
    members = [tuple(map(int, np.flatnonzero(groups[g]))) for g in used]
    order = sorted(range(len(used)), key=members.__getitem__)
    values = values[used[order]]
    best = values.max(axis=0)
    return Selection(
        groups=tuple(members[g] for g in order),
        score=float(best.mean()),
        values=tuple(map(float, best)),
        serves=tuple(map(int, values.argmax(axis=0))),
        exact=exact,
    )


def _subsets(bits: list[int]) -> np.ndarray:
    """All sums of some of the bits: the sets of some of the tasks, the empty one first."""
    sets = np.zeros(1, np.int64)
    for bit in bits:
        sets = np.concatenate([sets, sets + bit])
    return sets


def _best_groups(table: np.ndarray, most: int) -> list[int]:
    """At most so many groups that give the tasks most in all; none if they can't be covered.

    Args:
      table: [2^N, N], what each group gives each task, -inf for those that aren't in it.
      most: k.
    """
    tasks = table.shape[1]
    bits = [1 << i for i in range(tasks)]
    finite = np.isfinite(table)
    spread = np.abs(table[finite & (table != 0)])
    # More than rounding, and far less than what anyone measures.
    per_task = 1e-12 * np.median(spread) if spread.size else 1e-12
    block = np.full(2**tasks, -np.inf)  # f
    source = np.zeros(2**tasks, np.int64)  # its G
    for group in np.flatnonzero(finite.any(axis=1)):
        members = [i for i in range(tasks) if finite[group, i]]
        sums = np.array([-per_task * len(members)])
        for i in members:
            sums = np.concatenate([sums, sums + table[group, i]])
        sets = _subsets([bits[i] for i in members])
        better = sums > block[sets]
        block[sets[better]] = sums[better]
        source[sets[better]] = group
    # [k + 1, 2^N]: the most that at most so many blocks give a set, and that block of them which
    # has the set's first task.
    total = np.full((most + 1, 2**tasks), -np.inf)
    total[:, 0] = 0.0
    first = np.zeros((most + 1, 2**tasks), np.int64)
    for tasks_left in range(1, 2**tasks):
        lowest = tasks_left & -tasks_left
        sets = lowest + _subsets([bit for bit in bits if bit & (tasks_left - lowest)])
        sums = block[sets] + total[:-1, tasks_left - sets]
        best = sums.argmax(axis=1)
        total[1:, tasks_left] = sums[np.arange(most), best]
        first[1:, tasks_left] = sets[best]
    left, chosen = 2**tasks - 1, []
    if np.isneginf(total[most, left]):
        return []
    while left:
        part = first[most, left]
        chosen.append(int(source[part]))
        most, left = most - 1, left - part
    return sorted(set(chosen))


def _by_program(values: np.ndarray, most: int) -> np.ndarray:
    """Indices of the best groups, by an integer programme; none if they can't cover the tasks."""
    # As in gain.py, imported where it is needed.
    from scipy import optimize, sparse

    groups, tasks = values.shape
    group, task = np.nonzero(np.isfinite(values))
    gives = values[group, task]
    # milp's tolerances are absolute.
    gives = gives / max(np.abs(gives).max(), np.finfo(float).tiny)
    pairs = np.arange(len(group))
    shape = (len(pairs), len(pairs) + groups)
    ones = np.ones(len(pairs))
    # For each pair whether the group serves the task, then for each group whether it is chosen.
    serving = sparse.csr_array((ones, (task, pairs)), shape=(tasks, shape[1]))
    unchosen = sparse.csr_array((ones, (pairs, pairs)), shape=shape) - sparse.csr_array(
        (ones, (pairs, len(pairs) + group)), shape=shape
    )
    is_group = np.arange(shape[1]) >= len(pairs)
    result = optimize.milp(
        np.concatenate([-gives, np.zeros(groups)]),
        integrality=is_group,
        bounds=optimize.Bounds(0, 1),
        constraints=[
            optimize.LinearConstraint(serving, 1, 1),
            optimize.LinearConstraint(unchosen, -np.inf, 0),
            optimize.LinearConstraint(is_group[None].astype(float), 0, most),
        ],
        options={"mip_rel_gap": 0},
    )
    return np.flatnonzero(result.x[len(pairs) :] > 0.5) if result.success else np.zeros(0, np.int64)


def _best_means(blocks: np.ndarray, pull: np.ndarray, alone_N: np.ndarray) -> np.ndarray:
    """[B, N], what each block has of a group that is itself and its best 0, 1, 2, ... helpers.

    Args:
      blocks: [B, N], whether each task is in the block S.
      pull: [B, N], Σ_{i∈S} Z[i, j], with zeros on the diagonal of Z.
      alone_N: what each task scores alone.
    """
    size = blocks.sum(axis=1)
    helpers = -np.sort(np.where(blocks, np.inf, -pull), axis=1)
    inner = np.where(blocks, pull, 0.0).sum(axis=1)
    sums = np.concatenate([inner[:, None], helpers[:, :-1]], axis=1).cumsum(axis=1)
    means = sums / np.maximum(size[:, None] - 1 + np.arange(sums.shape[1]), 1)
    means[:, 0] = np.where(size == 1, alone_N[blocks.argmax(axis=1)], means[:, 0])
    means[size == 0] = 0.0
    return means


def _climb(
    block_N: np.ndarray, most: int, affinity_NxN: np.ndarray, alone_N: np.ndarray
) -> tuple[float, np.ndarray]:
    """Moves one task at a time to another block, the one that gains most, until none gains.

    Args:
      block_N: the block of each task, from 0 to k - 1.
      most: k.
      affinity_NxN: with zeros on the diagonal.
      alone_N: what each task scores alone.

    Returns:
      Σ f, and the block of each task.
    """
    block_N = block_N.copy()
    tasks = np.arange(len(block_N))
    one = np.eye(len(tasks), dtype=bool)
    blocks = block_N == np.arange(most)[:, None]
    score = _best_means(blocks, blocks @ affinity_NxN, alone_N).max(axis=1)
    # [k, N], f of each block with each task put in or, if it is there, taken out.
    changed = np.zeros((most, len(tasks)))
    stale = list(range(most))
    least = 1e-12 * np.abs(affinity_NxN).sum()
    while True:
        members = blocks[stale]
        pull = (members @ affinity_NxN)[:, None] + np.where(
            members[..., None], -affinity_NxN, affinity_NxN
        )
        flipped = members[:, None] ^ one
        means = _best_means(flipped.reshape(-1, len(tasks)), pull.reshape(-1, len(tasks)), alone_N)
        changed[stale] = means.max(axis=1).reshape(len(stale), -1)
        gain = changed - score[:, None]
        gain = gain + gain[block_N, tasks]
        gain[block_N, tasks] = 0.0
        to, task = np.unravel_index(gain.argmax(), gain.shape)
        if gain[to, task] <= least:
            return float(score.sum()), block_N
        stale = [int(block_N[task]), int(to)]
        score[stale] = changed[stale, task]
        blocks[stale, task] ^= True
        block_N[task] = to


def _search(affinity_NxN: np.ndarray, alone_N: np.ndarray, most: int) -> np.ndarray:
    """[G, N], the groups of the best of many local searches, each from the best disturbed."""
    draws = np.random.default_rng(0)
    tasks = len(affinity_NxN)
    best, block_N = _climb(np.zeros(tasks, int), most, affinity_NxN, alone_N)
    for _ in range(_KICKS):
        start = block_N.copy()
        some = draws.choice(tasks, max(2, tasks // 2), replace=False)
        start[some] = draws.integers(most, size=len(some))
        total, climbed = _climb(start, most, affinity_NxN, alone_N)
        if total >= best:
            best, block_N = total, climbed
    groups = block_N == np.arange(most)[:, None]
    groups = groups[groups.any(axis=1)]
    pull = groups @ affinity_NxN
    helpers = _best_means(groups, pull, alone_N).argmax(axis=1)
    order = np.argsort(np.where(groups, np.inf, -pull), axis=1, kind="stable")
    for group, count, ordered in zip(groups, helpers, order, strict=True):
        group[ordered[:count]] = True
    return groups

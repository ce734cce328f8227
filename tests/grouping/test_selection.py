"""The groups that are chosen, beside all choices one by one, and published tables."""

import csv
import itertools
import pathlib

import numpy as np
import pytest

from ldro_jax import grouping

# The published tables, where someone has put them beside the repository.
PUBLISHED = pathlib.Path(__file__).parents[2].parent / "shared/data/tag"


def _value(affinity, alone, group, task):
    """What a group gives its member, None if it may not be."""
    others = [affinity[task][other] for other in group if other != task]
    if others:
        return sum(others) / len(others)
    return None if alone is None else alone[task]


def _measured(affinity, alone=None, groups=None):
    """What each group gives its members, of all groups or of these."""
    tasks = range(len(affinity))
    if groups is None:
        groups = [g for n in range(1, len(tasks) + 1) for g in itertools.combinations(tasks, n)]
    found = {group: [_value(affinity, alone, group, task) for task in group] for group in groups}
    return {group: values for group, values in found.items() if None not in values}


def _best(measured, tasks, most):
    """The score of the best choice, and the fewest tasks of those with it: all, one by one."""
    gives = [dict(zip(group, values, strict=True)) for group, values in measured.items()]
    found = []
    for count in range(1, most + 1):
        for choice in itertools.combinations(gives, count):
            best = [max((g[i] for g in choice if i in g), default=None) for i in range(tasks)]
            if None not in best:
                found.append((sum(best) / tasks, sum(map(len, choice))))
    score = max(score for score, _ in found)
    return score, min(size for each, size in found if each > score - 1e-12)


def _is_what_it_says(selection, measured, tasks, most):
    """That the values of a selection are those of its groups."""
    assert 1 <= len(selection.groups) <= most
    assert list(selection.groups) == sorted(set(selection.groups))
    gives = [dict(zip(g, measured[g], strict=True)) for g in selection.groups]
    for task in range(tasks):
        value = max(each[task] for each in gives if task in each)
        assert selection.values[task] == pytest.approx(value, abs=1e-12)
        assert gives[selection.serves[task]][task] == pytest.approx(value, abs=1e-12)
    assert selection.score == pytest.approx(np.mean(selection.values), abs=1e-12)
    assert set(selection.serves) == set(range(len(selection.groups)))


def _tasks_in_all(selection):
    return sum(map(len, selection.groups))


def _matrices(kind, count, tasks):
    for seed in range(count):
        draws = np.random.default_rng([seed, tasks])
        if kind == "normal":
            yield draws.normal(size=(tasks, tasks))
        elif kind == "negative":
            yield -100 * draws.uniform(size=(tasks, tasks))
        elif kind == "integers":  # whose choices often tie
            yield draws.integers(-1, 2, size=(tasks, tasks)).astype(float)
        else:
            block = draws.integers(3, size=tasks)
            noise = 0.5 * draws.normal(size=(tasks, tasks))
            yield noise + (block[:, None] == block)


@pytest.mark.parametrize("kind", ["normal", "negative", "integers"])
@pytest.mark.parametrize("with_alone", [False, True])
def test_it_is_the_best_of_all_choices(kind, with_alone):
    for tasks, count in ((2, 3), (3, 8), (4, 6), (5, 1)):
        for affinity in _matrices(kind, count, tasks):
            alone = affinity.mean(axis=1) if with_alone else None
            measured = _measured(affinity, alone)
            for most in range(1, min(tasks, 3) + 1):
                score, fewest = _best(measured, tasks, most)
                found = grouping.select(affinity, most, alone=alone)
                _is_what_it_says(found, measured, tasks, most)
                assert found.exact
                assert found.score == pytest.approx(score, abs=1e-12)
                assert _tasks_in_all(found) == fewest
            if tasks < 4:
                continue
            # With as many groups as the last of these.
            searched = grouping.select(affinity, most, alone=alone, method="heuristic")
            _is_what_it_says(searched, measured, tasks, most)
            assert searched.score == pytest.approx(score, abs=1e-12)


# More than 16 tasks go the way of the integer programme.
@pytest.mark.parametrize(("tasks", "count", "largest"), [(5, 12, 4), (18, 20, 12)])
def test_of_measured_groups_it_is_the_best_choice(tasks, count, largest):
    draws = np.random.default_rng(tasks)
    for scale in (1e-8, 1e-4, 1.0, 1e4):
        measured = {tuple(range(tasks)): (scale * draws.normal(size=tasks)).tolist()}
        while len(measured) < count:
            # In any order.
            group = tuple(draws.permutation(tasks)[: draws.integers(1, largest + 1)].tolist())
            if set(group) not in map(set, measured):
                measured[group] = (scale * draws.normal(size=len(group))).tolist()
        ordered = {
            tuple(sorted(group)): [value for _, value in sorted(zip(group, values, strict=True))]
            for group, values in measured.items()
        }
        for most in (1, 3):
            found = grouping.select_groups(measured, most)
            _is_what_it_says(found, ordered, tasks, most)
            assert found.exact
            # To the accuracy of the integer programme.
            score, _ = _best(measured, tasks, most)
            assert found.score == pytest.approx(score, rel=0, abs=1e-6 * scale)


def test_all_groups_measured_are_selected_like_their_affinities():
    (affinity,) = _matrices("blocks", 1, 8)
    of_pairs = grouping.select(affinity, 3)
    of_groups = grouping.select_groups(_measured(affinity), 3)
    assert of_groups.groups == of_pairs.groups
    assert of_groups.score == pytest.approx(of_pairs.score, abs=1e-12)


def _share_lost(affinity, most, alone=None):
    """Of what the best choice gains over one group of all, the share that the heuristic misses."""
    best = grouping.select(affinity, most, alone=alone, method="exact")
    found = grouping.select(affinity, most, alone=alone, method="heuristic")
    measured = _measured(affinity, alone, found.groups)
    _is_what_it_says(found, measured, len(affinity), most)
    assert best.exact and not found.exact
    return (best.score - found.score) / (best.score - grouping.select(affinity, 1).score)


@pytest.mark.parametrize("kind", ["normal", "blocks", "negative"])
def test_the_heuristic_misses_little(kind):
    for affinity in _matrices(kind, 3, 10):
        for most in (2, 4):
            # No rounding makes it better than the best.
            assert -1e-9 < _share_lost(affinity, most) < 0.02


def test_the_heuristic_finds_the_blocks_of_many_tasks():
    draws = np.random.default_rng(0)
    block = draws.permutation(np.arange(48) % 6)
    noise = 0.1 * draws.uniform(size=(48, 48))
    affinity = np.where(block[:, None] == block, 1.0, noise)
    found = grouping.select(affinity, 6)
    assert found == grouping.select(affinity, 6)
    # No group gives a task more than its largest affinity.
    assert found.score == pytest.approx(1.0) and not found.exact
    # The rest of its block, or some of it.
    assert all(len(set(block[list(group)])) == 1 for group in found.groups)


@pytest.mark.parametrize("method", ["exact", "heuristic"])
def test_a_constant_added_to_a_row_changes_no_choice(method):
    constant = 1e12 * np.array([1, -7, 0.5, 2, 9, -8, 3])
    # Of integers no digit is lost, so that choices that tie go on to tie.
    for affinity in (*_matrices("integers", 2, 7), *_matrices("negative", 2, 7)):
        affinity = np.round(affinity)
        alone = affinity.max(axis=1) - 1
        plain = grouping.select(affinity, 3, alone=alone, method=method)
        moved = grouping.select(
            affinity + constant[:, None], 3, alone=alone + constant, method=method
        )
        assert moved.groups == plain.groups and moved.serves == plain.serves
        assert moved.score == pytest.approx(plain.score + constant.mean())


def test_the_diagonal_is_ignored():
    (affinity,) = _matrices("normal", 1, 6)
    plain = grouping.select(affinity, 2)
    np.fill_diagonal(affinity, np.nan)
    assert grouping.select(affinity, 2) == plain


def test_who_is_better_alone_stays_alone():
    affinity = [[0, -1, -1], [2, 0, 1], [2, 1, 0]]
    found = grouping.select(affinity, 3, alone=[0.5, 0, 0])
    # The first task helps both others, which it doesn't like.
    assert found.groups == ((0,), (0, 1), (0, 2))
    assert found.values == (0.5, 2.0, 2.0) and found.serves == (0, 1, 2)
    assert grouping.select([[7]], 1, alone=3).groups == ((0,),)
    assert grouping.select(affinity, 3, alone=5).score == 5


@pytest.fixture(scope="module")
def published():
    """The affinities and the best scores of each table."""
    if not PUBLISHED.is_dir():
        pytest.skip(f"no published affinities in {PUBLISHED}")

    def rows(name):
        lines = (PUBLISHED / name).read_text(encoding="utf-8").splitlines()
        kept = (line for line in lines if not line.startswith("#"))
        return list(csv.DictReader(kept, delimiter="\t"))

    pairs, best = {}, {}
    for row in rows("pairwise.tsv"):
        pair = row["affected_task"], row["other_task"]
        pairs.setdefault(row["table"], {})[pair] = float(row["value"])
    for row in rows("selections.tsv"):
        choice = row["one_optimal_choice_with_fewest_tasks_in_all"]
        # Names are between the commas and the semicolons.
        size = 1 + choice.count(",") + choice.count(";")
        best[row["table"], int(row["models"])] = float(row["score_mean_over_tasks"]), size
    tables = {}
    for name, values in pairs.items():
        tasks = list(dict.fromkeys(affected for affected, _ in values))
        tables[name] = np.array([[values[i, j] for j in tasks] for i in tasks])
    return tables, best


@pytest.mark.parametrize("table", ["tag", "cosine", "hoa"])
@pytest.mark.parametrize("data", ["taskonomy", "celeba"])
def test_the_published_tables(published, data, table):
    tables, best = published
    name = {"taskonomyhoa": "taskonomy_hoa_loss", "celebahoa": "celeba_hoa_accuracy"}.get(
        data + table, f"{data}_{table}"
    )
    affinity, alone, sign = tables[name], None, 1
    if table == "hoa":
        # Their scores are losses and errors, 100 - accuracy.
        affinity = -affinity if data == "taskonomy" else affinity - 100
        alone, sign = affinity.diagonal(), -1
    for most in (2, 3, 4):
        score, size = best[name, most]
        found = grouping.select(affinity, most, alone=alone)
        # They are printed to 8 places.
        assert sign * found.score == pytest.approx(score, abs=1e-8)
        assert _tasks_in_all(found) == size
        assert _share_lost(affinity, most, alone) < 0.02


def test_the_affected_task_is_in_the_row(published):
    tables, best = published
    for most in (2, 3, 4):
        transposed = grouping.select(tables["celeba_tag"].T, most).score
        assert abs(transposed - best["celeba_tag", most][0]) > 1


_PAIR = [[0.0, 1.0], [1.0, 0.0]]


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (([[0, 1, 2], [3, 4, 5]], 1), {}, r"affinity must be square, .* shape is \(2, 3\)\."),
        (([1.0, 2.0], 1), {}, r"affinity must be square, .* shape is \(2,\)\."),
        (([], 1), {}, r"affinity must be square, .* shape is \(0,\)\."),
        (([[0, 1], [2]], 1), {}, r"affinity must be a matrix of numbers, \[N, N\], .* \[2\]\]"),
        (([["a", "b"]] * 2, 1), {}, "affinity must be a matrix of numbers"),
        (
            ([[0, np.nan], [1, 0]], 1),
            {},
            r"that of task 0 for training with task 1, affinity\[0, 1\], is nan\.",
        ),
        (([[0, 1], [-np.inf, 0]], 1), {}, r"affinity\[1, 0\], is -inf\."),
        ((_PAIR, 0), {}, "max_groups must be an integer from 1 to 2, but it is 0"),
        ((_PAIR, 3), {}, "max_groups must be an integer from 1 to 2, but it is 3"),
        ((_PAIR, 1.0), {}, r"max_groups must be .* 1\.0"),
        ((_PAIR, 1), {"method": "best"}, "method must be one of 'auto', 'exact', 'heuristic', but"),
        ((np.zeros((17, 17)), 2), {"method": "exact"}, "method must be 'heuristic' .* has 17"),
        ((_PAIR, 1), {"alone": [0.0]}, r"alone must be None, .* 2, one for each task.* \[0\.0\]"),
        ((_PAIR, 1), {"alone": [0.0, np.nan]}, "alone must be .* nan"),
        ((_PAIR, 1), {"alone": "never"}, "alone must be .* 'never'"),
        (([[0.0]], 1), {}, "alone must be a number, since there is but one task, .* None"),
    ],
)
def test_bad_affinities_are_said(arguments, options, message):
    with pytest.raises(ValueError, match=message) as error:
        grouping.select(*arguments, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "most", "message"),
    [
        ({}, 1, "values must be a dictionary such as"),
        ([(0, 1)], 1, "values must be a dictionary such as"),
        ({0: (1.0,)}, 1, "A group of values must be a tuple of task indices, but it is 0"),
        ({(): ()}, 1, "A group of values must be a tuple of task indices"),
        ({(0, -1): (1.0, 1.0)}, 1, r"A task of the group \(0, -1\) must be .* least 0, .* -1"),
        ({(0, 0.5): (1.0, 1.0)}, 1, "A task of the group .* 0.5"),
        ({(0, 1, 0): (1.0, 1.0, 1.0)}, 1, r"tasks that are all different, but it is \(0, 1, 0\)"),
        ({(0, 1): (1, 1), (1, 0): (1, 1)}, 1, r"has the tasks \(1, 0\) twice"),
        ({(0, 1): (1.0,)}, 1, r"values\[\(0, 1\)\] must be 2 finite numbers, .* \(1\.0,\)"),
        ({(0, 1): (1.0, np.nan)}, 1, r"values\[\(0, 1\)\] must be 2 finite numbers, .* nan"),
        ({(0, 1): ("a", "b")}, 1, r"values\[\(0, 1\)\] must be 2 finite numbers, .* \('a', 'b'\)"),
        ({(0, 10**12): (1.0, 1.0)}, 1, "each task from 0 to 1000000000000, but none has task 1"),
        ({(0, 1): (1.0, 1.0)}, 3, "max_groups must be an integer from 1 to 2, but it is 3"),
        ({(0, 1): (1, 1), (2,): (1,)}, 1, "cover all 3 tasks, but no 1 do"),
        ({tuple(range(17)): [0] * 17, (17,): [0]}, 1, "cover all 18 tasks, but no 1 do"),
    ],
)
def test_bad_measurements_are_said(values, most, message):
    with pytest.raises(ValueError, match=message) as error:
        grouping.select_groups(values, most)
    assert "\n" not in str(error.value)

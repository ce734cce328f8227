"""Gains, predictions and their agreement, against numbers by hand, SciPy and scikit-learn."""

import itertools

import numpy as np
import pytest
from scipy import stats
from sklearn import linear_model

from ldro_jax import grouping
from ldro_jax.grouping import gain


def test_gains_are_relative_to_a_model_alone():
    losses = {(0,): [2.0], (1,): [4.0], (2,): [1.0], (0, 1): [1.0, 5.0], (0, 1, 2): [2.0, 4.0, 0.5]}
    found = grouping.gains(losses)
    assert found.keys() == {(0, 1), (0, 1, 2)}
    np.testing.assert_allclose(found[0, 1], [0.5, -0.25])
    np.testing.assert_allclose(found[0, 1, 2], [0, 0, 0.5])
    # Of a loss below zero by the share of its size; of none that is zero.
    found = grouping.gains({(0,): [-2.0], (1,): [0.0], (0, 1): [-3.0, 1.0]})[0, 1]
    assert found[0] == 0.5 and np.isnan(found[1])


def test_pairs_are_an_affinity_with_the_affected_task_in_the_row():
    measured = {(0, 1): [0.1, 0.2], (0, 2): [0.3, 0.4], (1, 2): [0.5, 0.6], (0, 1, 2): [9, 9, 9]}
    found = grouping.of_pairs(measured, 3)
    np.testing.assert_allclose(found, [[0, 0.1, 0.3], [0.2, 0, 0.5], [0.4, 0.6, 0]])
    predicted = grouping.predicted(found, [(0, 2), (0, 1, 2), (1,)])
    np.testing.assert_allclose(predicted[0, 2], [0.3, 0.4])
    np.testing.assert_allclose(predicted[0, 1, 2], [0.2, 0.35, 0.5])
    assert (1,) not in predicted


def made_up(seed=0, num_tasks=5, noise=0.0):
    rng = np.random.default_rng(seed)
    affinity = rng.normal(size=(num_tasks, num_tasks))
    groups = list(gain.every_group(num_tasks))
    exact = grouping.predicted(affinity, groups)
    return affinity, {g: 0.3 * v - 0.1 + noise * rng.normal(size=len(g)) for g, v in exact.items()}


def test_agreement_is_that_of_scipy():
    affinity, measured = made_up(noise=0.2)
    predicted = grouping.predicted(affinity, measured)
    found = grouping.agreement(predicted, measured)
    x, y = (np.concatenate([table[g] for g in measured]) for table in (predicted, measured))
    tasks = np.concatenate(list(measured))
    assert found.count == len(x)
    np.testing.assert_allclose(found.pearson, stats.pearsonr(x, y)[0])
    np.testing.assert_allclose(found.spearman, stats.spearmanr(x, y)[0])
    own = [stats.spearmanr(x[tasks == t], y[tasks == t])[0] for t in range(5)]
    np.testing.assert_allclose(found.within, np.mean(own))
    assert np.isnan(grouping.agreement({}, measured).pearson)


def test_reliability_is_the_correlation_of_two_halves():
    rng = np.random.default_rng(1)
    one, other = ({(0, 1): rng.normal(size=2), (1, 2): rng.normal(size=2)} for _ in range(2))
    x, y = (np.concatenate([half[0, 1], half[1, 2]]) for half in (one, other))
    # A group that one half lacks, and a gain that isn't finite, don't count.
    one |= {(0, 2): np.ones(2), (0, 1, 2): np.array([1, np.nan, 2])}
    other |= {(0, 1, 2): np.array([5.0, 1.0, 3.0])}
    expected = np.corrcoef([*x, 1, 2], [*y, 5, 3])[0, 1]
    np.testing.assert_allclose(grouping.reliability(one, other), expected)
    assert np.isnan(grouping.reliability({}, other))


def test_a_prediction_without_error_correlates_by_the_root_of_the_reliability():
    """By simulation: true gains against the mean of noisy seeds."""
    rng = np.random.default_rng(2)
    true = rng.normal(size=4000)
    noisy = [true + rng.normal(size=4000) for _ in range(6)]
    one, other = (
        {(i, i + 1): np.mean(half, axis=0)[i : i + 2] for i in range(0, 4000, 2)}
        for half in (noisy[::2], noisy[1::2])
    )
    best = np.corrcoef(true, np.mean(noisy[1::2], axis=0))[0, 1]
    np.testing.assert_allclose(np.sqrt(grouping.reliability(one, other)), best, atol=0.02)


def test_a_regression_learns_what_an_affinity_says():
    affinity, measured = made_up()
    some = dict(itertools.islice(measured.items(), 12))
    found = grouping.fitted(affinity, some, measured)
    assert found.keys() == measured.keys()
    error = np.concatenate([found[g] - measured[g] for g in measured])
    assert np.abs(error).max() < 0.02
    # What is added for two tasks whenever they are together is learnt from groups alone.
    special = {
        g: v + [2.0 * ({t, 1 - t} <= set(g)) / (len(g) - 1) for t in g] for g, v in measured.items()
    }
    found = grouping.fitted(affinity, special, special)
    error = np.concatenate([found[g] - special[g] for g in special])
    assert np.abs(error).max() < 0.1


def test_a_group_that_is_left_out_is_missed_as_if_it_were(monkeypatch):
    """The choice of penalties, against scikit-learn fitted once more without each group."""
    affinity, measured = made_up(noise=0.3)
    some = dict(itertools.islice(measured.items(), 8))
    columns = gain._Columns(affinity)
    x, y = columns.of(some), np.concatenate(list(some.values()))
    owner = np.repeat(np.arange(len(some)), [len(g) for g in some])

    def error(penalties):
        scale = 1 / np.sqrt(columns.penalty(*penalties))
        missed = []
        for group in range(len(some)):
            model = linear_model.Ridge(alpha=1.0, fit_intercept=False, solver="svd")
            model.fit((x * scale)[owner != group], y[owner != group])
            missed.append(y[owner == group] - model.predict((x * scale)[owner == group]))
        return np.mean(np.concatenate(missed) ** 2)

    best = min(itertools.product(gain._PENALTIES, repeat=2), key=error)
    model = linear_model.Ridge(alpha=1.0, fit_intercept=False, solver="svd")
    scale = 1 / np.sqrt(columns.penalty(*best))
    expected = columns.of(measured) * scale @ model.fit(x * scale, y).coef_
    found = np.concatenate(list(grouping.fitted(affinity, some, measured).values()))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "wrong, said",
    [
        (lambda: grouping.gains({(0,): [1.0], (0, 1): [1.0, 1.0]}), r"alone, but .*none for \[1\]"),
        (lambda: grouping.gains({(0,): [1.0, 2.0]}), r"a loss for each member of the group \(0,\)"),
        (lambda: grouping.of_pairs({(0, 1): [0.0, 0.0]}, 3), r"the gains of the pair \(0, 2\)"),
        (lambda: grouping.fitted(np.eye(3), {(0, 1): [0.0, 0.0]}, []), "gains of 5 groups or more"),
        (
            lambda: grouping.fitted(np.full((5, 5), np.nan), made_up()[1], []),
            "affinity and measured must be finite",
        ),
    ],
)
def test_bad_input_is_one_line(wrong, said):
    with pytest.raises(ValueError, match=said) as error:
        wrong()
    assert "\n" not in str(error.value)


def test_small_groups_of_many_tasks_are_listed_without_the_others():
    # All groups of 64 tasks would never end.
    assert len(list(gain.every_group(64, 1, 2))) == 64 + 64 * 63 // 2
    assert len(list(gain.every_group(4))) == 11

"""Means, Student's intervals and the rule for a clear difference, against SciPy's."""

import math

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from ldro_jax.reporting import statistics
from ldro_jax.reporting.statistics import Difference, decimals_for, number


@pytest.mark.parametrize("n", [2, 3, 5, 31, 200])
def test_the_interval_is_students(n):
    values = np.random.default_rng(n).normal(size=n)
    found = statistics.interval(values)
    low, high = scipy.stats.t.interval(0.95, n - 1, values.mean(), scipy.stats.sem(values))
    np.testing.assert_allclose(
        [found.mean - found.half_width, found.mean + found.half_width], [low, high], rtol=1e-9
    )


@pytest.mark.parametrize("shift", [0.0, 0.5, 1.0, 2.0])
def test_clear_is_what_the_paired_t_test_calls_significant(shift):
    rng = np.random.default_rng(0)
    for _ in range(50):
        ours, theirs = pd.Series(rng.normal(shift, 1, 6)), pd.Series(rng.normal(0, 1, 6))
        p = scipy.stats.ttest_rel(ours, theirs).pvalue
        assert statistics.difference(ours, theirs).clear == (p < 0.05)


def test_a_difference_is_paired_over_common_seeds():
    ours, theirs = pd.Series({0: 0.5, 1: 0.7, 2: 0.6, 9: 0.0}), pd.Series({2: 0.5, 0: 0.4, 1: 0.6})
    found = statistics.difference(ours, theirs)
    assert found.n == 3 and found.mean == pytest.approx(0.1) and found.clear
    nothing = statistics.difference(ours[[9]], theirs)
    assert math.isnan(nothing.mean) and nothing.n == 0
    assert nothing.verdict(True) == "n/a"


@pytest.mark.parametrize("seeds", [1, 2])
def test_fewer_than_three_seeds_are_never_clear(seeds):
    found = statistics.interval([0.7] * seeds)
    assert found.mean == pytest.approx(0.7) and not found.clear
    assert found.verdict(True) == "not separated"


@pytest.mark.parametrize(
    "mean, half_width, clear",
    [(0.0, 0.0, False), (0.1, 0.1, False), (0.11, 0.1, True), (-0.11, 0.1, True)],
)
def test_clear_means_zero_is_outside(mean, half_width, clear):
    found = Difference(mean, half_width, 3)
    assert found.clear is clear and not Difference(math.nan, half_width, 3).clear
    if clear:
        assert found.verdict(mean > 0) == "better" and found.verdict(mean < 0) == "worse"


def test_mean_and_sample_standard_deviation():
    found = statistics.spread([1.0, 2.0, 3.0])
    assert (found.mean, found.std, found.n) == (2.0, 1.0, 3)
    one = statistics.spread([5.0])
    assert one.mean == 5.0 and math.isnan(one.std) and one.n == 1
    for missing in ([], [1.0, np.nan], [np.inf]):
        assert math.isnan(statistics.spread(missing).mean)


def test_methods_are_sorted_by_verdict():
    found = {
        name: Difference(mean, 0.1, 3) for name, mean in zip("abcd", (1, -1, 0, 2), strict=True)
    }
    found["e"] = Difference(math.nan, math.nan, 0)
    assert statistics.sorted_out(found, True) == (
        "clearly better: a, d; clearly worse: b; not separated: c; cannot be compared: e"
    )
    assert statistics.sorted_out(found, False).startswith("clearly better: b; clearly worse: a, d")
    same = dict.fromkeys("abcd", Difference(0.0, 0.1, 3))
    assert statistics.sorted_out(same, True) == "not separated: all 4"


def test_values_that_read_the_same_are_equally_good():
    assert statistics.best_places([0.25, 0.2500001, 0.1], True, 3) == [0, 1]
    assert statistics.best_places([0.25, 0.251, math.nan], False, 3) == [0]
    assert statistics.best_places([0.25, math.nan], True, 3) == []


@pytest.mark.parametrize(
    "values, decimals",
    [([0.91, 0.2], 3), ([5.0], 3), ([23.4], 2), ([234.0], 1), ([2345.0], 0), ([0.012], 4), ([], 3)],
)
def test_precision_follows_the_largest_value(values, decimals):
    assert decimals_for(values) == decimals


def test_numbers_as_text():
    assert number(0.1234) == "0.123" and number(-0.1234, 2) == "−0.12"
    assert number(0.1234, 2, signed=True) == "+0.12"
    assert number(-0.0001, 2, signed=True) == "0.00"
    assert [number(v) for v in (None, float("nan"), float("inf"))] == ["n/a"] * 3

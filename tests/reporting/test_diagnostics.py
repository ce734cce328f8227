"""The table that says how the tasks got along."""

import dataclasses

import numpy as np
import pytest

from ldro_jax.records.results import Series
from ldro_jax.reporting import comparison, diagnostics

STEPS = np.arange(10, 80, 10)


def falling(made_up, seed, *, order=1.0, measured=True):
    """A run whose losses fall as it says, or in the opposite order of the tasks."""
    rates = np.array([1.0, 2.0, 4.0]) * np.exp(-STEPS / 50)[:, None]
    # The mean of a stretch lies half a stretch before its end.
    sums = 10 * np.cumsum(rates, axis=0)
    losses = 100 - (sums - 5 * rates) * (1 if order > 0 else np.array([4.0, 1.0, 0.2]))
    run = made_up.run("L-DRO", seed, [0.5, 0.6, 0.7])
    numbers = np.tile([0.25, 0.5, np.nan, 2.0], (len(STEPS), 1))
    return dataclasses.replace(
        run,
        losses=Series(STEPS, losses),
        descent=Series(STEPS, sums) if measured else None,
        diagnostics=Series(STEPS, numbers if measured else numbers * np.nan),
    )


@pytest.mark.parametrize(("order", "low", "high"), [(1.0, 0.99, 1.0), (-1.0, -1.0, 0.0)])
def test_a_lookahead_that_sees_what_happens_ranks_the_falls(made_up, order, low, high):
    assert low <= diagnostics.predicted(falling(made_up, 0, order=order)) <= high


def test_what_was_not_measured_has_no_correlation(made_up):
    assert np.isnan(diagnostics.predicted(falling(made_up, 0, measured=False)))
    run = falling(made_up, 0)
    short = dataclasses.replace(run, descent=Series(STEPS[:3], run.descent.values[:3]))
    assert np.isnan(diagnostics.predicted(short))


def test_a_row_for_each_method_that_measured_something(made_up):
    average = dataclasses.replace(made_up.run("Average", 0, [0.5, 0.6, 0.7]))
    record = made_up.results([average, falling(made_up, 0), falling(made_up, 1)], num_tasks=3)
    found = diagnostics.table(comparison.compare(record))
    assert found.rows == [["L-DRO", "25 %", "0.50", "n/a", "2.0", "1.00"]]
    assert diagnostics.table(comparison.compare(made_up.results([average], num_tasks=3))) is None

"""Until a task was seen the others train as if it weren't there, and then it takes part."""

import jax
import numpy as np
import pytest
from helpers import gram_methods
from helpers.gram_methods import N
from weighting import test_battery

MEMORY = {"gradvac", "modo"}


def problem(seed, kept, num_tasks=N):
    """Matrices and losses, whole, with nonsense for the tasks that aren't known, and without."""
    rows = gram_methods.gradients(seed, num_tasks, spread=1.0, dims=3 * num_tasks)
    matrix, losses = rows @ rows.T, gram_methods.losses(num_tasks)
    nonsense = np.where(np.outer(kept, kept), matrix, 3.0)
    shown = np.where(kept, losses, 7.0)
    return (matrix, losses), (nonsense, shown), (matrix[np.ix_(kept, kept)], losses[kept])


def agree(name, found, expected, dtype):
    size = np.abs(expected).sum()
    np.testing.assert_allclose(found, expected, atol=test_battery.tolerance(name, dtype) * size)


@pytest.mark.parametrize("unknown, dtype", [([2], "float32"), ([0, 5], "float64")])
@pytest.mark.parametrize("name", gram_methods.NAMES)
def test_the_known_tasks_have_the_weights_of_a_problem_without_the_others(name, unknown, dtype):
    # An order drawn for fewer tasks is another one; of two tasks there is only one.
    num_tasks = 2 + len(unknown) if name in gram_methods.RANDOM else N
    kept = ~np.isin(np.arange(num_tasks), np.array(unknown) % num_tasks)
    parts = [problem(seed, kept, num_tasks)[1:] for seed in range(gram_methods.CASES)]
    shown, without = (zip(*part, strict=True) for part in zip(*parts, strict=True))
    with jax.enable_x64(dtype == "float64"):
        known = np.broadcast_to(kept, (gram_methods.CASES, num_tasks))
        found, _ = gram_methods.first_weights(name, *map(np.array, shown), dtype, known)
        expected, _ = gram_methods.first_weights(name, *map(np.array, without), dtype)
    assert (found[:, ~kept] == 0).all()
    for a, b in zip(found[:, kept], expected, strict=True):
        agree(name, a, b, dtype)


@pytest.mark.parametrize("name", gram_methods.NAMES)
def test_a_task_that_comes_late_takes_part_at_once(name):
    kept = np.arange(N) != 4
    whole, shown, _ = problem(1, kept)
    method, statistics = gram_methods.alone(name)
    state, fresh = method.init(N, np.float32), method.init(N, np.float32)
    for count in range(3):
        weights, state = method.update(statistics(*shown, known=kept, count=count), state)
        assert np.isfinite(weights).all()
    all_known = statistics(*whole, count=3)
    weights, state = method.update(all_known, state)
    assert np.isfinite(weights).all()
    assert weights[4] != 0 or name == "krum"
    if name not in MEMORY:
        expected, _ = method.update(all_known, fresh)
        np.testing.assert_array_equal(weights, expected)

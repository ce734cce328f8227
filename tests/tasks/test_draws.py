"""Which rows make up a batch: every row in turn, whoever asks and wherever a run goes on."""

import numpy as np
import pytest

from ldro_jax.tasks import draws


def test_balanced_draws_take_the_tasks_in_turn():
    drawn = np.array([0, 12, 102])
    for step in range(4):
        draw = draws.draw_balanced(drawn, 6)
        np.testing.assert_array_equal(draw.tasks, [0, 1, 2, 0, 1, 2])
        start = np.array([0, 12, 102]) + 2 * step
        np.testing.assert_array_equal(draw.indices, [*start, *(start + 1)])
        drawn = draw.drawn
        np.testing.assert_array_equal(drawn, start + 2)
    assert draw.tasks.dtype == np.int32 and draw.indices.dtype == drawn.dtype == np.int64


def test_a_batch_that_the_tasks_do_not_divide_goes_on_with_the_next_task():
    drawn = np.zeros(3, np.int64)
    seen = {task: [] for task in range(3)}
    for _ in range(6):
        draw = draws.draw_balanced(drawn, 5)
        for task, index in zip(draw.tasks, draw.indices, strict=True):
            seen[task].append(index)
        drawn = draw.drawn
        np.testing.assert_array_equal(drawn, [len(found) for found in seen.values()])
        assert drawn.max() - drawn.min() <= 1
    assert all(found == list(range(10)) for found in seen.values())


def test_rows_are_found_by_task():
    tasks = np.array([2, 0, 1, 2, 0])
    found = draws.rows_by_task(tasks, 3)
    np.testing.assert_array_equal(found, [[1, 4], [2, -1], [0, 3]])
    assert found.dtype == np.int32


# Far from even, without a sum of one, and with a task that is never drawn.
SHARES = np.array([6.0, 0.0, 1.0, 3.0])


def mixed_draws(num_steps, batch_size=10, seed=7):
    drawn = np.zeros(len(SHARES), np.int64)
    for step in range(num_steps):
        draw = draws.draw_mixed(drawn, batch_size, SHARES, [seed, step])
        yield draw
        drawn = draw.drawn


def test_mixed_draws_leave_no_gap_and_repeat_nothing():
    found = list(mixed_draws(50))
    tasks = np.concatenate([draw.tasks for draw in found])
    indices = np.concatenate([draw.indices for draw in found])
    assert tasks.dtype == np.int32 and indices.dtype == found[-1].drawn.dtype == np.int64
    for task in range(len(SHARES)):
        mine = indices[tasks == task]
        np.testing.assert_array_equal(mine, np.arange(len(mine)))
        assert found[-1].drawn[task] == len(mine)
    assert tasks.size == 500


def test_mixed_draws_have_the_shares_asked_for():
    counts = list(mixed_draws(200))[-1].drawn
    assert counts[1] == 0
    expected = 2000 * SHARES[SHARES > 0] / SHARES.sum()
    # Chi-squared with 2 degrees of freedom is above 18 once in 8,000.
    assert ((counts[SHARES > 0] - expected) ** 2 / expected).sum() < 18
    # Rows are drawn one by one, not so many of each task: the counts of a batch vary.
    first = [int((draw.tasks == 0).sum()) for draw in mixed_draws(200)]
    # Variance 10 · 0.6 · 0.4 = 2.4, itself known to a tenth.
    assert abs(np.var(first) - 2.4) < 5 * 0.24


def test_a_mixed_draw_is_a_function_of_its_seed():
    drawn = np.array([5, 6, 7, 8])
    one, same, other = (
        draws.draw_mixed(drawn, 30, SHARES, seed) for seed in ([1, 2], [1, 2], [1, 3])
    )
    for field in one._fields:
        np.testing.assert_array_equal(getattr(one, field), getattr(same, field))
    assert (one.tasks != other.tasks).any()
    # What was drawn before changes which sequences come, and not of which tasks.
    later = draws.draw_mixed(drawn + 100, 30, SHARES, [1, 2])
    np.testing.assert_array_equal(later.tasks, one.tasks)
    np.testing.assert_array_equal(later.indices, one.indices + 100)


def test_weights_are_probabilities_to_the_bit_if_no_task_is_starved():
    weights = np.array([0.7, 0.25, 0.05], np.float32)
    found = draws.probabilities_of_weights(weights)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, weights)
    # They may sum to any number, and a negative one counts by its size.
    np.testing.assert_allclose(draws.probabilities_of_weights([3, -1, 4]), [3 / 8, 1 / 8, 1 / 2])


def test_every_task_has_a_probability_whatever_its_weight():
    # A hundredth of a third instead of nothing, and then all by what they sum to.
    found = draws.probabilities_of_weights([0.5, 0.5, 0.0])
    np.testing.assert_allclose(found, np.array([150, 150, 1]) / 301, rtol=1e-6)
    # One that was never drawn has no weight yet, so it has a third.
    found = draws.probabilities_of_weights([0.5, 0.5, 0.0], np.array([True, True, False]))
    np.testing.assert_allclose(found, np.array([3, 3, 2]) / 8, rtol=1e-6)
    for weights in ([0, 0, 0], [np.inf, 1, 1], [1e30, 1e-30, 1]):
        found = draws.probabilities_of_weights(np.float32(weights))
        assert found.sum() == pytest.approx(1) and found.min() >= 0.0033


def test_rows_expected_of_plain_random_batches_are_those_by_the_sizes():
    found = draws.expected_if_uniform(np.array([980, 20], np.int32), 4)
    np.testing.assert_allclose(found, [3.92, 0.08], rtol=1e-7)
    assert found.dtype == np.float32
    # Sizes whose sum and products overflow int32.
    found = draws.expected_if_uniform(np.array([2**31 - 1, 2**30], np.int32), 3072)
    np.testing.assert_allclose(found, [2048, 1024], rtol=1e-6)


SIZES = np.array([5, 1, 7, 3])


def uniform_draws(num_steps, batch_size, *, drawn=(0, 0, 0, 0), seed=4):
    drawn = np.array(drawn)
    for _ in range(num_steps):
        draw = draws.draw_uniform(drawn, batch_size, SIZES, [seed])
        assert draw.tasks.dtype == np.int32 and draw.indices.dtype == draw.drawn.dtype == np.int64
        yield draw
        drawn = draw.drawn


# Smaller than an epoch, whose end comes within a batch, and larger than two of them.
@pytest.mark.parametrize("batch_size", [1, 5, 40])
def test_uniform_draws_take_every_row_of_all_tasks_once_in_an_epoch(batch_size):
    found = list(uniform_draws(200 // batch_size, batch_size))
    tasks = np.concatenate([draw.tasks for draw in found])
    indices = np.concatenate([draw.indices for draw in found])
    epochs = tasks[: 12 * SIZES.sum()].reshape(12, -1)
    assert all((np.bincount(epoch) == SIZES).all() for epoch in epochs)
    assert len(np.unique(epochs, axis=0)) == 12
    for task in range(len(SIZES)):
        mine = indices[tasks == task]
        np.testing.assert_array_equal(mine, np.arange(len(mine)))
        assert found[-1].drawn[task] == len(mine)


def test_uniform_draws_are_those_of_the_seed_and_go_on_where_they_were():
    # The batches of two sizes are cut from one order.
    (long,) = uniform_draws(1, 40)
    pieces = list(uniform_draws(4, 10))
    for field in ("tasks", "indices"):
        joined = np.concatenate([getattr(piece, field) for piece in pieces])
        np.testing.assert_array_equal(joined, getattr(long, field))
    (again,) = uniform_draws(1, 10, drawn=pieces[1].drawn)
    np.testing.assert_array_equal(again.tasks, pieces[2].tasks)
    (other,) = uniform_draws(1, 40, seed=5)
    assert (other.tasks != long.tasks).any()

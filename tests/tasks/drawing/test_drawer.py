"""Which rows make up a batch: every row in turn, whoever asks and wherever a run goes on."""

import dataclasses
import json

import numpy as np
import pytest

from ldro_jax.tasks import drawing


def batches(drawer, num_steps):
    """The draws of some steps, each with what draws after it."""
    for _ in range(num_steps):
        draw, drawer = drawer.next()
        assert draw.tasks.dtype == np.int32
        assert draw.indices.dtype == drawer.counts.dtype == np.int64
        yield draw, drawer


def joined(found):
    """Tasks and indices of all rows, and the counts after them."""
    draws = [draw for draw, _ in found]
    tasks, indices = (np.concatenate(x) for x in zip(*draws, strict=True))
    return tasks, indices, found[-1][1].counts


def assert_numbered(found):
    """No task leaves a row out or repeats one."""
    tasks, indices, counts = joined(found)
    for task in range(len(counts)):
        mine = indices[tasks == task]
        np.testing.assert_array_equal(mine, np.arange(len(mine)))
        assert counts[task] == len(mine)


def test_balanced_draws_take_the_tasks_in_turn():
    drawer = drawing.Drawer("balanced", 6, np.array([0, 12, 102]))
    for step, (draw, after) in enumerate(batches(drawer, 4)):
        np.testing.assert_array_equal(draw.tasks, [0, 1, 2, 0, 1, 2])
        start = np.array([0, 12, 102]) + 2 * step
        np.testing.assert_array_equal(draw.indices, [*start, *(start + 1)])
        np.testing.assert_array_equal(after.counts, start + 2)
        assert after.step == step + 1


def test_a_batch_that_the_tasks_do_not_divide_goes_on_with_the_next_task():
    found = list(batches(drawing.Drawer("balanced", 5, np.zeros(3, np.int64)), 6))
    assert all(np.ptp(after.counts) <= 1 for _, after in found)
    assert_numbered(found)
    np.testing.assert_array_equal(joined(found)[2], [10, 10, 10])


def test_rows_are_found_by_task():
    tasks = np.array([2, 0, 1, 2, 0])
    found = drawing.rows_by_task(tasks, 3)
    np.testing.assert_array_equal(found, [[1, 4], [2, -1], [0, 3]])
    assert found.dtype == np.int32


def test_rows_ahead_are_those_that_are_drawn_next_and_stay_so():
    drawer = drawing.Drawer("balanced", 8, np.array([3, 0, 9, 9]))
    ahead = drawer.ahead(8)
    np.testing.assert_array_equal(ahead.tasks, [0, 1, 2, 3] * 2)
    np.testing.assert_array_equal(ahead.indices, [3, 0, 9, 9, 4, 1, 10, 10])
    draw, _ = drawer.next()
    assert set(zip(*draw, strict=True)) == set(zip(*ahead, strict=True))


# Far from even, without a sum of one, and with a task that is never drawn.
SHARES = np.array([6.0, 0.0, 1.0, 3.0])


def at_random(num_steps, *, size=10, seed=7, counts=(0, 0, 0, 0), step=0):
    drawer = drawing.Drawer("probabilities", size, np.array(counts), seed, step)
    return list(batches(dataclasses.replace(drawer, probabilities=SHARES), num_steps))


def test_random_draws_leave_no_gap_and_repeat_nothing():
    found = at_random(50)
    assert_numbered(found)
    assert joined(found)[2].sum() == 500


def test_random_draws_have_the_shares_asked_for():
    found = at_random(200)
    counts = joined(found)[2]
    assert counts[1] == 0
    expected = 2000 * SHARES[SHARES > 0] / SHARES.sum()
    # Chi-squared with 2 degrees of freedom is above 18 once in 8,000.
    assert ((counts[SHARES > 0] - expected) ** 2 / expected).sum() < 18
    # Rows are drawn one by one, not so many of each task: the counts of a batch vary.
    first = [int((draw.tasks == 0).sum()) for draw, _ in found]
    # Variance 10 · 0.6 · 0.4 = 2.4, itself known to a tenth.
    assert abs(np.var(first) - 2.4) < 5 * 0.24


def test_a_random_draw_is_a_function_of_seed_and_step():
    options = {"size": 30, "counts": (5, 6, 7, 8), "step": 2}
    ((one, _),), ((same, _),) = (at_random(1, seed=1, **options) for _ in range(2))
    np.testing.assert_array_equal(one, same)
    for other in ({"seed": 2}, {"seed": 1, "step": 3}):
        ((found, _),) = at_random(1, **options | other)
        assert (one.tasks != found.tasks).any()
    # What was drawn before changes which rows come, and not of which tasks.
    ((later, _),) = at_random(1, seed=1, **options | {"counts": (105, 106, 107, 108)})
    np.testing.assert_array_equal(later.tasks, one.tasks)
    np.testing.assert_array_equal(later.indices, one.indices + 100)


def test_weights_are_probabilities_to_the_bit_if_no_task_is_starved():
    weights = np.array([0.7, 0.25, 0.05], np.float32)
    found = drawing.probabilities_of_weights(weights)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, weights)
    # They may sum to any number, and a negative one counts by its size.
    np.testing.assert_allclose(drawing.probabilities_of_weights([3, -1, 4]), [3 / 8, 1 / 8, 1 / 2])


def test_every_task_has_a_probability_whatever_its_weight():
    # A hundredth of a third instead of nothing, and then all by what they sum to.
    found = drawing.probabilities_of_weights([0.5, 0.5, 0.0])
    np.testing.assert_allclose(found, np.array([150, 150, 1]) / 301, rtol=1e-6)
    # One that was never drawn has no weight yet, so it has a third.
    found = drawing.probabilities_of_weights([0.5, 0.5, 0.0], np.array([True, True, False]))
    np.testing.assert_allclose(found, np.array([3, 3, 2]) / 8, rtol=1e-6)
    for weights in ([0, 0, 0], [np.inf, 1, 1], [1e30, 1e-30, 1]):
        found = drawing.probabilities_of_weights(np.float32(weights))
        assert found.sum() == pytest.approx(1) and found.min() >= 0.0033


def expected(sampler, size, tasks, **options):
    counts = np.zeros(2, np.int64)
    found = drawing.Drawer(sampler, size, counts, **options).expected(np.array(tasks))
    assert found.dtype == np.float32
    return found


def test_how_many_rows_are_expected_of_each_task():
    np.testing.assert_array_equal(expected("balanced", 3, [0, 1, 0]), [2, 1])
    shares = np.array([0.75, 0.25], np.float32)
    found = expected("probabilities", 3, [1, 1, 1], probabilities=shares)
    np.testing.assert_allclose(found, [2.25, 0.75])
    # Plain random batches have rows by the sizes,
    found = expected("uniform", 4, [0] * 4, sizes=np.array([980, 20], np.int32))
    np.testing.assert_allclose(found, [3.92, 0.08], rtol=1e-7)
    # also where the sum of these and products overflow int32.
    found = expected("uniform", 3072, [0] * 3072, sizes=np.array([2**31 - 1, 2**30], np.int32))
    np.testing.assert_allclose(found, [2048, 1024], rtol=1e-6)


SIZES = np.array([5, 1, 7, 3])


def uniform(num_steps, size, *, counts=(0, 0, 0, 0), seed=4):
    drawer = drawing.Drawer("uniform", size, np.array(counts), seed, sizes=SIZES)
    return list(batches(drawer, num_steps))


# Smaller than an epoch, whose end comes within a batch, and larger than two of them.
@pytest.mark.parametrize("size", [1, 5, 40])
def test_uniform_draws_take_every_row_of_all_tasks_once_in_an_epoch(size):
    found = uniform(200 // size, size)
    epochs = joined(found)[0][: 12 * SIZES.sum()].reshape(12, -1)
    assert all((np.bincount(epoch) == SIZES).all() for epoch in epochs)
    assert len(np.unique(epochs, axis=0)) == 12
    assert_numbered(found)


def test_uniform_draws_are_those_of_the_seed_and_go_on_where_they_were():
    # The batches of two sizes are cut from one order.
    ((long, _),), pieces = uniform(1, 40), uniform(4, 10)
    np.testing.assert_array_equal(joined(pieces)[:2], long)
    ((again, _),) = uniform(1, 10, counts=pieces[1][1].counts)
    np.testing.assert_array_equal(again, pieces[2][0])
    ((other, _),) = uniform(1, 40, seed=5)
    assert (other.tasks != long.tasks).any()


@pytest.mark.parametrize("sampler", ["balanced", "uniform", "probabilities"])
def test_what_is_saved_goes_on_bit_for_bit(sampler):
    options = {"sizes": SIZES, "probabilities": np.float32([0.7, 0.1, 0.1, 0.1])}
    first = drawing.Drawer(sampler, 6, np.zeros(4, np.int64), 3, **options)
    *_, (_, after) = batches(first, 3)
    after = after.following([0.1, 0.2, 0.3, 0.4])
    again = first.restored(json.loads(json.dumps(after.record())))
    for (one, ends), (other, others) in zip(batches(after, 4), batches(again, 4), strict=True):
        np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(ends.expected(one.tasks), others.expected(other.tasks))
    assert ends.step == others.step == 7


def test_only_draws_by_probabilities_follow_the_weights():
    even = drawing.Drawer("balanced", 6, np.zeros(4, np.int64))
    assert even.following([1, 2, 3, 4]) is even
    random = dataclasses.replace(even, sampler="probabilities").following([1, 2, 3, 4])
    np.testing.assert_allclose(random.probabilities, [0.1, 0.2, 0.3, 0.4])


def test_a_place_that_does_not_fit_is_refused_in_one_line():
    drawer = drawing.Drawer("balanced", 6, np.zeros(4, np.int64))
    record = drawer.record()
    for other, said in [
        # Before drawers were saved there was none.
        (None, "by another version of ldro_jax, in format 0, but this one reads format 1. Go on"),
        (record | {"version": 2}, "in format 2, but this one reads format 1. Go on with the ver"),
        (record | {"sampler": "uniform"}, "in epochs over .* tasks, but now would be from the t"),
        (record | {"counts": [0, 0]}, "drawn of 2 tasks, but now there are 4. Give the run the"),
    ]:
        with pytest.raises(ValueError, match=said) as error:
            drawer.restored(other)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        ("uniform", "'balanced' for tasks without a number of rows, but it is 'uniform'"),
        ("random", "sampler must be one of .*, but it is 'random'"),
    ],
)
def test_batches_that_can_not_be_drawn_are_refused(sampler, message):
    with pytest.raises(ValueError, match=message):
        drawing.Drawer(sampler, 4, np.zeros(4, np.int64))

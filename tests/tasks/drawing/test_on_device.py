"""Batches are a function of seed and step, and go through every task fairly."""

import functools

import jax
import numpy as np
import pytest

from ldro_jax.tasks import drawing

# Of one power of two, which compiles three times as fast; one test has sizes of every scale.
SIZES = (5, 4, 7, 6)
N = len(SIZES)
# Every task comes to more than one epoch in so many steps, even one example at a time.
STEPS = 28
# Without a remainder, with a large and with a small one, and a batch larger than all the data.
BATCH_SIZES = [4, 7, 33]


@functools.cache
def _program(sampler, num_steps, sizes, batch_size):
    # In training the step is part of the state, so the compiler doesn't know it.
    drawer = drawing.Drawer(
        sampler, batch_size, np.zeros(len(sizes), np.int64), sizes=np.array(sizes)
    )
    return jax.jit(lambda key, start: drawing.stretch(drawer, key, start, num_steps))


def draw(sampler, start, num_steps, sizes=SIZES, batch_size=7, seed=3):
    program = _program(sampler, num_steps, sizes, batch_size)
    return drawing.Draw(*map(np.asarray, program(jax.random.key(seed), start)))


def balanced(batch_size, *, start=0, num_steps=STEPS):
    return draw("balanced", start, num_steps, batch_size=batch_size)


def counts(drawn, num_tasks=N):
    """Examples of each task in each step, [step, N]."""
    return (drawn.tasks[:, :, None] == np.arange(num_tasks)).sum(axis=1)


def stream(drawn, task):
    """What a task draws, in the order in which it draws it."""
    return drawn.indices[drawn.tasks == task]


def assert_permutations(indices, size, *, at_least):
    """Whole epochs are permutations, and the last one, cut off, draws nothing twice."""
    whole = len(indices) // size * size
    epochs = indices[:whole].reshape(-1, size)
    assert len(epochs) >= at_least
    assert (np.sort(epochs, axis=1) == np.arange(size)).all()
    rest = indices[whole:]
    assert len(set(rest)) == len(rest) and ((rest >= 0) & (rest < size)).all()


@pytest.mark.parametrize("sampler", drawing.SAMPLERS)
def test_a_stretch_in_pieces_is_the_stretch(sampler):
    whole = draw(sampler, 0, STEPS)
    pieces = [draw(sampler, start, 7) for start in range(0, STEPS, 7)]
    for field in whole._fields:
        joined = np.concatenate([getattr(piece, field) for piece in pieces])
        np.testing.assert_array_equal(joined, getattr(whole, field))


@pytest.mark.parametrize("sampler", drawing.SAMPLERS)
def test_a_step_late_in_training_is_like_any_other(sampler):
    # Step 1 000 003, alone and in a stretch, among epochs that nothing before it has opened.
    late, stretch = (draw(sampler, start, 7) for start in (1_000_003, 1_000_000))
    for field in late._fields:
        np.testing.assert_array_equal(getattr(late, field)[:4], getattr(stretch, field)[3:])
    sizes = np.array(SIZES)
    assert ((late.indices >= 0) & (late.indices < sizes[late.tasks])).all()
    assert not np.array_equal(late.indices[:4], draw(sampler, 0, 7).indices[:4])


@pytest.mark.parametrize("batch_size", BATCH_SIZES)
def test_balanced_batches_are_full_and_even(batch_size):
    drawn = balanced(batch_size)
    assert drawn.tasks.shape == drawn.indices.shape == (STEPS, batch_size)
    assert drawn.tasks.dtype == drawn.indices.dtype == np.int32
    assert (np.diff(drawn.tasks, axis=1) >= 0).all()
    per_step = counts(drawn)
    assert (per_step.sum(axis=1) == batch_size).all()
    assert set(per_step.flat) <= {batch_size // N, -(-batch_size // N)}
    # Over any number of first steps no task is more than one example ahead,
    so_far = per_step.cumsum(axis=0)
    assert np.ptp(so_far, axis=1).max() <= 1
    # and over N steps, wherever they start, all have drawn the same.
    in_turn = so_far[N:] - so_far[:-N]
    assert (in_turn == batch_size).all()


@pytest.mark.parametrize("batch_size", BATCH_SIZES)
def test_every_epoch_of_every_task_is_a_permutation(batch_size):
    drawn = balanced(batch_size)
    for task, size in enumerate(SIZES):
        assert_permutations(stream(drawn, task), size, at_least=2)


def test_sizes_of_any_scale_are_permuted():
    # One example and many: the shuffles of the small task are not padded to those of the large.
    sizes = (1, 6, 90)
    drawn = draw("balanced", 0, 10, sizes, 55)
    for task, size in enumerate(sizes):
        assert_permutations(stream(drawn, task), size, at_least=2)


def test_orders_differ_between_epochs_tasks_and_seeds():
    size, epochs = 50, 300
    drawn = [draw("balanced", 0, epochs, (size, size), 2 * size, seed) for seed in (3, 4)]
    orders = np.concatenate([d.indices.reshape(-1, size) for d in drawn])
    assert len(np.unique(orders, axis=0)) == len(orders) == 1200
    for place in (0, 24, -1):
        # Each example is as often here as any other: mean 24, standard deviation 4.9.
        seen = np.bincount(orders[:, place], minlength=size)
        assert np.abs(seen - 24).max() < 5 * 4.9


def test_uniform_orders_differ_between_epochs_and_seeds():
    # Eight epochs and some steps more, of two seeds.
    drawn = [draw("uniform", 0, STEPS, seed=seed) for seed in (3, 4)]
    examples = np.stack([np.stack([d.tasks.ravel(), d.indices.ravel()]) for d in drawn])
    epochs = examples[:, :, : 8 * sum(SIZES)].reshape(2, 2, 8, sum(SIZES)).swapaxes(1, 2)
    assert len(np.unique(epochs.reshape(16, -1), axis=0)) == 16


def test_uniform_epochs_are_permutations_of_all_examples():
    drawn = draw("uniform", 0, STEPS)
    assert drawn.tasks.shape == drawn.indices.shape == (STEPS, 7)
    assert drawn.tasks.dtype == drawn.indices.dtype == np.int32
    # The number of an example among all of them, worked out here.
    numbers = {(t, i): sum(SIZES[:t]) + i for t in range(N) for i in range(SIZES[t])}
    pairs = zip(drawn.tasks.flat, drawn.indices.flat, strict=True)
    assert_permutations(np.array([numbers[pair] for pair in pairs]), sum(SIZES), at_least=2)


def test_uniform_batches_follow_the_sizes_and_may_miss_a_task():
    sizes = (40, 120, 240)
    per_step = counts(draw("uniform", 0, 200, sizes, 4), 3)
    # Two epochs.
    np.testing.assert_array_equal(per_step.sum(axis=0), [80, 240, 480])
    # In half an epoch, hypergeometric: 20 of the smallest task, standard deviation 3.
    assert abs(per_step[:50, 0].sum() - 20) < 15
    missing = (per_step == 0).mean(axis=0)
    # A task of a tenth misses a batch of four with probability 0.9^4 = 0.66, ± 0.03.
    assert abs(missing[0] - 0.66) < 0.15 and missing[0] > missing[1] > missing[2]


@pytest.mark.parametrize("capacity", [1, 3, 7])
@pytest.mark.parametrize("sampler", drawing.SAMPLERS)
def test_places_are_found_by_a_loop_over_the_batch(sampler, capacity):
    places = jax.jit(lambda tasks: drawing.places(tasks, N, capacity))
    for tasks in draw(sampler, 0, 7).tasks:
        expected = np.full((N, capacity), -1)
        for task in range(N):
            mine = np.flatnonzero(tasks == task)[:capacity]
            expected[task, : len(mine)] = mine
        found = places(tasks)
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == np.int32


@pytest.mark.parametrize("batch_size", BATCH_SIZES)
def test_a_balanced_batch_fits_its_share(batch_size):
    capacity = -(-batch_size // N)
    found = jax.vmap(lambda tasks: drawing.places(tasks, N, capacity))(balanced(batch_size).tasks)
    assert ((found >= 0).sum(axis=(1, 2)) == batch_size).all()

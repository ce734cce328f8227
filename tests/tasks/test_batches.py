"""Batches are a function of seed and step, and go through every task fairly."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from ldro_jax.tasks import base

SIZES = (5, 12, 7, 6)


@functools.cache
def _program(num_steps, sizes, batch_size):
    # In training the step is part of the state, so the compiler doesn't know it.
    return jax.jit(
        lambda key, start: base.batch_indices(key, start, num_steps, np.array(sizes), batch_size)
    )


def draw(start, num_steps, sizes=SIZES, batch_size=4, seed=3):
    return np.asarray(_program(num_steps, sizes, batch_size)(jax.random.key(seed), start))


def test_a_stretch_in_pieces_is_the_stretch():
    pieces = [draw(start, 6) for start in (0, 6, 12, 18)]
    np.testing.assert_array_equal(np.concatenate(pieces), draw(0, 24))


@pytest.mark.parametrize("batch_size", [1, 13])
def test_every_epoch_of_every_task_is_a_permutation(batch_size):
    num_steps = 100 // batch_size
    indices = draw(0, num_steps, batch_size=batch_size)
    assert indices.shape == (num_steps, len(SIZES), batch_size) and indices.dtype == np.int32
    for task, size in enumerate(SIZES):
        stream = indices[:, task].reshape(-1)
        epochs = stream[: len(stream) // size * size].reshape(-1, size)
        assert len(epochs) >= 2
        assert (np.sort(epochs, axis=1) == np.arange(size)).all()
        # The last epoch is cut off, but it draws no example twice and no padding.
        rest = stream[len(epochs) * size :]
        assert len(set(rest)) == len(rest) and (rest < size).all()


def test_orders_differ_between_epochs_tasks_and_seeds():
    size = 50
    streams = [draw(0, 2, (size, size), size, seed) for seed in (3, 4)]
    orders = {tuple(order) for stream in streams for order in stream.reshape(-1, size)}
    assert len(orders) == 8


def test_take_gathers_inputs_with_their_labels():
    split = tiny.split((6, 6, 6), 0)
    indices = jnp.array([[5, 0], [1, 1], [2, 4]], jnp.int32)
    batch = base.take(split, indices)
    for task, rows in enumerate(np.asarray(indices)):
        np.testing.assert_array_equal(batch["inputs"][task], split.inputs[task, rows])
        np.testing.assert_array_equal(batch["labels"][task], split.labels[task, rows])


def _replace(**options):
    return dataclasses.replace(tiny.data(), **options)


def test_an_empty_task_is_named():
    empty = tiny.split((4, 4, 4), 0)._replace(sizes=np.array([4, 0, 4]))
    with pytest.raises(ValueError, match=r"at least one validation example.*none: middle"):
        _replace(validation=empty)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task_names": ("left", "right")}, "for 2 tasks"),
        ({"task_names": ("left", "right", "left")}, "its own name"),
        ({"num_classes": 1}, "from 0 to 0, but they are from 0 to 1"),
    ],
)
def test_names_and_classes_must_fit(change, message):
    with pytest.raises(ValueError, match=message):
        _replace(**change)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("inputs", np.zeros((2, 4, 2)), r"\(2, 4, 2\), \(3, 4\) and \(3,\)"),
        ("inputs", np.zeros(3), r"\(3,\), \(3, 4\) and \(3,\)"),
        ("labels", np.zeros((3, 5), int), r"\(3, 4, 2\), \(3, 5\) and \(3,\)"),
        ("sizes", np.array([4, 4]), r"\(3, 4\) and \(2,\)"),
        ("sizes", np.array([4, 5, 4]), "room for 4 examples.*there are 5"),
        ("labels", np.full((3, 4), -1), "from 0 to 1, but they are from -1 to -1"),
    ],
)
def test_a_split_that_does_not_fit_is_an_error(field, value, message):
    with pytest.raises(ValueError, match=message):
        _replace(test=tiny.split((4, 4, 4), 0)._replace(**{field: value}))


def test_padding_may_hold_anything():
    padded = tiny.split((4, 3, 4), 0)
    padded.labels[1, 3] = -1
    assert _replace(train=padded).num_tasks == 3

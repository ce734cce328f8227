"""Accuracy per task against NumPy."""

import jax
import numpy as np
import tiny

from ldro_jax.evaluation import accuracy


def test_accuracy_is_that_of_numpy_and_leaves_padding_out():
    split = tiny.split((30, 7, 1), 0)
    kernel = np.random.default_rng(1).normal(size=(2, 2)).astype(np.float32)
    expected = []
    for inputs, labels, size in zip(*split, strict=True):
        guess = (inputs[:size] @ kernel).argmax(axis=-1)
        expected.append((guess == labels[:size]).mean())
        # Right answers in the padding must not count.
        labels[size:] = (inputs[size:] @ kernel).argmax(axis=-1)
    assert len(set(expected)) > 1
    found = jax.jit(lambda p, s: accuracy.task_accuracies(lambda p, x: x @ p, p, s))(kernel, split)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6)

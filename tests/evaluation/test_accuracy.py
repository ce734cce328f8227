"""Accuracy per task against NumPy."""

import functools

import jax
import numpy as np
import tiny

from ldro_jax.evaluation import accuracy

# The second task has one class only, the third all but one.
TASK_CLASSES = np.array(
    [[True, True, False, False], [False, False, False, True], [True] * 3 + [False]]
)


def problem():
    """Three tasks with their classes in random order, and a kernel for four outputs."""
    rng = np.random.default_rng(1)
    split = tiny.split((30, 7, 1), 0)
    for labels, classes in zip(split.labels, TASK_CLASSES, strict=True):
        labels[:] = rng.choice(np.flatnonzero(classes), labels.shape)
    return split, rng.normal(size=(2, 4)).astype(np.float32)


def task_accuracies(split, kernel, task_classes=None):
    # Whether there are classes is fixed, and their number, so they are bound here.
    measure = functools.partial(accuracy.task_accuracies, lambda p, x: x @ p)
    return jax.jit(lambda p, s: measure(p, s, task_classes))(kernel, split)


def by_loop(split, kernel, task_classes):
    """The shares in NumPy, and every padding row is given a right answer, which must not count."""
    shares = []
    for inputs, labels, size, allowed in zip(*split, task_classes, strict=True):
        classes = np.flatnonzero(allowed)
        guess = classes[(inputs @ kernel)[:, classes].argmax(axis=-1)]
        shares.append((guess[:size] == labels[:size]).mean())
        labels[size:] = guess[size:]
    return shares


def test_accuracy_is_that_of_numpy_and_leaves_padding_out():
    split, kernel = problem()
    expected = by_loop(split, kernel, np.ones((3, 4), bool))
    assert len(set(expected)) > 1
    found = task_accuracies(split, kernel)
    assert set(found) == {"accuracy"}
    assert found["accuracy"].dtype == np.float32 and found["accuracy"].shape == (3,)
    np.testing.assert_allclose(found["accuracy"], expected, rtol=1e-6)


def test_accuracy_within_a_task_is_among_its_classes():
    split, kernel = problem()
    among_all = by_loop(split, kernel, np.ones((3, 4), bool))
    within = by_loop(split, kernel, TASK_CLASSES)
    found = task_accuracies(split, kernel, TASK_CLASSES)
    assert set(found) == {"accuracy", "within-task accuracy"}
    assert found["within-task accuracy"].dtype == np.float32
    np.testing.assert_allclose(found["accuracy"], among_all, rtol=1e-6)
    np.testing.assert_allclose(found["within-task accuracy"], within, rtol=1e-6)
    assert within[1] == 1 and all(a <= w for a, w in zip(among_all, within, strict=True))
    assert within[0] > among_all[0]

"""Classification: accuracy per task and cross-entropy against NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from helpers import tiny

from ldro_jax import problems
from ldro_jax.tasks import base

# The second task has one class only, the third all but one.
TASK_CLASSES = np.array(
    [[True, True, False, False], [False, False, False, True], [True] * 3 + [False]]
)


def splits(sizes):
    """Three tasks with their classes in random order."""
    for seed in range(3):
        rng = np.random.default_rng(seed)
        split = tiny.split(sizes, seed)
        for task, classes in enumerate(TASK_CLASSES):
            labels = split.of(task)[1]
            labels[:] = rng.choice(np.flatnonzero(classes), labels.shape)
        yield split


def linear(num_classes):
    return nn.Dense(num_classes, use_bias=False)


def accuracies(split, kernel, task_classes=None):
    """Those of the split "test", which is the third."""
    train, validation, _ = splits((30, 7, 1))
    data = base.MultitaskData(tiny.NAMES, 4, train, validation, split, task_classes=task_classes)
    problem = problems.classification(load_data=lambda data_dir: data, model=linear)
    return problem, problem.evaluate({"kernel": kernel}, "test")


def by_loop(split, kernel, task_classes):
    """The shares in NumPy."""
    shares = []
    for task, allowed in enumerate(task_classes):
        inputs, labels = split.of(task)
        classes = np.flatnonzero(allowed)
        guess = classes[(inputs @ kernel)[:, classes].argmax(axis=-1)]
        shares.append((guess == labels).mean())
    return shares


@pytest.fixture
def kernel():
    return np.random.default_rng(1).normal(size=(2, 4)).astype(np.float32)


def test_accuracy_is_that_of_numpy(kernel):
    *_, split = splits((30, 7, 1))
    expected = by_loop(split, kernel, np.ones((3, 4), bool))
    assert len(set(expected)) > 1
    problem, found = accuracies(split, kernel)
    assert [metric.name for metric in problem.metrics] == list(found) == ["accuracy"]
    assert found["accuracy"].dtype == np.float32 and found["accuracy"].shape == (3,)
    np.testing.assert_allclose(found["accuracy"], expected, rtol=1e-6)
    assert problem.metrics[0].higher_is_better


def test_accuracy_within_a_task_is_among_its_classes(kernel):
    *_, split = splits((30, 7, 1))
    among_all = by_loop(split, kernel, np.ones((3, 4), bool))
    _, found = accuracies(split, kernel, TASK_CLASSES)
    np.testing.assert_allclose(found["accuracy"], among_all, rtol=1e-6)
    within = by_loop(split, kernel, TASK_CLASSES)
    _, found = accuracies(split, kernel, TASK_CLASSES)
    assert set(found) == {"accuracy", "within-task accuracy"}
    assert found["within-task accuracy"].dtype == np.float32
    np.testing.assert_allclose(found["within-task accuracy"], within, rtol=1e-6)
    assert within[1] == 1 and all(a <= w for a, w in zip(among_all, within, strict=True))
    assert within[0] > among_all[0]


def test_the_loss_is_the_cross_entropy_of_each_row():
    logits = np.array([[1.0, 3.0], [0.5, -2.0], [100.0, -100.0]], np.float32)
    labels = np.array([0, 0, 1])
    found = problems.cross_entropy(jnp.asarray(logits), {"targets": labels})
    exponentials = np.exp(logits.astype(np.float64))
    shares = exponentials[range(3), labels] / exponentials.sum(axis=1)
    np.testing.assert_allclose(found, -np.log(shares), rtol=1e-5)

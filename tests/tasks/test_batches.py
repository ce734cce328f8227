"""A data set says at once what about it does not fit."""

import dataclasses

import numpy as np
import pytest
from helpers import tiny

from ldro_jax.tasks import base


def _replace(**options):
    return dataclasses.replace(tiny.data(), **options)


def test_an_empty_task_is_named():
    empty = tiny.split((4, 4, 4), 0)._replace(sizes=np.array([4, 0, 8]))
    with pytest.raises(ValueError, match=r"at least one validation example.*none: middle"):
        _replace(validation=empty)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task_names": ("left", "right")}, "of 2 tasks"),
        ({"task_names": ("left", "right", "left")}, "names that all differ"),
        ({"num_classes": 1}, "from 0 to 0, but they are from 0 to 1"),
        ({"task_classes": np.ones((2, 3), bool)}, r"\[3 tasks, 2 classes\].*\(2, 3\)"),
    ],
)
def test_names_and_classes_must_fit(change, message):
    with pytest.raises(ValueError, match=message):
        _replace(**change)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("inputs", np.zeros((11, 2)), r"\(11, 2\), \(12,\) and \(3,\)"),
        ("inputs", np.zeros(()), r"\(\), \(12,\) and \(3,\)"),
        # As in 0.1.0: each task filled up to the largest.
        ("targets", np.zeros((3, 4), int), r"\(12, 2\), \(3, 4\) and \(3,\)"),
        ("sizes", np.array([4, 8]), r"\(12,\) and \(2,\)"),
        ("sizes", np.array([4, 5, 4]), "the sizes sum to 13"),
        ("targets", np.full(12, -1), "from 0 to 1, but they are from -1 to -1"),
    ],
)
def test_a_split_that_does_not_fit_is_an_error(field, value, message):
    with pytest.raises(ValueError, match=message):
        _replace(test=tiny.split((4, 4, 4), 0)._replace(**{field: value}))


def test_a_split_gives_each_task_back():
    rng = np.random.default_rng(0)
    tasks = [(rng.normal(size=(size, 2)), rng.integers(0, 9, size)) for size in (1, 7, 3)]
    split = base.Split.join(tasks)
    assert split.sizes.tolist() == [1, 7, 3] and split.starts.tolist() == [0, 1, 8]
    for task, (inputs, targets) in enumerate(tasks):
        np.testing.assert_array_equal(split.of(task)[0], inputs)
        np.testing.assert_array_equal(split.of(task)[1], targets)


def test_task_classes_of_the_right_shape_are_kept():
    classes = np.array([[True, True], [True, False], [False, True]])
    assert _replace(task_classes=classes).task_classes is classes

"""A data set says at once what about it does not fit."""

import dataclasses

import numpy as np
import pytest
import tiny


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
        ({"task_classes": np.ones((2, 3), bool)}, r"\[3 tasks, 2 classes\].*\(2, 3\)"),
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
        ("targets", np.zeros((3, 5), int), r"\(3, 4, 2\), \(3, 5\) and \(3,\)"),
        ("sizes", np.array([4, 4]), r"\(3, 4\) and \(2,\)"),
        ("sizes", np.array([4, 5, 4]), "room for 4 examples.*there are 5"),
        ("targets", np.full((3, 4), -1), "from 0 to 1, but they are from -1 to -1"),
    ],
)
def test_a_split_that_does_not_fit_is_an_error(field, value, message):
    with pytest.raises(ValueError, match=message):
        _replace(test=tiny.split((4, 4, 4), 0)._replace(**{field: value}))


def test_padding_may_hold_anything():
    padded = tiny.split((4, 3, 4), 0)
    padded.targets[1, 3] = -1
    assert _replace(train=padded).num_tasks == 3


def test_task_classes_of_the_right_shape_are_kept():
    classes = np.array([[True, True], [True, False], [False, True]])
    assert _replace(task_classes=classes).task_classes is classes

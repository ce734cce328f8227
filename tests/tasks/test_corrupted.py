"""Tasks that can't be learnt beside others, and labels that are wrong."""

import numpy as np
import pytest
from helpers import tiny

from ldro_jax import problems
from ldro_jax.models.mlp import MLP
from ldro_jax.problems import classifiers
from ldro_jax.tasks import corrupted as corrupted_lib
from ldro_jax.tasks.corrupted import corrupted


def load(data_dir):
    assert data_dir == "here"
    return tiny.data((400, 320, 480))


def made(**options):
    return corrupted(data_dir="here", load_data=load, **options)


@pytest.mark.parametrize("by", corrupted_lib.WAYS)
def test_hopeless_tasks_are_trained_and_not_measured(by):
    data, whole = made(hopeless=2, by=by, leave_out=["middle"], seed=1), load("here")
    assert data.task_names == ("left", "right", "hopeless 1", "hopeless 2")
    assert data.measured_names == ("left", "right")
    for name in ("train", "validation", "test"):
        for ours, theirs in ((0, 0), (1, 2)):
            parts = getattr(data, name).of(ours), getattr(whole, name).of(theirs)
            for one, other in zip(*parts, strict=True):
                np.testing.assert_array_equal(one, other)
    inputs, labels = data.train.of(2)
    assert len(labels) == 440 and labels.dtype == np.int32
    assert abs(labels.mean() - 0.5) < 0.1
    everything = np.concatenate([data.train.of(task)[0] for task in (0, 1)])
    rows = {tuple(x.ravel()) for x in everything}
    are_theirs = {tuple(x.ravel()) in rows for x in inputs}
    assert are_theirs == {by == "labels"}
    for moment in (np.mean, np.std):
        np.testing.assert_allclose(moment(inputs, 0), moment(everything, 0), atol=0.2)
    # One is no other's copy, and the same seed gives the same.
    assert (data.train.of(3)[0] != inputs).any()
    np.testing.assert_array_equal(
        made(hopeless=2, by=by, leave_out=["middle"], seed=1).train.inputs, data.train.inputs
    )
    problem = classifiers.from_data(data, MLP(2, ()))
    assert isinstance(problem, problems.ArrayProblem)
    assert problem.num_tasks == 4 and problem.measured == ("left", "right")
    values = problem.evaluate(problem.init(np.array([0, 1], np.uint32)), "test")
    assert values["accuracy"].shape == (2,)


def test_some_labels_of_some_tasks_are_drawn_anew():
    data, whole = made(label_noise=0.5, noisy_tasks=["middle"]), load("here")
    assert data.measured_names is None
    for task in range(3):
        ours, theirs = data.train.of(task)[1], whole.train.of(task)[1]
        # Half of those that are drawn stay as they are.
        changed = np.mean(ours != theirs)
        assert abs(changed - 0.25) < 0.08 if task == 1 else changed == 0
        np.testing.assert_array_equal(data.test.of(task)[1], whole.test.of(task)[1])


def test_noise_of_bytes_stays_in_their_range():
    inputs = np.uint8([[[250]], [[255]], [[253]]])
    noise = corrupted_lib._noise(inputs, 999, np.random.default_rng(0))
    assert noise.dtype == np.uint8 and noise.min() > 200 and noise.max() == 255


@pytest.mark.parametrize(
    "options, message",
    [
        ({"hopeless": -1}, "hopeless must be"),
        ({"by": "noise"}, "by must be one of 'inputs', 'labels'"),
        ({"label_noise": 2}, "label_noise must be a number in"),
        (
            {"noisy_tasks": ["d"]},
            "noisy_tasks must be one of 'left', 'middle', 'right', but it is 'd'",
        ),
        ({"leave_out": list(tiny.NAMES)}, "leave_out must be not all tasks"),
    ],
)
def test_bad_input_is_one_line(options, message):
    with pytest.raises(ValueError, match=message) as caught:
        made(**options)
    assert "\n" not in str(caught.value)

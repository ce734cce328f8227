"""Groups as tasks: what training knows of them, and what is measured of each group."""

import dataclasses

import jax
import numpy as np
import optax
import pytest
from helpers import calls

from ldro_jax import problems
from ldro_jax.experiments import compare
from ldro_jax.problems import base
from ldro_jax.records import results
from ldro_jax.tasks import grouped
from ldro_jax.tasks.grouped import EvaluationGroups, GroupedSplit
from ldro_jax.training.method import Method
from ldro_jax.training.schedule import Schedule


def init(key, inputs):
    return 0.1 * jax.random.normal(key, (inputs.shape[1], 2))


MODEL = (init, lambda params, inputs: inputs @ params)


def data(unknown=0, **options):
    """Two classes and two attributes, of which one goes with the class in training."""
    rng = np.random.default_rng(0)

    def split(sizes):
        classes = np.repeat([0, 0, 1, 1], sizes).astype(np.int32)
        attributes = np.repeat([0, 1, 0, 1], sizes).astype(np.int32)
        signs = 2.0 * np.stack([classes, attributes], axis=1) - 1
        inputs = signs + rng.normal(size=signs.shape) * [1.5, 0.3]
        order = rng.permutation(len(classes))
        return GroupedSplit(inputs[order].astype(np.float32), classes[order], attributes[order])

    train = split((60, 4, 4, 60))
    hidden = train.attributes.copy()
    hidden[:unknown] = -1
    train = train._replace(attributes=hidden)
    held_out = split((9, 8, 7, 6)), split((10, 9, 8, 7))
    names = ("cow", "camel"), ("grass", "sand"), " on "
    made = grouped.GroupedData(train, *held_out, *names)
    return dataclasses.replace(made, **options)


@pytest.mark.parametrize(
    "known, unknown, names, sizes",
    [
        ("groups", 0, ["cow on grass", "cow on sand", "camel on grass", "camel on sand"], None),
        ("classes", 0, ["cow", "camel"], [64, 64]),
        ("nothing", 128, ["all examples"], [128]),
        ("groups", 128, ["cow on unknown", "camel on unknown"], [64, 64]),
    ],
)
def test_tasks_are_what_training_knows(known, unknown, names, sizes):
    made = problems.groups(data(unknown), MODEL, known=known)
    assert list(made.task_names) == names
    assert made.sizes.tolist() == (sizes or [60, 4, 4, 60])
    assert made.measured == data().group_names
    # The rows of a task are those of its groups.
    arrays, train = made.on_device.arrays, data(unknown).train
    start = 0
    for task, size in enumerate(made.sizes):
        rows = np.asarray(arrays["inputs"][start : start + size])
        mine = {"groups": data(unknown).groups("train"), "classes": train.classes}.get(known)
        if unknown:
            mine = train.classes if known == "groups" else np.zeros(128)
        np.testing.assert_array_equal(rows, train.inputs[mine == task])
        start += size


def test_partly_known_groups_are_beside_those_of_each_class():
    made = problems.groups(data(unknown=50), MODEL)
    names = [*data().group_names, "cow on unknown", "camel on unknown"]
    assert set(made.task_names) <= set(names) and sum(made.sizes) == 128
    assert made.sizes[-2:].sum() == 50


def test_accuracy_is_that_of_each_group():
    given, params = data(), np.array([[-1.0, 1.0], [-0.5, 0.5]], np.float32)
    found = problems.groups(given, MODEL, known="classes").evaluate(params, "test")["accuracy"]
    right = np.argmax(given.test.inputs @ params, axis=1) == given.test.classes
    expected = [right[given.groups("test") == group].mean() for group in range(4)]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_groups_to_evaluate_may_overlap():
    members = [
        np.stack([split.classes == 1, split.inputs[:, 0] > 0, split.inputs[:, 1] > 0])
        for split in (data().train, data().validation, data().test)
    ]
    given = data(evaluation=EvaluationGroups(("camel", "right", "up"), *members))
    params = np.array([[-1.0, 1.0], [-0.5, 0.5]], np.float32)
    made = problems.groups(given, MODEL)
    assert made.num_tasks == 4 and made.measured == ("camel", "right", "up")
    right = np.argmax(given.test.inputs @ params, axis=1) == given.test.classes
    expected = [right[mine].mean() for mine in members[2]]
    np.testing.assert_allclose(made.evaluate(params, "test")["accuracy"], expected, rtol=1e-6)


@pytest.mark.usefixtures("unpainted")
def test_weights_are_of_what_is_trained_and_values_of_what_is_measured(tmp_path):
    """RWG lifts the worst group; the record and its report tell the two apart."""
    options = {
        "problem": problems.groups(data(), MODEL, known="groups"),
        "methods": [Method("ERM", "erm"), Method("Groups", "average")],
        "seeds": (0, 1, 2),
        "optimizer": optax.sgd(0.3),
        "schedule": Schedule(60, 30, 60),
        "batch_size": 32,
    }
    record = compare.compare(**calls.parts(tmp_path / "groups", **options))
    worst = {run.method: run.evaluations[-1].worst for run in record.runs if run.seed == 0}
    assert worst["Groups"] > worst["ERM"]
    options |= {
        "problem": problems.groups(data(), MODEL, known="classes"),
        "methods": [Method("Group DRO", "group_dro", {"weight_lr": 0.1})],
    }
    record = compare.compare(**calls.parts(tmp_path / "classes", **options))
    assert record.task_names == list(data().group_names)
    assert record.tasks == record.trained_names == ["cow", "camel"]
    for run in record.runs:
        assert list(run.evaluations[0].per_task) == record.task_names
        assert run.weights.values.shape == (2, 2)
    again = results.load_results(tmp_path / "classes" / "results.json")
    assert again.tasks == ["cow", "camel"]
    assert (tmp_path / "classes" / "report.html").exists()


@pytest.mark.parametrize(
    "wrong, said",
    [
        (lambda: problems.groups(data(), MODEL, known="all"), "known must be one of 'groups'"),
        (lambda: problems.groups(data().train, MODEL), "data must be a GroupedData"),
        (
            lambda: problems.groups(data(class_names=("cow", "camel", "yak")), MODEL),
            "training examples of each class, but has none of yak",
        ),
        (
            lambda: problems.groups(data(attribute_names=("grass", "sand", "snow")), MODEL),
            r"data.validation must have an example of each group to evaluate, .*cow on snow",
        ),
    ],
)
def test_bad_input_is_one_line(wrong, said):
    with pytest.raises(ValueError, match=said) as error:
        wrong()
    assert "\n" not in str(error.value)


def test_a_direction_by_group_is_of_what_is_measured():
    made = problems.groups(data(), MODEL, known="nothing")
    made.metrics = (base.Metric("accuracy", dict.fromkeys(made.measured, True)),)
    made.check_names()
    made.metrics = (base.Metric("accuracy", dict.fromkeys(made.task_names, True)),)
    with pytest.raises(ValueError, match="for each of the tasks"):
        made.check_names()

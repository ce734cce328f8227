"""Rows with labels of several tasks: losses, missing labels, and metrics of others' libraries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from helpers import labelled
from sklearn import metrics as sklearn_metrics

from ldro_jax import problems
from ldro_jax.problems import Metric
from ldro_jax.problems.tables import Table, TableProblem

INPUTS, TARGETS = labelled.arrays()
LINEAR = (
    lambda key, inputs: {"w": jax.random.normal(key, (labelled.FEATURES, 3))},
    lambda params, inputs: inputs @ params["w"],
)


def linear(loss=labelled.squared, metrics=None, table=None):
    table = table or labelled.table()
    splits = dict.fromkeys(("train", "validation", "test"), table)
    return TableProblem(splits, LINEAR, loss, metrics or {labelled.LOSS_ERROR: labelled.squared})


def test_losses_count_the_labels_that_are_there():
    problem = linear()
    params, rows = problem.init(jax.random.key(0)), problem.on_device.arrays
    found = problem.training_losses(params, rows)
    mask = np.isfinite(TARGETS)
    expected = np.where(mask, (INPUTS @ np.asarray(params["w"]) - TARGETS) ** 2, 0)
    np.testing.assert_allclose(found.sums, expected, rtol=1e-5)
    np.testing.assert_array_equal(found.counts, mask)
    np.testing.assert_allclose(problem.labels, [mask.mean(axis=0)])
    np.testing.assert_array_equal(problem.sizes, mask.sum(axis=0))


def test_a_function_for_each_task_is_one_for_all():
    # Of outputs in a dictionary as well, which are taken task by task.
    one = linear()
    each = linear(dict.fromkeys(labelled.TASKS, labelled.squared))
    in_dictionary = TableProblem(
        dict.fromkeys(("train", "validation", "test"), labelled.table()),
        (
            LINEAR[0],
            lambda p, x: {t: x @ p["w"][:, i] for i, t in reversed([*enumerate(labelled.TASKS)])},
        ),
        labelled.squared,
        {labelled.LOSS_ERROR: labelled.squared},
    )
    params = one.init(jax.random.key(0))
    expected = one.training_losses(params, one.on_device.arrays)
    for other in (each, in_dictionary):
        found = other.training_losses(params, other.on_device.arrays)
        np.testing.assert_allclose(found.sums, expected.sums, rtol=1e-5)


@pytest.mark.parametrize("loss", [labelled.squared, labelled.entropy, "log"])
@pytest.mark.parametrize("given", ["one for all", "each"])
def test_a_missing_label_has_no_gradient_even_where_outputs_are_infinite(loss, given):
    if loss == "log":
        # Infinite at the zero that stands for a missing label.
        loss = lambda outputs, rows: -rows["targets"] * jnp.log(outputs)  # noqa: E731
    inputs = INPUTS.copy()
    inputs[0] = np.finfo(np.float32).max
    targets = np.abs(TARGETS)
    targets[0] = np.nan
    table = Table(inputs, dict(zip(labelled.TASKS, targets.T, strict=True)))
    problem = linear(
        loss if given == "one for all" else dict.fromkeys(labelled.TASKS, loss), None, table
    )
    params = {"w": jnp.full((labelled.FEATURES, 3), 2.0)}
    assert np.isinf(problem.apply(params, inputs)[0]).all()

    def of_rows(params, where):
        rows = jax.tree.map(lambda x: x[np.array(where)], problem.on_device.arrays)
        return problem.training_losses(params, rows).sums.sum(axis=0)

    jacobian = jax.jit(jax.jacrev(of_rows), static_argnums=1)
    np.testing.assert_array_equal(jacobian(params, (0,))["w"], 0)
    others = jacobian(params, tuple(range(1, 9)))["w"]
    assert np.isfinite(others).all() and np.abs(others).max() > 0
    np.testing.assert_allclose(jacobian(params, tuple(range(9)))["w"], others, rtol=1e-5)


def test_metrics_are_those_of_numpy_and_scikit_learn():
    is_right = Metric("accuracy", higher_is_better=True)
    auroc = Metric("AUROC", higher_is_better=True)
    classes = np.where(np.isnan(TARGETS), np.nan, TARGETS > 0).astype(np.float32)
    table = Table(INPUTS, dict(zip(labelled.TASKS, classes.T, strict=True)))
    problem = linear(
        labelled.entropy,
        {
            is_right: lambda outputs, rows: (outputs > 0) == (rows["targets"] > 0.5),
            auroc: lambda outputs, rows: sklearn_metrics.roc_auc_score(rows["targets"], outputs),
        },
        table,
    )
    params = problem.init(jax.random.key(0))
    # JAX can't trace scikit-learn's, so they must be tried.
    assert not problem.check_evaluation(params)
    found = problem.evaluate(params, "test")
    for i in range(3):
        there = np.isfinite(classes[:, i])
        outputs, targets = (INPUTS @ np.asarray(params["w"]))[there, i], classes[there, i]
        assert found["accuracy"][i] == pytest.approx(((outputs > 0) == targets).mean())
        assert found["AUROC"][i] == pytest.approx(sklearn_metrics.roc_auc_score(targets, outputs))


def test_from_arrays_takes_tables():
    table = labelled.table()
    problem = problems.from_arrays(
        table,
        model=nn.Dense(3),
        loss=labelled.squared,
        metrics={labelled.LOSS_ERROR: labelled.squared},
        validation=table,
        test=table,
    )
    assert isinstance(problem, TableProblem) and problem.task_names == labelled.TASKS
    assert problem.tables is None and problem.num_tables == 1


def test_tables_that_differ_have_their_own_rows():
    problem = labelled.two_tables()
    assert problem.task_names == ("sum", "sign", "product")
    assert problem.tables == {"wide": 2, "narrow": 1}
    source = problem.source(0)
    rows = source.rows(np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1]))
    assert rows["wide"]["inputs"].shape == (2, 4) and rows["narrow"]["inputs"]["x"].shape == (2, 2)
    params = problem.init(jax.random.key(0))
    whole = problem.training_losses(params, rows)
    assert whole.sums.shape == (4, 3)
    np.testing.assert_array_equal(whole.counts[:2, :2], rows["wide"]["labelled"])
    np.testing.assert_array_equal(whole.counts[2:], [[0, 0, 1]] * 2)
    assert not whole.counts[:2, 2].any()
    part = problem.training_losses(params, {"wide": rows["wide"]})
    np.testing.assert_allclose(part.sums, whole.sums[:2], rtol=1e-6)


WRONG = {
    "another task": (
        lambda: Table(INPUTS, {"a": TARGETS[:, 0]}),
        "validation must be a Table with the tasks",
    ),
    "too few targets": (
        lambda: Table(INPUTS, dict(zip(labelled.TASKS, TARGETS[:3].T, strict=True))),
        r"validation\.targets\['a'\] must be an array \[24, \.\.\.\]",
    ),
    "no label": (
        lambda: Table(INPUTS, dict(zip(labelled.TASKS, (TARGETS * np.nan).T, strict=True))),
        r"validation\.targets\['a'\] must be at least one row with a label",
    ),
    "infinite": (
        lambda: Table(INPUTS, dict(zip(labelled.TASKS, (TARGETS / 0).T, strict=True))),
        "must be targets that are finite, or missing as a whole",
    ),
    "a mask of numbers": (
        lambda: labelled.table()._replace(labelled={"a": np.ones(24)}),
        r"validation\.labelled\['a'\] must be a mask of bools",
    ),
    "a mask of no task": (
        lambda: labelled.table()._replace(labelled={"d": np.ones(24, bool)}),
        r"validation\.labelled must be masks of",
    ),
    "other inputs": (
        lambda: labelled.table()._replace(inputs=INPUTS[:, :2]),
        "validation must be rows as in training",
    ),
    "no table": (lambda: INPUTS, "validation must be a Table, or a dictionary"),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_what_does_not_fit_is_refused(name):
    make, message = WRONG[name]
    table = labelled.table()
    with pytest.raises(ValueError, match=message):
        TableProblem(
            {"train": table, "validation": make(), "test": table},
            LINEAR,
            labelled.squared,
            {labelled.LOSS_ERROR: labelled.squared},
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": {"a": labelled.squared}}, r"loss must be a function .* for each of the tasks"),
        ({"loss": lambda outputs, rows: 0.0}, "loss must return one number for each of 24 rows"),
        ({"metrics": {}}, "metrics must be a dictionary from a Metric"),
    ],
)
def test_functions_that_do_not_fit_are_refused(options, message):
    options = {
        "loss": labelled.squared,
        "metrics": {labelled.LOSS_ERROR: labelled.squared},
    } | options
    splits = dict.fromkeys(("train", "validation", "test"), labelled.table())
    with pytest.raises(ValueError, match=message):
        problem = TableProblem(splits, LINEAR, options["loss"], options["metrics"])
        problem.training_losses(problem.init(jax.random.key(0)), problem.on_device.arrays)


def test_outputs_must_tell_the_tasks_apart():
    table = labelled.table()
    splits = dict.fromkeys(("train", "validation", "test"), table)
    with pytest.raises(ValueError, match=r"a dictionary by task, or in one array \[R, 3, \.\.\.\]"):
        TableProblem(splits, nn.Dense(2), labelled.squared, {labelled.LOSS_ERROR: labelled.squared})

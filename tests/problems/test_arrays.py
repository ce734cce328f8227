"""Problems of a user's arrays: what is checked, what rows are, and what is measured."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

from ldro_jax import problems
from ldro_jax.problems import classifiers
from ldro_jax.tasks.base import content

ERROR = problems.Metric("error", higher_is_better=False)


def squared(outputs, rows):
    return jnp.sum((outputs - rows["targets"]) ** 2, axis=-1)


def data(seed, sizes=(5, 3)):
    rng = np.random.default_rng(seed)
    return {
        f"task {i}": (
            rng.normal(size=(size, 4)).astype(np.float32),
            rng.normal(size=(size, 2)).astype(np.float32),
        )
        for i, size in enumerate(sizes)
    }


# A pair of functions whose second output has no rows.
PER_TASK = (
    lambda key, inputs: jnp.ones(2),
    lambda params, inputs: (inputs[:, :2], params),
)


def make(model=None, **options):
    given = {
        "train": data(0),
        "validation": data(1, (2, 6)),
        "test": data(2),
        "loss": squared,
        "metrics": {ERROR: squared},
        **options,
    }
    return problems.from_arrays(given.pop("train"), model=model or nn.Dense(2), **given)


class Network(nnx.Module):
    def __init__(self, rngs):
        self.layer = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, inputs):
        return self.layer(inputs)


FORMS = {
    "linen": nn.Dense(2),
    "nnx class": Network,
    "nnx function": lambda rngs: nnx.Sequential(nnx.Linear(4, 2, rngs=rngs), nnx.tanh),
    "functions": (
        lambda key, inputs: jax.random.normal(key, (inputs.shape[-1], 2)),
        lambda params, inputs: inputs @ params,
    ),
}
# Two largest ones, so that a group of rows that is computed at once holds more than one task.
SIZES = (1, 7, 200, 7, 200)


def covariance(outputs, rows):
    """Of the first output and target, spread over rows that have no value without the others."""
    ours, theirs = outputs[:, 0], rows["targets"][:, 0]
    return (ours - ours.mean()) * (theirs - theirs.mean())


METRICS = {
    "rows": squared,
    "spread": covariance,
    "whole": lambda outputs, rows: jnp.mean(covariance(outputs, rows)),
    "worst": lambda outputs, rows: jnp.max(squared(outputs, rows)),
    "count": lambda outputs, rows: len(rows["targets"]),
    "task": lambda outputs, rows: rows["task"],
    "first": lambda outputs, rows: rows["inputs"][:, 0],
}


@pytest.mark.parametrize("form", FORMS)
def test_every_task_is_measured_on_its_own_rows_by_functions_of_all_of_them(form):
    held_out = data(1, SIZES)
    problem = make(
        FORMS[form],
        train=data(0, SIZES[::-1]),
        validation=held_out,
        test=data(2, SIZES),
        metrics={problems.Metric(name, False): metric for name, metric in METRICS.items()},
    )
    params = problem.init(jax.random.key(0))
    found = problem.evaluate(params, "validation")
    for task, (x, y) in enumerate(held_out.values()):
        outputs = np.asarray(problem.apply(params, x), np.float64)
        errors = np.sum((outputs - y) ** 2, axis=1)
        together = np.cov(outputs[:, 0], y[:, 0], bias=True)[0, 1] if len(x) > 1 else 0
        expected = [errors.mean(), together, together, errors.max(), len(x), task, x[:, 0].mean()]
        mine = [found[name][task] for name in METRICS]
        # Sums of 200 numbers of the order of 1 in float32.
        np.testing.assert_allclose(mine, expected, rtol=1e-5, atol=1e-6)
    other = problem.evaluate(params, "test")
    assert all(np.any(other[name] != found[name]) for name in ("rows", "spread", "whole", "first"))


def test_a_correlation_is_that_of_numpy_in_either_form():
    def spread(outputs, rows):
        ours, theirs = outputs[:, 0], rows["targets"][:, 0]
        return covariance(outputs, rows) / (jnp.std(ours) * jnp.std(theirs))

    def whole(outputs, rows):
        return jnp.corrcoef(outputs[:, 0], rows["targets"][:, 0])[0, 1]

    metrics = {problems.Metric(f.__name__, True): f for f in (spread, whole)}
    held_out = data(1, (12, 300))
    problem = make(metrics=metrics, validation=held_out)
    params = problem.init(jax.random.key(0))
    expected = [
        np.corrcoef(np.asarray(problem.apply(params, x))[:, 0], y[:, 0])[0, 1]
        for x, y in held_out.values()
    ]
    assert abs(expected[0]) > 0.1
    for values in problem.evaluate(params, "validation").values():
        np.testing.assert_allclose(values, expected, rtol=1e-4)


def test_what_holds_for_all_rows_is_one():
    # Of these sizes n · (1/n) is less than 1 in float32.
    sizes = tuple(n for n in range(1, 99) if np.float32(n) * (np.float32(1) / np.float32(n)) < 1)
    assert len(sizes) > 3
    metric = problems.Metric("holds", True)
    problem = make(
        validation=data(1, sizes),
        train=data(0, sizes),
        test=data(2, sizes),
        metrics={metric: lambda outputs, rows: jnp.ones(len(outputs), bool)},
    )
    values = problem.evaluate(problem.init(jax.random.key(0)), "validation")["holds"]
    np.testing.assert_array_equal(values, 1)


def test_a_small_task_takes_little_room():
    problem = make(train=data(0, SIZES), validation=data(1, SIZES), test=data(2, SIZES))
    bytes_of_rows = sum(SIZES) * (4 + 2) * 4
    placed = [problem.on_device.arrays, *(problem._placed[name][:2] for name in problem.splits)]
    for arrays in [*placed, problem.source(0)._split[:2]]:
        assert sum(x.nbytes for x in jax.tree.leaves(arrays)) == bytes_of_rows


def test_data_of_tasks_of_one_size_is_known_from_before():
    # Checkpoints and records of 0.1.0 have this digest, of arrays [task, example, ...].
    splits = [data(seed, (5, 5)) for seed in range(3)]
    problem = make(**dict(zip(("train", "validation", "test"), splits, strict=True)))
    stacked = [
        array
        for split in splits
        for array in (*map(np.stack, zip(*split.values(), strict=True)), np.array([5, 5], np.int32))
    ]
    assert problem.identity["content"] == content(stacked)


def test_rows_on_the_device_are_those_of_their_task():
    train = data(0, SIZES)
    taken = make(train=train, validation=train, test=train).on_device
    tasks, indices = np.array([4, 0, 2, 1, 3]), np.array([199, 0, 0, 6, 3])
    rows = jax.jit(taken.take)(taken.arrays, jax.random.key(0), 0, tasks, indices)
    for row, (task, index) in enumerate(zip(tasks, indices, strict=True)):
        for part, array in zip(("inputs", "targets"), train[f"task {task}"], strict=True):
            np.testing.assert_array_equal(rows[part][row], array[index])
    assert rows["task"].tolist() == tasks.tolist()


def test_the_source_gives_each_example_once_in_an_epoch_with_its_task():
    train = data(0)
    source = make(train=train).source(3)
    rows = source.rows(np.array([0] * 5 + [1] * 6), np.array([*range(5), *range(6)]))
    assert rows["task"].tolist() == [0] * 5 + [1] * 6
    for task, (first, last) in enumerate([(0, 5), (5, 8)]):
        inputs, targets = train[f"task {task}"]
        order = [
            np.flatnonzero((inputs == row).all(axis=1)).item() for row in rows["inputs"][first:last]
        ]
        assert sorted(order) == list(range(len(inputs)))
        np.testing.assert_array_equal(rows["targets"][first:last], targets[order])
    again = make(train=train).source(3).rows(np.array([1]), np.array([5]))
    np.testing.assert_array_equal(again["inputs"][0], rows["inputs"][-1])


def test_models_of_linen_nnx_and_functions_are_the_same_to_the_problem():
    for form, count in zip(FORMS, (10, 10, 10, 8), strict=True):
        problem = make(FORMS[form])
        params = problem.init(jax.random.key(0))
        assert sum(x.size for x in jax.tree.leaves(params)) == count
        rows = problem.source(0).rows(np.array([0, 1]), np.array([0, 0]))
        gradient = jax.jit(jax.grad(lambda p, r=rows, q=problem: q.row_losses(p, r).sum()))(params)
        assert jax.tree.structure(gradient) == jax.tree.structure(params)
        outputs = problem.apply(params, rows["inputs"])
        np.testing.assert_allclose(
            problem.row_losses(params, rows), squared(outputs, rows), rtol=1e-6
        )


def changed(name, change):
    arrays = data(0)
    arrays["task 1"] = change(*arrays["task 1"])
    return {name: arrays}


@pytest.mark.parametrize(
    "options, message",
    [
        ({"train": {}}, "train must be a dictionary"),
        ({"train": [1]}, "train must be a dictionary"),
        ({"test": {"task 0": 1}}, r"test must be a dictionary of the tasks \['task 0', 'task 1'\]"),
        (changed("train", lambda x, y: x), r"train\['task 1'\] must be a pair"),
        (changed("test", lambda x, y: (x, y[1:])), r"test\['task 1'\] must have as many inputs as"),
        (changed("train", lambda x, y: (x[:0], y[:0])), "and at least one"),
        (changed("train", lambda x, y: (x[:, 1:], y)), r"inputs of the shape \[4\]"),
        (changed("test", lambda x, y: (x, y.astype(int))), "dtype float32, as the first task has"),
        (changed("validation", lambda x, y: (x * np.nan, y)), "inputs that are finite"),
        (changed("train", lambda x, y: (x.astype(str), y)), "inputs that are numbers"),
        ({"metrics": {}}, "metrics must be a dictionary"),
        ({"metrics": {"error": squared}}, "metrics must be a Metric"),
        ({"loss": "mse"}, "loss must be"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"metrics": {ERROR: lambda outputs, rows: outputs}},
            r"\[2\], or one for all.*lambda.*\[2, 2\]",
        ),
        ({"model": PER_TASK}, r"an output for each of 6 rows.*output\[1\] has the shape \(2,\)"),
    ],
)
def test_what_is_not_of_the_rows_is_refused_before_training(options, message):
    problem = make(**options)
    with pytest.raises(ValueError, match=message):
        problem.check_evaluation(jax.eval_shape(problem.init, jax.random.key(0)))


def test_accuracy_among_the_classes_of_the_task():
    classes = np.array([[True, True, False], [False, False, True]])
    outputs = jnp.array([[0.1, 0.2, 0.9], [0.5, 0.4, 0.1], [0.9, 0.5, 0.1]])
    rows = {"task": jnp.array([0, 0, 1]), "targets": jnp.array([1, 1, 2])}
    assert problems.accuracy(outputs, rows).tolist() == [False, False, False]
    within = classifiers.accuracy_within(classes)
    assert within(outputs, rows).tolist() == [True, False, True]


def test_cross_entropy_is_optax_of_the_targets():
    logits = jnp.array([[1.0, 2.0], [0.5, -1.0]])
    rows = {"targets": jnp.array([0, 1])}
    expected = optax.softmax_cross_entropy_with_integer_labels(logits, rows["targets"])
    np.testing.assert_array_equal(problems.cross_entropy(logits, rows), expected)

"""Problems of a user's arrays: what is checked, what rows are, and what is measured."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

from ldro_jax import problems
from ldro_jax.problems import classifiers, models

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


def test_every_task_is_measured_on_its_own_examples():
    problem = make()
    params = problem.init(jax.random.key(0))
    for split, held_out in (("validation", data(1, (2, 6))), ("test", data(2))):
        found = problem.evaluate(params, split)["error"]
        kernel, bias = np.asarray(params["kernel"]), np.asarray(params["bias"])
        expected = [
            np.mean(np.sum((x @ kernel + bias - y) ** 2, axis=1)) for x, y in held_out.values()
        ]
        np.testing.assert_allclose(found, expected, rtol=1e-5)


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


class Network(nnx.Module):
    def __init__(self, rngs):
        self.layer = nnx.Linear(4, 2, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, deterministic=True, rngs=rngs)

    def __call__(self, inputs):
        return self.dropout(self.layer(inputs))


class WithStatistics(nnx.Module):
    def __init__(self, rngs):
        self.layer = nnx.BatchNorm(4, rngs=rngs)

    def __call__(self, inputs):
        return self.layer(inputs)


def test_models_of_linen_nnx_and_functions_are_the_same_to_the_problem():
    functions = (
        lambda key, inputs: {"kernel": jnp.ones((inputs.shape[-1], 2))},
        lambda params, inputs: inputs @ params["kernel"],
    )
    for model, count in [(nn.Dense(2), 10), (Network, 10), (functions, 8)]:
        problem = make(model)
        params = problem.init(jax.random.key(0))
        assert sum(x.size for x in jax.tree.leaves(params)) == count
        rows = problem.source(0).rows(np.array([0, 1]), np.array([0, 0]))
        gradient = jax.jit(jax.grad(lambda p, r=rows, q=problem: q.row_losses(p, r).sum()))(params)
        assert jax.tree.structure(gradient) == jax.tree.structure(params)
        outputs = problem.apply(params, rows["inputs"])
        np.testing.assert_allclose(
            problem.row_losses(params, rows), squared(outputs, rows), rtol=1e-6
        )


def test_an_nnx_model_computes_what_it_computes_outside():
    problem = make(Network)
    params = problem.init(jax.random.key(1))
    inputs = jnp.asarray(data(0)["task 0"][0])
    expected = Network(nnx.Rngs(jax.random.key(1)))(inputs)
    np.testing.assert_allclose(problem.apply(params, inputs), expected, rtol=1e-6)


@pytest.mark.parametrize(
    "model, message",
    [
        (3, "model must be a flax.linen.Module"),
        (lambda rngs: 3, "model must be a function of rngs that makes a flax.nnx.Module"),
        (nn.BatchNorm(use_running_average=True), "BatchNorm has batch_stats as well"),
        (WithStatistics, "WithStatistics has layer as well"),
    ],
)
def test_a_model_with_something_else_than_parameters_is_refused(model, message):
    with pytest.raises(ValueError, match=message):
        make(model).init(jax.random.key(0))


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
        (changed("test", lambda x, y: (x, y[1:])), r"test\['task 1'\] must be as many inputs as"),
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


def test_a_metric_that_is_not_one_value_for_each_row_is_refused():
    problem = make(metrics={ERROR: lambda outputs, rows: jnp.mean(outputs)})
    with pytest.raises(ValueError, match="metrics must give one value for each row"):
        problem.check_evaluation(jax.eval_shape(problem.init, jax.random.key(0)))


def test_accuracy_among_the_classes_of_the_task():
    classes = np.array([[True, True, False], [False, False, True]])
    outputs = jnp.array([[0.1, 0.2, 0.9], [0.5, 0.4, 0.1], [0.9, 0.5, 0.1]])
    rows = {"task": jnp.array([0, 0, 1]), "targets": jnp.array([1, 1, 2])}
    assert problems.accuracy(outputs, rows).tolist() == [False, False, False]
    within = classifiers.accuracy_within(classes)
    assert within(outputs, rows).tolist() == [True, False, True]


def test_functions_are_taken_as_they_are():
    init, apply = (lambda key, inputs: 0), (lambda params, inputs: inputs)
    assert models.as_functions((init, apply)) == models.Functions(init, apply)


def test_cross_entropy_is_optax_of_the_targets():
    logits = jnp.array([[1.0, 2.0], [0.5, -1.0]])
    rows = {"targets": jnp.array([0, 1])}
    expected = optax.softmax_cross_entropy_with_integer_labels(logits, rows["targets"])
    np.testing.assert_array_equal(problems.cross_entropy(logits, rows), expected)

"""A compiled stretch of steps is a plain loop over gradients of one task after another."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
import tiny
from jax import flatten_util

from ldro_jax import transform
from ldro_jax.models import mlp
from ldro_jax.tasks import sampling
from ldro_jax.training import step as step_lib
from ldro_jax.training.method import Method

N, STEPS = 3, 8
MODEL = mlp.MLP(num_classes=2, features=(4,))
LEARNING_RATE, WEIGHT_LR, LOOKAHEAD_LR = 0.3, 0.7, 0.5
LOOKAHEAD = {"lookahead_lr": LOOKAHEAD_LR, "weight_lr": WEIGHT_LR}
METHODS = {
    "average": Method("Average", "average"),
    "group_dro": Method("DRO", "group_dro", {"weight_lr": WEIGHT_LR}),
    "lookahead k=1": Method("L-DRO", "lookahead_online", LOOKAHEAD, interaction_interval=1),
    "lookahead k=3": Method("L-DRO", "lookahead_online", LOOKAHEAD, interaction_interval=3),
}


def apply(params, inputs):
    return MODEL.apply({"params": params}, inputs)


def optimizer():
    return optax.sgd(LEARNING_RATE, momentum=0.9)


@pytest.fixture(scope="module")
def start():
    return jax.jit(MODEL.init)(jax.random.key(0), jnp.zeros((1, 2)))["params"]


@jax.jit
@jax.value_and_grad
def loss_and_gradient(params, inputs, labels):
    """Cross-entropy of one task's examples, written out."""
    logits = apply(params, inputs)
    highest = jnp.max(logits, axis=1, keepdims=True)
    normaliser = highest[:, 0] + jnp.log(jnp.sum(jnp.exp(logits - highest), axis=1))
    return jnp.mean(normaliser - jnp.take_along_axis(logits, labels[:, None], 1)[:, 0])


def losses_and_gradients(params, train, tasks, indices):
    """Of each task by itself: losses [N], gradients [N, D] in one vector, and who is there."""
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    losses, gradients = np.zeros(N), np.zeros((N, size))
    present = np.array([(tasks == task).any() for task in range(N)])
    for task in np.flatnonzero(present):
        rows = indices[tasks == task]
        loss, gradient = loss_and_gradient(
            params, train.inputs[task, rows], train.labels[task, rows]
        )
        losses[task] = loss
        leaves = [np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(gradient)]
        gradients[task] = np.concatenate(leaves)
    return losses, gradients, present


def plain_loop(name, params, train, drawn, measured_on):
    """Steps one by one in NumPy: parameters, weights and the mean of the losses."""
    _, unravel = flatten_util.ravel_pytree(params)
    tx = optimizer()
    opt_state = jax.jit(tx.init)(params)

    @jax.jit
    def descend(params, opt_state, gradient):
        updates, opt_state = tx.update(unravel(gradient), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    weights, losses, interaction = np.full(N, 1 / N), np.zeros(N), np.zeros((N, N))
    seen = []
    for step in range(STEPS):
        found, gradients, present = losses_and_gradients(
            params, train, drawn.task[step], drawn.index[step]
        )
        # An absent task keeps its last loss.
        losses = np.where(present, found, losses)
        if name == "group_dro":
            weights = oracles.group_dro_step(losses, weights, WEIGHT_LR)
        elif name.startswith("lookahead"):
            if step % int(name[-1]) == 0:
                _, others, everyone = losses_and_gradients(
                    params, train, measured_on.task[step], measured_on.index[step]
                )
                assert everyone.all()
                interaction = oracles.normalized(others @ others.T)
            weights = oracles.lookahead_step(losses, interaction, weights, LOOKAHEAD_LR, WEIGHT_LR)
        # The gradient of an absent task is zero.
        params, opt_state = descend(params, opt_state, np.float32(weights @ gradients))
        seen.append(losses)
    return params, weights, np.mean(seen, axis=0)


@functools.cache
def draws(sampler, batch_size):
    """What a run trains on and measures the interaction on."""
    batches = step_lib.Batches(sampler, batch_size, np.array([40, 32, 40]))

    @jax.jit
    def both(key):
        drawn = batches.draw(key, jnp.int32(0), STEPS)
        return drawn, batches.draw_for_interaction(key, jnp.int32(0), STEPS, drawn)

    return batches, *jax.tree.map(np.asarray, both(jax.random.key(5)))


def taken(name, params, batches):
    """The same with `train_steps`, in two stretches."""
    method = METHODS[name]

    def make_tx(rates):
        return optax.chain(method.transform(N, rates), optimizer())

    stretch = jax.jit(step_lib.train_steps(apply, make_tx, method, STEPS // 2, batches))
    opt_state = jax.jit(make_tx({}).init)(params)
    state = step_lib.TrainState(jnp.zeros([], jnp.int32), params, opt_state)
    rates = {rate: np.float32(value) for rate, value in method.rates().items()}
    losses = []
    for _ in range(2):
        state, mean = stretch(rates, state, tiny.data().train, jax.random.key(5))
        losses.append(np.asarray(mean))
    return state, np.mean(losses, axis=0)


def assert_same(name, start, sampler, batch_size):
    batches, drawn, measured_on = draws(sampler, batch_size)
    state, losses = taken(name, start, batches)
    params, weights, expected = plain_loop(name, start, tiny.data().train, drawn, measured_on)
    assert state.step == STEPS
    # Eight steps in float32, which amplify the first one's rounding a little.
    close = {"rtol": 1e-4, "atol": 1e-5}
    np.testing.assert_allclose(losses, expected, **close)
    np.testing.assert_allclose(transform.find_state(state.opt_state).weights, weights, **close)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **close), state.params, params)
    return drawn, weights


@pytest.mark.parametrize("name", METHODS)
def test_balanced_steps_are_a_plain_loop(name, start):
    # Ten examples for three tasks: they take turns in having four.
    drawn, weights = assert_same(name, start, "balanced", 10)
    assert {int(n) for row in drawn.task for n in np.bincount(row)} == {3, 4}
    assert (np.ptp(weights) > 0.01) == (name != "average")


@pytest.mark.parametrize("name", ["average", "group_dro", "lookahead k=3"])
def test_uniform_steps_with_an_absent_task_are_a_plain_loop(name, start):
    drawn, weights = assert_same(name, start, "uniform", 2)
    # Two examples of three tasks: one is always absent.
    assert all(len(set(row)) < N for row in drawn.task.tolist())
    assert (np.ptp(weights) > 0.01) == (name != "average")


def batches(sampler, batch_size, sizes=(40, 32, 40)):
    return step_lib.Batches(sampler, batch_size, np.array(sizes))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            batches("stratified", 10),
            "sampler must be one of 'balanced', 'uniform', .* 'stratified'",
        ),
        (
            batches("balanced", 2),
            "batch_size must be at least 3, an example of each task, but it is 2",
        ),
        (batches("uniform", 0), "batch_size must be a positive integer, but it is 0"),
    ],
)
def test_batches_that_can_not_be_drawn_are_an_error(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong.check()


@pytest.mark.parametrize("right", [batches("balanced", 3), batches("uniform", 1)], ids=str)
def test_the_smallest_batches_can_be_drawn(right):
    right.check()


def test_the_interaction_is_measured_on_the_balanced_batch_itself():
    some = batches("balanced", 10)
    drawn = sampling.Draw(jnp.zeros((1, 10)), jnp.zeros((1, 10)))
    assert some.draw_for_interaction(jax.random.key(0), jnp.int32(0), 1, drawn) is drawn


def test_the_interaction_of_uniform_batches_is_measured_on_every_task():
    some, drawn, measured_on = draws("uniform", 10)
    assert drawn.task.shape == measured_on.task.shape == (STEPS, 10)
    per_step = (measured_on.task[:, :, None] == np.arange(N)).sum(axis=1)
    assert per_step.min() >= 1 and per_step.max() == some.capacity
    # Examples of its own, not those that a balanced run of the same seed trains on.
    _, balanced, _ = draws("balanced", 10)
    assert not np.array_equal(measured_on.index, balanced.index)


def test_a_uniform_batch_smaller_than_the_tasks_still_measures_each():
    some, drawn, measured_on = draws("uniform", 2)
    assert drawn.task.shape == (STEPS, 2) and some.capacity == 1
    assert (measured_on.task == np.arange(N)).all()


@pytest.mark.parametrize(
    ("batch_size", "capacity"), [(1, 1), (3, 1), (4, 2), (6, 2), (10, 4), (12, 4)]
)
def test_the_capacity_is_the_largest_share(batch_size, capacity):
    assert batches("uniform", batch_size).capacity == capacity


def test_task_means_leave_an_absent_task_at_zero(dtype):
    values = jnp.array([1.0, 2.0, 4.0, 9.0], dtype)
    task = jnp.array([3, 0, 3, 0], jnp.int32)
    means, present = jax.jit(step_lib.task_means, static_argnums=2)(values, task, 4)
    np.testing.assert_array_equal(means, [5.5, 0, 0, 2.5])
    np.testing.assert_array_equal(present, [True, False, False, True])
    assert means.dtype == dtype


def test_one_tasks_loss_that_is_not_a_number_stays_its_own():
    values = jnp.array([1.0, jnp.nan, 3.0])
    task = jnp.array([0, 1, 0], jnp.int32)
    means, _ = step_lib.task_means(values, task, 3)
    np.testing.assert_array_equal(means, [2, np.nan, 0])


def test_example_losses_are_the_cross_entropy():
    logits = np.array([[1.0, 3.0], [0.5, -2.0], [100.0, -100.0]], np.float32)
    labels = jnp.array([0, 0, 1], jnp.int32)
    batch = {"inputs": jnp.asarray(logits), "labels": labels}
    found = step_lib.example_losses(lambda params, x: x * params, jnp.float32(1), batch)
    exponentials = np.exp(logits.astype(np.float64))
    shares = exponentials[range(3), np.asarray(labels)] / exponentials.sum(axis=1)
    np.testing.assert_allclose(found, -np.log(shares), rtol=1e-5)

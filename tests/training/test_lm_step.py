"""A step of a language model is a plain loop over the gradients of one row after another."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest
import tiny_lm
from flax.core import meta
from jax import flatten_util

from ldro_jax import interaction, transform
from ldro_jax.tasks import sequences
from ldro_jax.training import lm_step
from ldro_jax.training.method import Method
from ldro_jax.training.step import TrainState

N, STEPS = 4, 4
LEARNING_RATE, WEIGHT_LR, LOOKAHEAD_LR = 0.3, 0.4, 0.5
LOOKAHEAD = {"lookahead_lr": LOOKAHEAD_LR, "weight_lr": WEIGHT_LR}
GROUP_DRO = Method("DRO", "group_dro", {"weight_lr": WEIGHT_LR})
EVERY, EVERY_SECOND = (
    Method("L-DRO", "lookahead_online", LOOKAHEAD, interaction_interval=k) for k in (1, 2)
)
MIXING = Method("Mixing", "static_mixing", {"sizes": (8.0, 4.0, 2.0, 1.0), "exponent": 1.0})
MIXED_WEIGHTS = np.array([8, 4, 2, 1]) / 15
# Different for every task, and not the weights.
PROBABILITIES = np.array([0.1, 0.2, 0.4, 0.3])
# A few steps in float32: sums in another order, and what the steps make of the rounding.
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(scope="module", autouse=True)
def _quickly():
    with tiny_lm.compiled_quickly():
        yield


@functools.cache
def model(name):
    """Losses of rows, the gradient of one row's loss, and where to start."""
    module = {
        "bigram": tiny_lm.Bigram,
        "decoder": tiny_lm.make_decoder,
        "scanned": functools.partial(tiny_lm.make_decoder, num_layers=2, scan_layers=True),
    }[name](vocab_size=tiny_lm.PADDED_VOCAB)
    start = jax.jit(module.init)(jax.random.key(3), jnp.zeros((1, tiny_lm.LENGTH), jnp.int32))

    def row_losses(params, tokens):
        return module.apply({"params": params}, tokens).mean(axis=1)

    def row_loss(params, row):
        return row_losses(params, row[None])[0]

    return row_losses, jax.jit(jax.value_and_grad(row_loss)), meta.unbox(start)["params"]


def balanced(steps=STEPS, size=tiny_lm.BATCH_SIZE):
    """Batches of rows of all tasks in turn, by default four of each."""
    source = sequences.ShuffledSequences(tiny_lm.corpus().train, tiny_lm.LENGTH, 0)
    drawn = np.zeros(N, np.int64)
    for _ in range(steps):
        draw = sequences.draw_balanced(drawn, size)
        drawn = draw.drawn
        rows = [np.flatnonzero(draw.tasks == task) for task in range(N)]
        where = np.full((N, max(map(len, rows))), -1, np.int32)
        for task, mine in enumerate(rows):
            where[task, : len(mine)] = mine
        yield lm_step.Batch(
            source.rows(draw.tasks, draw.indices),
            draw.tasks,
            np.float32([len(mine) / size for mine in rows]),
            by_task=where if size % N else None,
        )


def mixed(tasks, *, measured=False):
    """Batches of rows of these tasks; with others, of every task, to measure the interaction on."""
    source = sequences.ShuffledSequences(tiny_lm.corpus().train, tiny_lm.LENGTH, 1)
    others = [batch.tokens for batch in balanced(len(tasks))] if measured else [None] * len(tasks)
    for step, (some, other) in enumerate(zip(tasks, others, strict=True)):
        rows = source.rows(some, step * len(some) + np.arange(len(some)))
        yield lm_step.Batch(rows, np.int32(some), np.float32(PROBABILITIES), other)


def of_rows(name, params, rows):
    """Losses [R] and gradients [R, D] of rows, one after another."""
    found = [model(name)[1](params, row) for row in rows]
    gradients = [np.asarray(flatten_util.ravel_pytree(g)[0], np.float64) for _, g in found]
    return np.array([loss for loss, _ in found], np.float64), np.array(gradients)


def gram(name, params, tokens, tasks):
    """Inner products of the gradients of the tasks."""
    _, gradients = of_rows(name, params, tokens)
    means = np.array([gradients[tasks == task].mean(axis=0) for task in range(N)])
    return means @ means.T


def plain_loop(name, method, batches):
    """Losses, weights, interaction and parameters after every step."""
    params = model(name)[2]
    _, unravel = flatten_util.ravel_pytree(params)
    losses, weights, matrix = np.zeros(N), np.full(N, 1 / N), np.zeros((N, N))
    for step, batch in enumerate(batches):
        values, gradients = of_rows(name, params, batch.tokens)
        for task in set(batch.tasks.tolist()):  # an absent task keeps its last loss
            losses[task] = values[batch.tasks == task].mean()
        if method.weighting == "group_dro":
            weights = oracles.group_dro_step(losses, weights, WEIGHT_LR)
        elif method.uses_interaction:
            if step % method.interaction_interval == 0:
                measured_on = batch.tokens, batch.tasks
                if batch.interaction_tokens is not None:
                    measured_on = batch.interaction_tokens, np.arange(tiny_lm.BATCH_SIZE) % N
                matrix = gram(name, params, *measured_on)
            seen = oracles.normalized(matrix)
            weights = oracles.lookahead_step(losses, seen, weights, LOOKAHEAD_LR, WEIGHT_LR)
        counts = (weights / np.float64(batch.probabilities))[batch.tasks] / len(batch.tasks)
        gradient = unravel(np.float32(counts @ gradients))
        params = jax.tree.map(lambda p, g: p - LEARNING_RATE * g, params, gradient)
        yield losses.copy(), weights, matrix, params


_STEPS = {}


def start_and_step(name, method, strategy="auto", **options):
    key = (name, method.program(), strategy, *options.items())
    if key not in _STEPS:
        _STEPS[key] = _start_and_step(name, method, strategy, **options)
    return _STEPS[key]


def _start_and_step(name, method, strategy, **options):
    row_losses, _, params = model(name)

    def make_tx(rates):
        return optax.chain(method.transform(N, rates), optax.sgd(LEARNING_RATE))

    step = lm_step.train_step(row_losses, make_tx, N, interaction.get(strategy), **options)
    state = TrainState(jnp.zeros([], jnp.int32), params, make_tx({}).init(params))
    return state, functools.partial(jax.jit(step), jax.tree.map(np.float32, method.rates()))


def taken(name, method, batches, strategy="auto", **options):
    """The same with `train_step`."""
    state, step = start_and_step(name, method, strategy, **options)
    for batch in batches:
        state, losses = step(state, batch)
        found = transform.find_state(state.opt_state)
        yield losses, found.weights, found.interaction, state.params


def assert_same(found, expected):
    pairs = list(zip(found, expected, strict=True))
    assert len(pairs) > 1
    for ours, theirs in pairs:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), ours, theirs)
    _, weights, _, _ = pairs[-1][0]
    assert np.ptp(weights) > 0.01


@pytest.mark.parametrize(
    ("name", "method"),
    [("bigram", GROUP_DRO), ("decoder", EVERY_SECOND), ("scanned", EVERY_SECOND)],
    ids=["group DRO", "L-DRO", "L-DRO, scanned layers"],
)
def test_balanced_steps_are_a_plain_loop(name, method):
    assert_same(taken(name, method, balanced()), plain_loop(name, method, balanced()))


# Every task is absent once, and some rows are of one task alone.
TASKS = np.array([[0, 0, 2, 1], [2, 2, 2, 3], [3, 0, 3, 1], [1, 1, 1, 1]])


@pytest.mark.parametrize("method", [GROUP_DRO, EVERY_SECOND], ids=["group DRO", "L-DRO"])
def test_steps_on_random_rows_with_absent_tasks_are_a_plain_loop(method):
    # Without rows to measure the interaction on there is no interaction of an absent task.
    batches = list(mixed(TASKS, measured=method.uses_interaction))
    assert_same(taken("bigram", method, batches), plain_loop("bigram", method, batches))


@pytest.mark.parametrize("microbatches", [2, 4])
def test_the_parts_of_a_batch_make_no_difference(microbatches):
    # Neither to the weights, which wait for the losses of all parts. No part has rows of every
    # task: of the balanced batch, part 0 of 2 has those of the tasks 0 and 2.
    batches = list(balanced())
    found = taken("bigram", EVERY_SECOND, batches, microbatches=microbatches)
    assert_same(found, plain_loop("bigram", EVERY_SECOND, batches))


# One that holds all gradients at once, one that computes them one after another, and one that never
# holds them.
@pytest.mark.parametrize("strategy", ["vmap", "scan", "tiled"])
def test_gradients_that_serve_for_both_are_the_same(strategy):
    found = taken("bigram", EVERY, balanced(), strategy, fused=True)
    assert_same(found, plain_loop("bigram", EVERY, balanced()))


@pytest.mark.parametrize("method", [EVERY, EVERY_SECOND], ids=["in every step", "now and then"])
def test_uneven_batches_are_a_plain_loop(method):
    # Ten rows of four tasks: they take turns in having three.
    batches = list(balanced(size=10))
    assert len({tuple(batch.tasks) for batch in batches}) > 1
    found = taken("bigram", method, batches, fused=method is EVERY)
    assert_same(found, plain_loop("bigram", method, batches))


@pytest.mark.parametrize(("rows", "measured"), [(None, 4), (1, 1), (2, 2)])
def test_the_interaction_is_measured_on_the_first_rows(rows, measured):
    # Filled up to eight rows of each task, of which those that are not real must not count.
    (batch,) = balanced(1)
    options = {"interaction_rows": rows, "multiple": 8}
    ((losses, _, matrix, _),) = taken("bigram", EVERY_SECOND, [batch], **options)
    params = model("bigram")[2]
    first = slice(measured * N)
    expected = gram("bigram", params, batch.tokens[first], batch.tasks[first])
    np.testing.assert_allclose(matrix, expected, **CLOSE)
    values, _ = of_rows("bigram", params, batch.tokens)
    np.testing.assert_allclose(losses, values.reshape(-1, N).mean(axis=0), **CLOSE)


def updates(method, batches, losses=None):
    """The gradient of each batch, all from the same start and the same last losses."""
    state, step = start_and_step("bigram", method)
    if losses is not None:
        first = state.opt_state[0]._replace(losses=jnp.float32(losses))
        state = state._replace(opt_state=(first, *state.opt_state[1:]))
    start, _ = flatten_util.ravel_pytree(state.params)
    for batch in batches:
        end, _ = flatten_util.ravel_pytree(step(state, batch)[0].params)
        yield np.float64(start - end) / LEARNING_RATE


@pytest.mark.parametrize("method", [MIXING, GROUP_DRO], ids=lambda method: method.name)
def test_the_gradient_of_random_rows_is_right_on_average(method):
    # Not by drawing many times: two rows of four tasks can be drawn in sixteen ways.
    (batch,) = balanced(1)
    rows = batch.tokens[:N]
    losses, gradients = of_rows("bigram", model("bigram")[2], rows)
    draws = list(itertools.product(range(N), repeat=2))
    chances = np.array([PROBABILITIES[list(draw)].prod() for draw in draws])
    batches = [
        lm_step.Batch(rows[list(draw)], np.int32(draw), np.float32(PROBABILITIES)) for draw in draws
    ]
    # With the losses known, the weights don't depend on the draw.
    average = chances @ np.array(list(updates(method, batches, losses)))
    weights = MIXED_WEIGHTS
    if method is GROUP_DRO:
        weights = oracles.group_dro_step(losses, np.full(N, 1 / N), WEIGHT_LR)
    # The differences of parameters around 1 have errors of 1e-7, divided by the learning rate.
    np.testing.assert_allclose(average, weights @ gradients, rtol=1e-4, atol=1e-6)
    assert np.abs(average).max() > 0.01


def test_rows_that_are_drawn_by_the_weights_count_all_the_same():
    (batch,) = mixed(np.array([[0, 2, 0, 0]]))
    batch = batch._replace(probabilities=np.float32(MIXED_WEIGHTS))
    (found,) = updates(MIXING, [batch])
    _, gradients = of_rows("bigram", model("bigram")[2], batch.tokens)
    np.testing.assert_allclose(found, gradients.mean(axis=0), rtol=1e-4, atol=1e-6)

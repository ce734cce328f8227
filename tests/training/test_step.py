"""One training step is a plain loop over the gradients of one row after another."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.core import meta
from helpers import oracles, plain_loop, tiny, tiny_lm
from jax import flatten_util

from ldro_jax import interaction, transform
from ldro_jax.measuring import Batch, Plan
from ldro_jax.tasks import drawing
from ldro_jax.training import step as step_lib
from ldro_jax.training.method import Method

STEPS, LEARNING_RATE, WEIGHT_LR = 4, 0.3, 0.4
LOOKAHEAD = {"lookahead_lr": 0.5, "weight_lr": WEIGHT_LR}
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


@functools.cache
def problem(name):
    """The problem, the gradient of one row's loss, and where to start."""
    if name == "images":
        found = tiny.problem()
    else:
        model = {
            "bigram": tiny_lm.Bigram,
            "decoder": tiny_lm.make_decoder,
            "scanned": functools.partial(tiny_lm.make_decoder, num_layers=2, scan_layers=True),
        }[name]
        found = tiny_lm.problem(model=model)

    def row_loss(params, row):
        return found.row_losses(params, jax.tree.map(lambda x: jnp.asarray(x)[None], row))[0]

    params = meta.unbox(jax.jit(found.init)(jax.random.key(3)))
    return found, jax.jit(jax.value_and_grad(row_loss)), params


def balanced(name="bigram", steps=STEPS, size=tiny_lm.BATCH_SIZE):
    """Batches of rows of all tasks in turn; of the four languages, four of each."""
    found = problem(name)[0]
    source = found.source(0)
    drawer = drawing.Drawer("balanced", size, np.zeros(found.num_tasks, np.int64))
    for _ in range(steps):
        (draw, drawer), where = drawer.next(), None
        if size % found.num_tasks:
            where = np.full((found.num_tasks, -(-size // found.num_tasks)), -1, np.int32)
            for task in range(found.num_tasks):
                mine = np.flatnonzero(draw.tasks == task)
                where[task, : len(mine)] = mine
        counts = np.bincount(draw.tasks).astype(np.float32)
        rows = source.rows(draw.tasks, draw.indices)
        yield Batch(rows, draw.tasks, counts, by_task=where)


def mixed(tasks, *, measured=False):
    """Batches of rows of these tasks; with others, of every task, to measure the interaction on."""
    source = problem("bigram")[0].source(1)
    others = [batch.rows for batch in balanced(steps=len(tasks))]
    for step, (some, other) in enumerate(zip(tasks, others, strict=True)):
        rows = source.rows(some, step * len(some) + np.arange(len(some)))
        expected = np.float32(PROBABILITIES * len(some))
        yield Batch(rows, np.int32(some), expected, other if measured else None)


def expected_of(name, method, batches):
    """The same written out."""
    num_tasks, (_, gradient_of_row, params) = problem(name)[0].num_tasks, problem(name)
    steps = []
    for batch in batches:
        measured = None
        if batch.measured is not None:
            measured = batch.measured, np.arange(len(batch.measured)) % num_tasks
        steps.append(plain_loop.Step(batch.rows, batch.tasks, batch.expected, measured))
    return plain_loop.taken(gradient_of_row, params, method, steps, learning_rate=LEARNING_RATE)


_STEPS = {}


def start_and_step(name, method, strategy="auto", **options):
    key = (name, method.compile_key(), strategy, *options.items())
    if key not in _STEPS:
        _STEPS[key] = _start_and_step(name, method, strategy, **options)
    return _STEPS[key]


def _start_and_step(name, method, strategy, **options):
    found, _, params = problem(name)

    def make_tx(rates):
        return optax.chain(method.transform(found.num_tasks, rates), optax.sgd(LEARNING_RATE))

    interval = method.interval if method.uses_interaction else None
    plan = Plan(found.num_tasks, interaction.get(strategy), interval, **options)
    step = step_lib.train_step(found.training_losses, make_tx, plan)
    state = step_lib.TrainState(jnp.zeros([], jnp.int32), params, make_tx({}).init(params))
    return state, functools.partial(jax.jit(step), jax.tree.map(np.float32, method.rates()))


def taken(name, method, batches, strategy="auto", **options):
    state, step = start_and_step(name, method, strategy, **options)
    for number, batch in enumerate(batches):
        state, losses = step(state, batch)
        found = transform.find_state(state.opt_state)
        assert state.step == number + 1
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
    [
        ("images", EVERY_SECOND),
        ("bigram", GROUP_DRO),
        ("decoder", EVERY_SECOND),
        ("scanned", EVERY_SECOND),
    ],
    ids=["images", "group DRO", "L-DRO", "L-DRO, scanned layers"],
)
def test_balanced_steps_are_a_plain_loop(name, method):
    size = 12 if name == "images" else tiny_lm.BATCH_SIZE
    batches = list(balanced(name, size=size))
    assert_same(taken(name, method, batches), expected_of(name, method, batches))


# Every task is absent once, and some rows are of one task alone.
TASKS = np.array([[0, 0, 2, 1], [2, 2, 2, 3], [3, 0, 3, 1], [1, 1, 1, 1]])


@pytest.mark.parametrize("method", [GROUP_DRO, EVERY_SECOND], ids=["group DRO", "L-DRO"])
def test_steps_on_random_rows_with_absent_tasks_are_a_plain_loop(method):
    # Without rows to measure the interaction on there is no interaction of an absent task.
    batches = list(mixed(TASKS, measured=method.uses_interaction))
    assert_same(taken("bigram", method, batches), expected_of("bigram", method, batches))


def test_a_caller_may_have_tasks_count_by_their_means_whatever_their_rows():
    # By the numbers of rows that are there, from none to four.
    batches = [
        batch._replace(expected=np.bincount(batch.tasks, None, 4).astype(np.float32))
        for batch in mixed(TASKS)
    ]
    found = list(taken("bigram", GROUP_DRO, batches))
    assert_same(found, expected_of("bigram", GROUP_DRO, batches))


@pytest.mark.parametrize("microbatches", [2, 4])
def test_the_parts_of_a_batch_make_no_difference(microbatches):
    # Neither to the weights, which wait for the losses of all parts. No part has rows of every
    # task: of the balanced batch, part 0 of 2 has those of the tasks 0 and 2.
    batches = list(balanced())
    found = taken("bigram", EVERY_SECOND, batches, microbatches=microbatches)
    assert_same(found, expected_of("bigram", EVERY_SECOND, batches))


# One that holds all gradients at once, one that computes them one after another, and one that never
# holds them.
@pytest.mark.parametrize("strategy", ["vmap", "scan", "tiled"])
def test_gradients_that_serve_for_both_are_the_same(strategy):
    found = taken("bigram", EVERY, balanced(), strategy)
    assert_same(found, expected_of("bigram", EVERY, balanced()))


@pytest.mark.parametrize("method", [EVERY, EVERY_SECOND], ids=["in every step", "now and then"])
@pytest.mark.parametrize("name", ["images", "bigram"])
def test_uneven_batches_are_a_plain_loop(name, method):
    # Ten rows of three or four tasks: they take turns in having one more.
    batches = list(balanced(name, size=10))
    assert len({tuple(batch.tasks) for batch in batches}) > 1
    found = taken(name, method, batches)
    assert_same(found, expected_of(name, method, batches))


def test_halves_that_are_not_of_as_many_rows_do_not_serve_for_the_training_gradient():
    # Of three rows the mean over halves isn't that over rows.
    steps = []
    for fused in (False, True):
        halves = interaction.split("vmap", fused=fused)
        method = dataclasses.replace(EVERY, interaction=halves)
        steps.append(list(taken("bigram", method, balanced(size=10), halves)))
    assert_same(*steps)


@pytest.mark.parametrize(("rows", "measured"), [(None, 4), (1, 1), (2, 2)])
def test_the_interaction_is_measured_on_the_first_rows(rows, measured):
    # Filled up to eight rows of each task, of which those that are not real must not count.
    (batch,) = balanced(steps=1)
    options = {"rows": rows, "multiple": 8}
    ((losses, _, matrix, _),) = taken("bigram", EVERY_SECOND, [batch], **options)
    _, gradient_of_row, params = problem("bigram")
    first = slice(measured * 4)
    expected = plain_loop.gram(gradient_of_row, params, batch.rows[first], batch.tasks[first])
    np.testing.assert_allclose(matrix, expected, **CLOSE)
    values, _ = plain_loop.of_rows(gradient_of_row, params, batch.rows)
    np.testing.assert_allclose(losses, values.reshape(-1, 4).mean(axis=0), **CLOSE)


def updates(method, batches, losses=None):
    """The gradient of each batch, all from the same start and the same last losses."""
    state, step = start_and_step("bigram", method)
    if losses is not None:
        known = {"losses": jnp.float32(losses), "seen": jnp.ones(len(losses), bool)}
        first = state.opt_state[0]._replace(**known)
        state = state._replace(opt_state=(first, *state.opt_state[1:]))
    start, _ = flatten_util.ravel_pytree(state.params)
    for batch in batches:
        end, _ = flatten_util.ravel_pytree(step(state, batch)[0].params)
        yield np.float64(start - end) / LEARNING_RATE


@pytest.mark.parametrize("method", [MIXING, GROUP_DRO], ids=lambda method: method.name)
def test_the_gradient_of_random_rows_is_right_on_average(method):
    # Not by drawing many times: two rows of four tasks can be drawn in sixteen ways.
    (batch,) = balanced(steps=1)
    rows = batch.rows[:4]
    losses, gradients = plain_loop.of_rows(*problem("bigram")[1:], rows)
    ways = list(itertools.product(range(4), repeat=2))
    chances = np.array([PROBABILITIES[list(way)].prod() for way in ways])
    batches = [Batch(rows[list(way)], np.int32(way), np.float32(2 * PROBABILITIES)) for way in ways]
    # With the losses known, the weights don't depend on the draw.
    average = chances @ np.array(list(updates(method, batches, losses)))
    weights = MIXED_WEIGHTS
    if method is GROUP_DRO:
        weights = oracles.group_dro_step(losses, np.full(4, 1 / 4), WEIGHT_LR)
    # The differences of parameters around 1 have errors of 1e-7, divided by the learning rate.
    np.testing.assert_allclose(average, weights @ gradients, rtol=1e-4, atol=1e-6)
    assert np.abs(average).max() > 0.01


def test_rows_that_are_drawn_by_the_weights_count_all_the_same():
    (batch,) = mixed(np.array([[0, 2, 0, 0]]))
    batch = batch._replace(expected=np.float32(4 * MIXED_WEIGHTS))
    (found,) = updates(MIXING, [batch])
    _, gradients = plain_loop.of_rows(*problem("bigram")[1:], batch.rows)
    np.testing.assert_allclose(found, gradients.mean(axis=0), rtol=1e-4, atol=1e-6)

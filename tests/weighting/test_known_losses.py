"""Tasks that haven't appeared: the others train as if they weren't there, and they begin evenly."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import gram_methods
from weighting import test_battery as battery

from ldro_jax import transform, weighting
from ldro_jax.weighting import about, base

N = battery.N
# Those whose weights are a function of a Gram matrix are tested with its solvers.
OF_GRADIENTS = {*gram_methods.NAMES, *battery.GAMES, *battery.ITERATED}
FIXED = battery.named(lambda a: a.family == about.FIXED) - {"random_loss"}
NAMES = [name for name in battery.WEIGHTINGS if name not in OF_GRADIENTS]
# Wrappers, of methods whose own weights leave out unknown tasks, and options.
MORE = {
    "averaged term": lambda order: weighting.averaged(weighting.term(2.0), 0.7),
    "clipped term": lambda order: weighting.clipped(weighting.term(2.0), 0.05, 0.2),
    "doge without squares": lambda order: weighting.doge(0.01, own_square=False),
    "gradnorm softmax": lambda order: weighting.gradnorm(0.1, softmax=True),
    "skill_it all steps": lambda order: weighting.skill_it(
        0.1, skills=battery.GRAPH[np.ix_(order, order)], window=None
    ),
    "smoothed lookahead": lambda order: weighting.smoothed(
        weighting.lookahead_online(0.1, 0.5, relative=True), 0.9
    ),
    "smoothed pike": lambda order: weighting.smoothed(weighting.pike(0.02, noise_penalty=0.5), 0.9),
}
SUMS = {name: 1 for name in MORE if name != "clipped term"} | {"gradnorm softmax": N}
EVERY = {**{name: battery.WEIGHTINGS[name] for name in NAMES}, **MORE}
ADAPTIVE = [name for name in EVERY if name not in FIXED]


@functools.cache
def compiled(name, order=tuple(range(N))):
    method = EVERY[name](np.array(order))
    return method._replace(update=jax.jit(method.update))


def steps(known_at, count=4):
    """Statistics of some steps; where a task is unknown until a step, there is nonsense."""
    for step in range(count):
        known = np.asarray(known_at) <= step
        fresh = battery.statistics(seed=step)
        both = jnp.asarray(np.outer(known, known))
        yield fresh._replace(
            count=jnp.int32(step),
            losses=jnp.where(known, fresh.losses, -7.0),
            interaction=jnp.where(both, fresh.interaction, 13.0),
            noise=jnp.where(known, fresh.noise, 1e3),
            known=jnp.asarray(known),
        )


def part(statistics, order):
    """The statistics of a problem that has these tasks only."""
    return statistics._replace(
        losses=statistics.losses[order],
        interaction=statistics.interaction[np.ix_(order, order)],
        noise=statistics.noise[order],
        known=None,
    )


def trained(method, statistics, num_tasks=N):
    state, weights = method.init(num_tasks, jnp.float32), []
    for step in statistics:
        found, state = method.update(step, state)
        weights.append(np.asarray(found))
    return weights, state


@pytest.mark.parametrize("unknown", [[2], [2, 5]])
@pytest.mark.parametrize("name", [name for name in ADAPTIVE if name != "random_loss"])
def test_the_known_tasks_have_the_weights_of_a_problem_without_the_others(name, unknown):
    order = np.delete(np.arange(N), unknown)
    masked = list(steps(np.isin(np.arange(N), unknown) * 99))
    weights, state = trained(compiled(name), masked)
    numbered = name in {*battery.NUMBERED, "skill_it all steps"}
    alone = compiled(name, tuple(order)) if numbered else compiled(name)
    expected, _ = trained(alone, [part(step, order) for step in masked], len(order))
    for got, correct in zip(weights, expected, strict=True):
        np.testing.assert_array_equal(got[unknown], 0)
        # Sums in another order, over four steps.
        np.testing.assert_allclose(got[order], correct, rtol=2e-5, atol=1e-7)
    # One like it is sent to a logarithm or a division elsewhere.
    assert not any(jnp.isnan(leaf).any() for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize("name", sorted(FIXED))
def test_fixed_weights_stay_what_they_are(name):
    weights, _ = trained(compiled(name), steps(np.isin(np.arange(N), [2, 5]) * 99))
    without_mask, _ = trained(compiled(name), [s._replace(known=None) for s in steps([0] * N)])
    np.testing.assert_array_equal(weights, without_mask)


def test_random_weights_are_those_of_a_softmax_over_the_known():
    weights, _ = trained(compiled("random_loss"), steps([0, 99] * 4))
    full, _ = trained(compiled("random_loss"), steps([0] * N))
    for got, everything in zip(weights, full, strict=True):
        expected = np.where(np.arange(N) % 2, 0, everything)
        np.testing.assert_allclose(got, expected / expected.sum(), rtol=1e-5)


@pytest.mark.parametrize("name", EVERY)
def test_a_task_that_comes_late_is_weighed_from_then_on(name):
    late = np.where(np.arange(N) == 3, 2, 0)
    weights, state = trained(compiled(name), steps(late, 5))
    for step, found in enumerate(weights):
        assert np.isfinite(found).all()
        if name not in FIXED:
            assert step >= 2 or found[3] == 0
    total = (battery.SUMS | SUMS).get(name)
    if total is not None:
        before = total - 1 if total == N else 1
        np.testing.assert_allclose(weights[1].sum(), before, rtol=1e-5)
        np.testing.assert_allclose(weights[-1].sum(), total, rtol=1e-5)
    assert not any(jnp.isnan(leaf).any() for leaf in jax.tree.leaves(state))


# With a state that is moved by what the tasks differ in.
ONLINE = battery.named(lambda a: "w" in a.state.split(", ")) & set(weighting.ABOUT) - OF_GRADIENTS
ONLINE |= {
    "averaged term",
    "dwa",
    "famo between steps",
    "gradnorm softmax",
    "imtl_l",
    "uncertainty",
}


def level(step, known, num_tasks=N):
    """A step in which no task differs from another, so that no weight is moved."""
    return base.Statistics(
        jnp.int32(step),
        jnp.ones(num_tasks),
        jnp.zeros((num_tasks, num_tasks)),
        noise=jnp.zeros(num_tasks),
        known=known,
    )


@pytest.mark.parametrize("name", sorted(ONLINE))
def test_a_late_task_begins_with_the_mean_weight_and_leaves_the_others_ratios(name):
    make = {"baselined_dro": weighting.group_dro(0.3), "doremi": weighting.doremi([1.0] * N)}
    method = make.get(name)
    method = compiled(name) if method is None else method
    known = jnp.asarray(np.arange(N) != 3)
    others = np.flatnonzero(known)
    before = [s._replace(known=known) for s in steps([0] * N, 5)]
    weights, state = trained(method, before)
    last, _ = method.update(level(5, known), state)
    entered, _ = method.update(level(5, jnp.ones(N, bool)), state)
    ratios = np.asarray(entered)[others] / np.asarray(last)[others]
    if name in ("imtl_l", "uncertainty"):
        # Each task has a scale of its own, and begins as in the first step.
        first, _ = method.update(level(0, None), method.init(N, jnp.float32))
        np.testing.assert_allclose(entered[3], first[3], rtol=1e-5)
    elif name == "averaged term":
        # Its weight is that of the method, and the others' means make room.
        np.testing.assert_allclose(entered[3], 1 / N, rtol=1e-5)
        np.testing.assert_allclose(np.sum(entered), 1, rtol=1e-5)
        return
    elif name != "famo between steps":
        # In FAMO the weights also hold the losses. This step pulls those of regularised DRO nearer
        # to each other, which changes their mean.
        rounding = 1e-2 if name == "regularized_dro" else 1e-5
        mean = np.mean(np.asarray(entered)[others])
        np.testing.assert_allclose(entered[3], mean, rtol=rounding)
    if name not in ("doremi", "famo between steps"):
        # DoReMi gives every task a floor.
        np.testing.assert_allclose(ratios, ratios[0], rtol=1e-4)
    assert not np.allclose(weights[-1][others], weights[-1][0], rtol=1e-3)


@pytest.mark.parametrize("method", [weighting.imtl_l(0.1), weighting.uncertainty(0.1)])
def test_an_absent_task_gains_no_weight(method):
    # Counted as a loss of zero its weight would be 1e5 by its first row.
    tx = transform.weighted(method, 2)

    @jax.jit
    def step(state, present):
        arguments = {"losses": jnp.array([1.0, 3.0]), "pullback": lambda w: w[0]}
        return tx.update(None, state, jnp.ones([]), **arguments, present=present)[1]

    state = tx.init(jnp.ones([]))
    for _ in range(120):
        state = step(state, jnp.array([True, False]))
    state = step(state, jnp.array([True, True]))
    start, _ = method.update(level(0, None, 2), method.init(2, jnp.float32))
    np.testing.assert_allclose(state.weights[1], start[1], rtol=1e-6)


def test_dwa_counts_only_the_steps_in_which_a_task_was_known():
    # A window of 4; task 1 appears in its third step. The second window's losses are half of the
    # first's for both tasks, so their ratios are alike.
    method = weighting.dwa(window=4)
    state = method.init(2, jnp.float32)
    for step in range(9):
        loss = 1.0 if step < 4 else 0.5
        known = jnp.array([True, step >= 2])
        losses = jnp.array([loss, 10 * loss])
        weights, state = method.update(
            base.Statistics(jnp.int32(step), losses, jnp.eye(2), known=known), state
        )
    np.testing.assert_allclose(state.last, [0.5, 5.0])
    np.testing.assert_allclose(state.before_last, [1.0, 10.0])
    np.testing.assert_allclose(weights, [1, 1], rtol=1e-6)


def test_smoothed_means_are_over_the_steps_in_which_a_task_was_known():
    def seen(statistics, state):
        return jnp.concatenate([statistics.losses, statistics.interaction[0]]), state

    method = weighting.smoothed(base.Weighting(lambda n, d: (), seen, uses_interaction=True), 0.7)
    drawn = list(steps([0, 0, 2, *[0] * (N - 3)], 5))
    found, _ = trained(method, drawn)
    values = [np.concatenate([s.losses, s.interaction[0]]).astype(np.float64) for s in drawn]
    for last, row in enumerate(found):
        shares = 0.7 ** np.arange(last, -1, -1)
        expected = np.average(values[: last + 1], axis=0, weights=shares)
        late = [2, N + 2]
        expected[late] = 0
        if last >= 2:
            mean = np.average(values[2 : last + 1], axis=0, weights=shares[2:])
            expected[late] = mean[late]
        np.testing.assert_allclose(row, expected, rtol=1e-5)


def test_a_floor_is_spread_over_the_known_tasks():
    known = jnp.array([True, True, False])
    statistics = base.Statistics(jnp.int32(0), jnp.array([1.0, 9.0, 0]), jnp.eye(3), known=known)
    method = weighting.with_floor(weighting.interpolated(0.0), 0.5)
    weights, _ = method.update(statistics, method.init(3, jnp.float32))
    np.testing.assert_allclose(weights, [0.25, 0.75, 0])
    # One with fixed weights goes on as before.
    method = weighting.with_floor(weighting.static_mixing([1.0, 1.0, 2.0], exponent=1.0), 0.5)
    weights, _ = method.update(statistics, method.init(3, jnp.float32))
    np.testing.assert_allclose(weights, 0.5 * np.array([0.25, 0.25, 0.5]) + 0.5 / 3, rtol=1e-6)

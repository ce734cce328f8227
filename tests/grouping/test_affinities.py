"""Affinities are means over training of what a loop in NumPy finds, and change no weights."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import labelled, problems, tiny

from ldro_jax import grouping, interaction, transform, weighting
from ldro_jax.training.engine import Trial
from ldro_jax.training.method import Method

N, STEPS, RATE, STEP = 3, 5, 0.03, 0.1


def trained(problem, a_weighting, **options):
    """The parameters before each step, and the state after the last."""
    tx = optax.chain(transform.weighted(a_weighting, N, **options), optax.sgd(RATE))
    params, points = problem.params, []
    state, step = tx.init(params), problems.make_step(tx, problem)
    for _ in range(STEPS):
        points.append(np.asarray(params["w"], np.float64))
        params, state = step(params, state, problem.batch)
    return points, state


@pytest.mark.parametrize("interval", [1, 2])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_they_are_means_over_the_steps_that_measure(dtype, interval):
    with jax.enable_x64(dtype == "float64"):
        problem = problems.least_squares(jnp.dtype(dtype))
        made = grouping.tracked(weighting.group_dro(0.3))
        points, state = trained(problem, made, interaction_interval=interval)
        plain, plain_state = trained(problem, weighting.group_dro(0.3))
        oracle, expected = problems.least_squares_oracle(problem), []
        for w in points[::interval]:
            losses, gradients = oracle(w)
            matrix, lengths = gradients @ gradients.T, np.linalg.norm(gradients, axis=1)
            expected.append((matrix / losses[:, None], matrix / np.outer(lengths, lengths)))
        for kind, mean in zip(grouping.KINDS, np.mean(expected, axis=0), strict=True):
            found = grouping.affinity(state, kind)
            np.testing.assert_allclose(found, mean, rtol=2e-5 if dtype == "float32" else 1e-10)
        ours, theirs = map(transform.find_state, (state, plain_state))
        # Weights and parameters are those of the method alone.
        np.testing.assert_allclose(ours.weights, theirs.weights, rtol=1e-5)
        np.testing.assert_allclose(points, plain, rtol=1e-5)


def test_a_method_that_measures_does_so_as_often_as_before():
    assert grouping.tracked(weighting.average()).default_interval == 100
    own = weighting.lookahead_online(1.0, 0.1)
    assert grouping.tracked(own).default_interval == own.default_interval
    named = grouping.tracking("lookahead_online")
    assert Method("a", named, {"lookahead_lr": 1.0, "weight_lr": 0.1}).rates() == {
        "lookahead_lr": 1.0,
        "weight_lr": 0.1,
    }


def test_what_was_never_measured_is_no_number():
    state = grouping.tracked(weighting.average()).init(2, jnp.float32)
    assert np.isnan(grouping.affinity((optax.EmptyState(), state))).all()


def test_a_loss_of_zero_and_a_gradient_of_zero_have_no_affinity():
    made = grouping.tracked(weighting.average())
    losses, matrix = jnp.array([1.0, 0.0, 2.0]), jnp.diag(jnp.array([4.0, 1.0, 0.0]))
    known = jnp.ones(3, bool)
    statistics = weighting.Statistics(jnp.int32(0), losses, matrix, known=known)
    _, state = made.update(statistics, made.init(3, jnp.float32))
    first, cosine = (grouping.affinity(state, kind) for kind in grouping.KINDS)
    assert np.isnan(first[1]).all() and np.isfinite(first[[0, 2]]).all()
    assert np.isnan(cosine[2]).all() and np.isnan(cosine[:, 2]).all()
    np.testing.assert_array_equal(np.diagonal(cosine)[:2], 1)
    # A step without a new measurement adds nothing.
    stale = statistics._replace(losses=losses + 5, fresh=~known)
    np.testing.assert_array_equal(made.update(stale, state)[1].means, state.means)


def by_hand(oracle, w, step_size):
    """How far the losses fall by a step for each task, over the step size."""
    losses, gradients = oracle(w)
    after = np.array([oracle(w - step_size * g)[0] for g in gradients])
    return (losses[:, None] - after.T) / step_size


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_lookahead_takes_the_steps(dtype):
    with jax.enable_x64(dtype == "float64"):
        problem = problems.least_squares(jnp.dtype(dtype))
        oracle, w = problems.least_squares_oracle(problem), np.asarray(problem.params["w"])
        strategy = interaction.lookahead(0.2)
        matrix = jax.jit(functools.partial(strategy.matrix, problem.loss_fn))
        found = matrix(problem.params, problem.batch)
        tolerance = 1e-4 if dtype == "float32" else 1e-10
        np.testing.assert_allclose(found, by_hand(oracle, w, 0.2), rtol=tolerance)

        def losses_fn(params):
            return jax.vmap(problem.loss_fn, in_axes=(None, 0))(params, problem.batch)

        np.testing.assert_allclose(
            strategy.of_losses(losses_fn, problem.params), found, rtol=tolerance
        )
        # With a small step it is the interaction.
        gradients = oracle(w)[1]
        small = by_hand(oracle, w.astype(np.float64), 1e-6)
        np.testing.assert_allclose(small, gradients @ gradients.T, rtol=1e-4)
        # In the geometry of the optimizer the step is the optimizer's.
        scale = jnp.array([1.0, 0.5, 2.0, 0.1], dtype)
        scaled = interaction.preconditioned(strategy, {"w": scale})
        after = np.array([oracle(w - 0.2 * np.asarray(scale) * g)[0] for g in gradients])
        expected = (oracle(w)[0][:, None] - after.T) / 0.2
        found = scaled.matrix(problem.loss_fn, problem.params, problem.batch)
        np.testing.assert_allclose(found, expected, rtol=tolerance)


def test_tracking_lookahead_gives_tags_affinity():
    problem = problems.least_squares(jnp.float32)
    oracle = problems.least_squares_oracle(problem)
    made = grouping.tracked(weighting.average())
    points, state = trained(
        problem,
        made,
        interaction_interval=2,
        interaction=interaction.lookahead(RATE),
    )
    expected = [by_hand(oracle, w, RATE) / oracle(w)[0][:, None] for w in points[::2]]
    np.testing.assert_allclose(grouping.affinity(state), np.mean(expected, axis=0), rtol=1e-3)


def test_a_step_of_ones_own_may_have_momentum_and_decay():
    problem = problems.least_squares(jnp.float32)
    oracle, params = problems.least_squares_oracle(problem), problem.params
    tx = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(RATE, momentum=0.9))
    trace = {"w": jnp.array([1.0, -2.0, 0.5, 0.0])}
    _, (momentum, rate) = tx.init(params)
    state = (optax.EmptyState(), (momentum._replace(trace=trace), rate))

    def step(gradient):
        return optax.apply_updates(params, tx.update(gradient, state, params)[0])

    def losses_fn(params):
        return jax.vmap(problem.loss_fn, in_axes=(None, 0))(params, problem.batch)

    found = jax.jit(lambda params: grouping.lookahead(losses_fn, params, step))(params)
    w = np.asarray(params["w"], np.float64)
    losses, gradients = oracle(w)
    moved = [w - RATE * (g + 0.1 * w + 0.9 * np.asarray(trace["w"])) for g in gradients]
    after = np.array([oracle(each)[0] for each in moved]).T
    np.testing.assert_allclose(found, 1 - after / losses[:, None], rtol=1e-3, atol=1e-5)


def test_labels_of_several_tasks_have_it_in_the_trainer():
    """On the rows of a batch, some labels missing, from the one pass over all tasks."""

    def init(key, inputs):
        kernel = jax.random.normal(key, (inputs.shape[1], N))
        return {"bias": jnp.ones(N), "kernel": kernel}

    def apply(params, inputs):
        return inputs @ params["kernel"] + params["bias"][None]

    made = labelled.problem((init, apply))
    method = dataclasses.replace(
        tiny.AVERAGE,
        weighting=grouping.tracking("average"),
        interaction=interaction.lookahead(STEP),
        interaction_interval=1,
        shared=True,
    )
    # All rows in each batch, so that their order makes no difference.
    program = tiny.stacked(method, made, size=labelled.ROWS)
    trials = [Trial(method, 0)]
    start = program.start(trials).states
    bias, kernel = (np.asarray(x[0], np.float64) for x in jax.tree.leaves(start.params))
    states, *_ = program.run(program.settings(trials), start, 1)
    inputs, targets = labelled.arrays()
    there = ~np.isnan(targets)

    def oracle(params):
        misses = np.where(there, inputs @ params[:-1] + params[-1] - np.nan_to_num(targets), 0)
        columns = np.concatenate([inputs, np.ones((labelled.ROWS, 1))], axis=1)
        gradients = []
        for task in range(N):
            gradient = np.zeros_like(params)
            gradient[:, task] = 2 * columns.T @ misses[:, task] / there[:, task].sum()
            gradients.append(gradient)
        return (misses**2).sum(axis=0) / there.sum(axis=0), np.array(gradients)

    params = np.concatenate([kernel, bias[None]])
    expected = by_hand(oracle, params, STEP) / oracle(params)[0][:, None]
    state = program.start(trials).state(0, states)
    np.testing.assert_allclose(grouping.affinity(state.opt_state), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "wrong, said",
    [
        (lambda: grouping.affinity(optax.sgd(0.1).init({"w": jnp.zeros(2)})), "no affinities"),
        (lambda: grouping.affinity((), "gain"), "kind must be one of 'first order', 'cosine'"),
        (lambda: grouping.tracked("average"), "weighting must be a Weighting"),
        (lambda: interaction.lookahead(0.0), r"step_size must be .*\(0, inf\)"),
        (
            lambda: grouping.tracked(weighting.lookahead_online(1.0, 0.1).by_products),
            "needs the interaction matrix",
        ),
    ],
)
def test_bad_input_is_one_line(wrong, said):
    with pytest.raises(ValueError, match=said) as error:
        wrong()
    assert "\n" not in str(error.value)

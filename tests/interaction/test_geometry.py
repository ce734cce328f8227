"""Interactions in the optimizer's geometry, against a loop of gradients and Adam written out."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import oracles, problems
from jax import flatten_util

from ldro_jax import interaction, ldro, optimizers, transform, weighting
from ldro_jax.transform import preconditioner

B1, B2, EPS = 0.9, 0.99, 1e-6


def factors(params, seed=0):
    """Positive numbers of many sizes, like the parameters."""
    flat, unravel = flatten_util.ravel_pytree(params)
    generator = np.random.default_rng(seed)
    found = np.exp(generator.uniform(-3, 3, flat.size))
    return found, unravel(jnp.asarray(found, flat.dtype))


@pytest.mark.parametrize("name", [*interaction.STRATEGIES, "auto"])
def test_products_are_weighted(name, dtype):
    problem = problems.mlp(dtype)
    found, tree = factors(problem.params)
    gradients = oracles.task_gradients(problem.loss_fn, problem.params, problem.batch)
    expected = (gradients * found) @ gradients.T
    strategy = interaction.preconditioned(interaction.get(name), tree)
    matrix = jax.jit(lambda p, b: strategy.matrix(problem.loss_fn, p, b))(
        problem.params, problem.batch
    )
    tolerance = 1e-5 if dtype == "float32" else 1e-12
    np.testing.assert_allclose(matrix, expected, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("interval", [1, 2])
@pytest.mark.parametrize("form", ["tasks", "layout", "stacked"])
def test_every_form_takes_a_preconditioner(form, interval):
    problem = problems.mlp()
    found, tree = factors(problem.params)
    tx = transform.weighted(weighting.lookahead_online(0.1, 0.1), 5, interaction_interval=interval)
    updates, arguments = problems.form_arguments(form, problem, problem.params)
    _, state = jax.jit(lambda s, p: tx.update(updates, s, p, preconditioner=tree, **arguments))(
        tx.init(problem.params), problem.params
    )
    gradients = oracles.task_gradients(problem.loss_fn, problem.params, problem.batch)
    expected = (gradients * found) @ gradients.T
    np.testing.assert_allclose(state.interaction, expected, atol=1e-5 * np.abs(expected).max())


def test_a_step_of_adam_is_what_it_says(dtype):
    """The change of the losses by a small step of Adam for one task, without momentum."""
    problem = problems.least_squares(dtype)
    tx = optax.chain(transform.weighted(weighting.average(), 3), optax.scale_by_adam(0.0, B2, EPS))
    params, state = problem.params, tx.init(problem.params)
    flat, squares = [], np.zeros(4)
    ones = ldro.preconditioner(state, decay=B2, eps=EPS)
    np.testing.assert_array_equal(ones["w"], np.ones(4))
    for step in range(3):
        gradients = oracles.task_gradients(problem.loss_fn, params, problem.batch)
        squares = B2 * squares + (1 - B2) * gradients.mean(axis=0) ** 2
        with jax.numpy_dtype_promotion("standard"):  # Optax leaves conversions to JAX
            given = {"loss_fn": problem.loss_fn, "batch": problem.batch}
            updates, state = problems.update(tx, None, state, params, **given)
        expected = 1 / (np.sqrt(squares / (1 - B2 ** (step + 1))) + EPS)
        found = ldro.preconditioner(state, decay=B2, eps=EPS)
        np.testing.assert_allclose(found["w"], expected, rtol=1e-4)
        # The step that Adam took is that along the mean gradient in this geometry.
        np.testing.assert_allclose(updates["w"], expected * gradients.mean(axis=0), rtol=1e-4)
        params = jax.tree.map(lambda p, u: p - 0.01 * u, params, updates)
        flat.append(found)
    assert not np.allclose(flat[0]["w"], flat[2]["w"])


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        (optax.rmsprop(1.0, decay=0.0), lambda g: 1 / np.abs(g)),
        (optax.adagrad(1.0, initial_accumulator_value=0.0), lambda g: 1 / np.abs(g)),
        (optax.chain(optax.clip(1e9), optax.adamw(1.0)), lambda g: 1 / np.abs(g)),
        (optax.contrib.schedule_free(optax.adam(1.0, b1=0.0), 1.0), lambda g: 1 / np.abs(g)),
        (optax.contrib.schedule_free_adamw(1.0), lambda g: 1 / np.abs(g)),
    ],
    ids=["rmsprop", "adagrad", "adamw in a chain", "schedule_free", "schedule_free_adamw"],
)
def test_other_optimizers(optimizer, expected):
    params, gradient = jnp.ones(3), np.array([0.5, -2.0, 3.0], np.float32)
    with jax.numpy_dtype_promotion("standard"):
        _, state = optimizer.update(jnp.asarray(gradient), optimizer.init(params), params)
    np.testing.assert_allclose(ldro.preconditioner(state), expected(gradient), rtol=1e-3)


def test_a_parameter_without_a_past_counts_for_nothing():
    optimizer = optax.rmsprop(1.0, decay=0.9)
    _, state = optimizer.update(jnp.array([0.5, 0.0]), optimizer.init(jnp.ones(2)), jnp.ones(2))
    found = np.asarray(ldro.preconditioner(state))
    assert found[0] > 1 and found[1] == 0


def test_the_adam_of_a_weighting_is_not_that_of_the_parameters():
    chain = optax.chain(
        transform.weighted(weighting.famo(learning_rate=0.1), 2), optax.rmsprop(1.0)
    )
    assert ldro.preconditioner(chain.init(jnp.ones(3))).shape == (3,)
    chain = optax.chain(transform.weighted(weighting.famo(learning_rate=0.1), 2), optax.sgd(1.0))
    with pytest.raises(ValueError, match="holds 0"):
        ldro.preconditioner(chain.init(jnp.ones(2)))


def test_an_optimizer_without_sizes_is_refused():
    with pytest.raises(ValueError, match="one set of running squared gradients.*holds 0"):
        ldro.preconditioner(optax.sgd(0.1).init(jnp.ones(2)))


def test_it_does_not_fit_with_an_interaction_of_ones_own():
    problem = problems.mlp()
    tx = transform.weighted(weighting.lookahead_online(0.1, 0.1), 5)
    with pytest.raises(ValueError, match="preconditioner can't come with it"):
        tx.update(
            None,
            tx.init(problem.params),
            problem.params,
            losses_fn=problem.losses,
            interaction_fn=lambda p: jnp.eye(5),
            preconditioner=factors(problem.params)[1],
        )


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.chain(optax.clip_by_global_norm(0.1), optax.adamw(0.1, b2=0.9, weight_decay=0.1)),
        optimizers.adam(0.1, warmup_steps=2, train_steps=9, b2=0.9),
        optax.chain(optax.adaptive_grad_clip(0.01), optax.scale_by_adam(b2=0.9)),
        optax.contrib.schedule_free_adamw(0.1, b2=0.9),
    ],
)
def test_the_decay_of_an_adam_is_found(optimizer):
    shapes = {"a": jnp.ones((3, 2)), "b": jax.ShapeDtypeStruct((4,), "bfloat16")}
    assert preconditioner.decay_of(optimizer, shapes) == pytest.approx(0.9, rel=1e-2)


def test_a_decay_that_can_not_be_found_is_refused():
    # Nothing reaches it in two steps.
    slow = optax.MultiSteps(optax.adam(0.1), 3).gradient_transformation()
    with pytest.raises(ValueError, match="decay of the squared gradients can't be told"):
        preconditioner.decay_of(slow, jnp.ones(2))
    with pytest.raises(ValueError, match="needs one set of running squared gradients"):
        preconditioner.decay_of(optax.sgd(0.1), jnp.ones(2))
    assert preconditioner.decay_of(optax.rmsprop(0.1), jnp.ones(2)) == 0.999

"""Conflicts, similarity, noise and effective tasks, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import oracles, problems

from ldro_jax import interaction, ldro, transform, weighting
from ldro_jax.transform import diagnostics


def test_the_numbers_are_those_of_the_gradients(dtype):
    problem = problems.mlp(dtype)
    tx = transform.weighted(weighting.lookahead_online(0.1, 0.5), 5, interaction_interval=1)
    given = {"loss_fn": problem.loss_fn, "batch": problem.batch}
    _, state = problems.update(tx, None, tx.init(problem.params), problem.params, **given)
    found = jax.jit(ldro.diagnose)(state)
    rows = oracles.task_gradients(problem.loss_fn, problem.params, problem.batch)
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    pairs = (units @ units.T)[~np.eye(5, dtype=bool)]
    weights = np.asarray(state.weights, np.float64)
    np.testing.assert_allclose(found["similarity"], pairs.mean(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["conflicts"], (pairs < 0).mean(), rtol=1e-5)
    np.testing.assert_allclose(
        found["effective_tasks"], np.exp(-np.sum(weights * np.log(weights))), rtol=1e-5
    )
    assert np.isnan(found["noise"])
    assert set(found) == set(diagnostics.NAMES)


def test_the_noise_is_its_share_of_the_squared_gradient():
    problem = problems.mlp()
    even = jax.tree.map(lambda x: x if x.ndim == 1 else x[:, :8], problem.batch)
    tx = transform.weighted(
        weighting.lookahead_online(0.1, 0.5), 5, interaction="split", interaction_interval=1
    )
    given = {"loss_fn": problem.loss_fn, "batch": even}
    _, state = problems.update(tx, None, tx.init(problem.params), problem.params, **given)
    plain = np.diag(interaction.vmap().matrix(problem.loss_fn, problem.params, even))
    noise = plain - np.diag(state.interaction)
    np.testing.assert_allclose(state.noise, noise, rtol=1e-4, atol=1e-6)
    expected = np.mean(noise / np.maximum(plain, noise))
    np.testing.assert_allclose(ldro.diagnose(state)["noise"], expected, rtol=1e-4)


@pytest.mark.parametrize("num_tasks", [1, 3])
def test_what_was_not_measured_is_no_number(num_tasks):
    tx = transform.weighted(weighting.average(), num_tasks)
    found = ldro.diagnose(tx.init(jnp.ones(2)))
    assert np.isnan([found[name] for name in ("conflicts", "similarity", "noise")]).all()
    np.testing.assert_allclose(found["effective_tasks"], num_tasks, rtol=1e-6)


def test_the_descent_is_what_small_steps_do():
    problem, rate = problems.least_squares(), 1e-4
    tx = transform.weighted(weighting.lookahead_online(0.1, 0.5), 3, interaction_interval=1)
    chain = optax.chain(tx, optax.sgd(rate))
    first = np.asarray(problem.losses(problem.params))
    params, state = problems.train(chain, problem, 20)[-1]
    fall = first - np.asarray(problem.losses(params))
    found = rate * np.asarray(transform.find_state(state).descent)
    np.testing.assert_allclose(found, fall, rtol=0.02)

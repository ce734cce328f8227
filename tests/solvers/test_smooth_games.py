"""The smooth equilibrium against the equations that define it, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, special

from ldro_jax import games

SIZES = [1, 2, 5, 20, 64, 256]
TEMPERATURES = [(1.0, 1.0), (0.1, 0.1), (0.03, 0.3), (0.3, 0.03), (0.01, 0.01)]
solve = jax.jit(games.smooth_equilibrium)


def game(size, dtype, strength=1.0, seed=0):
    """Losses around one, and what each task's step takes from each loss."""
    rng = np.random.default_rng(seed)
    gradients = rng.normal(size=(size, 2 * size)) / np.sqrt(2 * size)
    gradients += 0.05 * rng.normal(size=2 * size)
    interaction = gradients @ gradients.T
    decrease = strength * interaction / np.sqrt(np.diag(interaction))[None, :]
    return jnp.asarray(np.exp(0.5 * rng.normal(size=size)), dtype), jnp.asarray(decrease, dtype)


def equilibrium(losses, decrease, tau, sigma, **start):
    dtype = losses.dtype
    found = solve(
        losses,
        decrease,
        column_temperature=jnp.asarray(tau, dtype),
        row_temperature=jnp.asarray(sigma, dtype),
        **start,
    )
    return np.asarray(found.weights, np.float64), np.asarray(found.adversary, np.float64), found


@pytest.mark.parametrize("tau, sigma", TEMPERATURES)
@pytest.mark.parametrize("size", SIZES)
def test_each_player_answers_the_other(size, tau, sigma, dtype):
    losses, decrease = game(size, dtype)
    w, v, found = equilibrium(losses, decrease, tau, sigma)
    losses, decrease = np.asarray(losses, np.float64), np.asarray(decrease, np.float64)
    # What is in the exponent was rounded in units of the payoffs.
    unit = (1 + np.abs(decrease).max()) / min(tau, sigma)
    tolerance = 20 * np.finfo(dtype).eps * max(unit, 1)
    np.testing.assert_allclose(w, special.softmax(decrease.T @ v / tau), atol=tolerance)
    expected = special.softmax((losses - decrease @ w) / sigma)
    np.testing.assert_allclose(v, expected, atol=tolerance)
    assert found.steps < 60


@pytest.mark.parametrize("size", [2, 5, 20])
def test_it_is_the_minimum_of_the_objective(size):
    tau, sigma = 0.2, 0.1
    losses, decrease = game(size, "float32", strength=2.0)
    w, _, _ = equilibrium(losses, decrease, tau, sigma)
    losses, decrease = np.asarray(losses, np.float64), np.asarray(decrease, np.float64)

    def objective(logits):
        weights = special.softmax(logits)
        value = sigma * special.logsumexp((losses - decrease @ weights) / sigma)
        return value + tau * np.sum(special.xlogy(weights, weights))

    best = optimize.minimize(objective, np.zeros(size), method="BFGS", options={"gtol": 1e-9})
    np.testing.assert_allclose(w, special.softmax(best.x), atol=1e-5)


def test_the_limits_are_those_that_are_promised():
    losses, decrease = game(10, "float32")
    w, _, _ = equilibrium(losses, decrease, 1e4, 0.1)
    np.testing.assert_allclose(w, 0.1, atol=1e-4)
    # Near zero it concedes what the game itself does.
    w, _, _ = equilibrium(losses, decrease, 1e-3, 1e-3)
    exact = games.max_entropy_nash(losses[:, None] - decrease)
    conceded = np.max(np.asarray(losses) - np.asarray(decrease) @ w)
    # Entropies are at most log N, in units of the temperatures.
    assert conceded <= float(exact.value) + 2 * 1e-3 * np.log(10) + 1e-5


@pytest.mark.parametrize("tau, sigma", TEMPERATURES)
def test_a_good_start_saves_steps_and_a_bad_one_changes_nothing(tau, sigma):
    losses, decrease = game(20, "float32")
    w, _, cold = equilibrium(losses, decrease, tau, sigma)
    again, _, warm = equilibrium(losses, decrease, tau, sigma, start=cold.weights)
    np.testing.assert_allclose(again, w, atol=2e-5)
    assert warm.steps <= min(cold.steps, 6)
    vertex = jnp.eye(20, dtype="float32")[3]
    other, _, _ = equilibrium(losses, decrease, tau, sigma, start=vertex)
    np.testing.assert_allclose(other, w, atol=2e-5)


def test_it_vmaps():
    both = [game(5, "float32", seed=seed) for seed in range(3)]
    losses, decrease = (jnp.stack(parts) for parts in zip(*both, strict=True))
    batched = jax.vmap(
        lambda a, b: (
            games.smooth_equilibrium(a, b, column_temperature=0.1, row_temperature=0.1).weights
        )
    )(losses, decrease)
    for row, (a, b) in zip(batched, both, strict=True):
        np.testing.assert_allclose(row, equilibrium(a, b, 0.1, 0.1)[0], atol=1e-5)


@pytest.mark.parametrize("temperature", [1e-4, 1e-9, 1e-30])
def test_at_low_temperatures_it_is_as_good_as_the_games_own(temperature, dtype):
    for seed in range(5):
        losses, decrease = game(8, dtype, strength=3.0, seed=seed)
        w, _, _ = equilibrium(losses, decrease, temperature, temperature)
        payoff = np.asarray(losses, np.float64)[:, None] - np.asarray(decrease, np.float64)
        program = optimize.linprog(
            [0.0] * 8 + [1.0],
            A_ub=np.column_stack([payoff, -np.ones(8)]),
            b_ub=np.zeros(8),
            A_eq=[[1.0] * 8 + [0.0]],
            b_eq=[1.0],
            bounds=[(0, None)] * 8 + [(None, None)],
        )
        assert np.max(payoff @ np.asarray(w, np.float64)) - program.fun < 3e-3 * np.ptp(payoff)

"""A task without rows so far doesn't play in the games of the lookahead methods."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldro_jax import games, weighting
from ldro_jax.weighting import base

N = 6
WEIGHTINGS = {
    "exact": lambda: weighting.lookahead_exact(0.5),
    "smooth": lambda: weighting.smooth_lookahead(0.5, 0.2, adversary_temperature=0.1),
}
# Weights follow the payoffs to their rounding times the conditioning of these games.
TOLERANCE = {"float32": 2e-4, "float64": 1e-7}


@functools.cache
def updater(name):
    return jax.jit(WEIGHTINGS[name]().update)


def measured(seed, known, dtype):
    """Statistics of which those of unknown tasks are zeros, and those of the known tasks alone."""
    rng = np.random.default_rng(seed)
    known = np.asarray(known)
    gradients = rng.normal(size=(len(known), 8)) * known[:, None]
    losses = np.exp(0.3 * rng.normal(size=len(known))) * known
    everything = base.Statistics(
        jnp.int32(3),
        jnp.asarray(losses, dtype),
        jnp.asarray(gradients @ gradients.T, dtype),
        known=jnp.asarray(known),
    )
    kept = np.flatnonzero(known)
    alone = base.Statistics(
        jnp.int32(3), everything.losses[kept], everything.interaction[kept][:, kept]
    )
    return everything, alone


def weights_of(name, statistics, state=None):
    made = WEIGHTINGS[name]()
    if state is None:
        state = made.init(statistics.losses.size, statistics.losses.dtype)
    weights, state = updater(name)(statistics, state)
    return np.asarray(weights, np.float64), state


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_the_known_tasks_weigh_what_they_do_alone(name, dtype):
    known = ~np.isin(np.arange(N), (0, 5))
    for seed in range(2):
        everything, alone = measured(seed, known, dtype)
        weights, state = weights_of(name, everything)
        expected, _ = weights_of(name, alone)
        np.testing.assert_allclose(weights[known], expected, atol=TOLERANCE[dtype])
        assert not weights[~known].any() and state.unsolved == 0


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_a_task_that_comes_late_takes_part_at_once(name, dtype):
    state = None
    for seed, known in enumerate([[1, 1, 1, 0, 1, 0], [1, 1, 1, 0, 1, 0], [1] * 6]):
        everything, _ = measured(seed, np.array(known, bool), dtype)
        weights, state = weights_of(name, everything, state)
    assert weights[[3, 5]].any()
    expected, _ = weights_of(name, everything)
    np.testing.assert_allclose(weights, expected, atol=TOLERANCE[dtype])
    assert state.unsolved == 0


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_what_is_said_of_an_unknown_task_makes_no_difference(name):
    known = np.arange(N) != 4
    everything, _ = measured(0, known, "float32")
    weights, _ = weights_of(name, everything)
    other = everything._replace(losses=everything.losses.at[4].set(1e3))
    np.testing.assert_array_equal(weights_of(name, other)[0], weights)


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_twins_share_and_a_permutation_permutes_also_under_vmap(name, dtype):
    made = WEIGHTINGS[name]()
    known = np.array([1, 1, 1, 0, 1, 1], bool)
    everything, _ = measured(1, known, dtype)
    # The last is the twin of the first; then the order is another.
    twins = np.array([0, 1, 2, 3, 4, 0])
    order = np.array([3, 5, 1, 0, 2, 4])

    def taken(of):
        return everything._replace(
            losses=everything.losses[of],
            interaction=everything.interaction[of][:, of],
            known=everything.known[of],
        )

    both = jax.tree.map(lambda *x: jnp.stack(x), taken(twins), taken(twins[order]))
    state = made.init(N, everything.losses.dtype)
    weights, _ = jax.jit(jax.vmap(made.update, in_axes=(0, None)))(both, state)
    np.testing.assert_allclose(weights[0][0], weights[0][5], atol=TOLERANCE[dtype])
    np.testing.assert_allclose(weights[1], weights[0][order], atol=TOLERANCE[dtype])
    assert not weights[0][3]


def test_a_mask_of_another_shape_is_an_error():
    with pytest.raises(ValueError, match=r"one bool for each row .* found shape \(2,\)"):
        games.max_entropy_nash(jnp.eye(3), jnp.ones(2, bool))


@pytest.mark.parametrize("name", ["exact", "smooth"])
def test_a_solver_that_fails_is_counted(name, monkeypatch):
    """One step of Newton's method solves no game."""
    module, steps = (games.newton, "MAX_STEPS") if name == "exact" else (games.smooth, "_MAX_STEPS")
    everything, _ = measured(0, np.ones(N, bool), "float32")
    made = WEIGHTINGS[name]()
    monkeypatch.setattr(module, steps, 1)
    for solver in (games.max_entropy_nash, games.smooth_equilibrium):
        solver.clear_cache()
    _, state = made.update(everything, made.init(N))
    weights, state = made.update(everything, state)
    for solver in (games.max_entropy_nash, games.smooth_equilibrium):
        solver.clear_cache()
    assert state.unsolved == 2
    np.testing.assert_allclose(weights.sum(), 1, atol=1e-6)

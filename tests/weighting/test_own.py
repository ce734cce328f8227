"""Weightings of a user's own: what they must give, and what happens where they give no numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import problems, tiny

from ldro_jax import transform, weighting
from ldro_jax.training.method import Method

N = 5


def even(statistics):
    return jnp.full_like(statistics.losses, 1 / N)


def one_number(statistics):
    return jnp.mean(statistics.losses)


class Callable:
    """What is called like a function, and has no name."""

    def __init__(self, weights):
        self.weights = weights

    def __call__(self, statistics):
        return self.weights


def counting(dtype):
    """A factory of weightings with a state that isn't what it was."""

    def update(statistics, state):
        return even(statistics), state.astype(dtype)

    return weighting.Weighting(lambda num_tasks, dtype: jnp.zeros([], jnp.int32), update)


def raw(update):
    return weighting.Weighting(lambda num_tasks, dtype: (), update)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (
            weighting.stateless(one_number),
            r"The weighting one_number must return a floating-point weight for each of the 5 "
            r"tasks, an array of the shape \[5\], but it returned float32\[\]\.",
        ),
        (weighting.stateless(lambda s: even(s)[None]), r"returned float32\[1, 5\]"),
        (weighting.stateless(lambda s: even(s)[:4]), r"returned float32\[4\]"),
        (weighting.stateless(lambda s: jnp.ones(N, jnp.int32)), r"returned int32\[5\]"),
        (weighting.stateless(lambda s: 0.2), r"returned 0\.2"),
        (weighting.stateless(lambda s: [0.2] * N), r"returned \[0\.2, 0\.2"),
        (weighting.stateless(Callable(None)), "The weighting Callable must return .* None"),
        (
            weighting.stateless(functools.partial(lambda scale, s: scale * one_number(s), 2)),
            r"The weighting <lambda> must return .* float32\[\]",
        ),
        (
            weighting.exponentiated_gradient(lambda s, weights: s.losses[None]),
            r"returned float32\[1, 5\]",
        ),
        (counting("float32"), r"The weighting counting must .* 'int32\[\]', but .* 'float32\[\]'"),
        (raw(lambda s, state: even(s)), "must return a pair, the weights .* returned an array"),
        (raw(lambda s, state: (even(s), None, 1)), "must return a pair"),
        (raw(lambda s, state: (even(s), jnp.zeros(2))), "must return a state like the one"),
    ],
)
@pytest.mark.parametrize("options", [{}, {"smoothing": 0.5, "total": 1.0, "floor": 0.1}])
def test_what_a_weighting_returns_is_checked_when_it_is_traced(made, message, options):
    with jax.numpy_rank_promotion("allow"), pytest.raises(ValueError, match=message):
        tx = transform.weighted(made, N, **options)
        problem = problems.mlp()
        state = tx.init(problem.params)
        tx.update(jnp.ones((N, 2)), state, jnp.ones(2), losses=jnp.ones(N))


class Held:
    """A container that is equal to itself alone."""

    def __init__(self, value):
        self.value = value


jax.tree_util.register_pytree_node(Held, lambda x: ((x.value,), None), lambda _, x: Held(*x))


def test_a_state_in_a_container_without_equality_is_taken():
    def made(increment):
        return weighting.Weighting(
            lambda num_tasks, dtype: Held(jnp.zeros([], dtype)),
            lambda statistics, state: (even(statistics), Held(increment(state.value))),
        )

    def update(increment):
        tx = transform.weighted(made(increment), N)
        given = jnp.ones((N, 2)), tx.init(jnp.ones(2)), jnp.ones(2)
        return tx.update(*given, losses=jnp.ones(N))[1]

    assert update(lambda x: x + 1).weighting.value == 1
    with pytest.raises(ValueError, match="must return a state like the one"):
        update(lambda x: x[None])


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("options", [{}, {"smoothing": 0.5, "total": 1.0, "floor": 0.1}])
def test_steps_without_finite_weights_keep_the_last_ones_and_are_counted(value, options):
    def weights(statistics):
        found = jnp.arange(1, N + 1, dtype=jnp.float32) / 15
        return jnp.where(statistics.count == 0, found, found.at[1].set(value))

    problem = problems.mlp()
    tx = transform.weighted(weighting.stateless(weights), N, **options)
    (_, first), (_, second), (_, last) = problems.train(tx, problem, 3)
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(last.weights, first.weights)
    assert np.isfinite(first.weights).all() and len(set(np.asarray(first.weights).tolist())) == N
    assert [state.unsolved for state in (first, second, last)] == [0, 1, 2]
    assert [state.nonfinite_streak for state in (first, second, last)] == [0, 1, 2]
    assert not last.nonfinite.any()


def test_a_run_whose_weights_are_never_numbers_stops_and_says_so(tmp_path):
    never = Method("Never", weighting.stateless(lambda statistics: statistics.losses * jnp.nan))
    schedule = tiny.schedule(40, 5, 40, max_nonfinite_steps=5)
    run = tiny.train(tiny.stacked(never), tmp_path, schedule)
    assert run.unsolved_steps == 5 and not run.nonfinite_losses
    said = "stopped at step 5: for the last 5 steps the method's weights were not finite."
    assert run.stopped.startswith(said)

"""Tests of the maximum-entropy equilibrium against properties, closed forms and oracles."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import games_oracle as oracle

from ldro_jax import games

DTYPES = ("float32", "float64")
# In payoff ranges: the accuracy that Lookahead-DRO needs (float32) and what rounding allows with a
# wide margin (float64; observed 1e-11).
VALUE_TOLERANCE = {"float32": 1e-5, "float64": 1e-7}
# Entropies of the weights, in nats: the accuracy that Lookahead-DRO needs. Observed 1e-5.
ENTROPY_TOLERANCE = 1e-3
# Weights are determined by the game to about its rounding times its conditioning, which is below
# 1e3 for the games where weights are compared.
WEIGHT_TOLERANCE = {"float32": 1e-4, "float64": 1e-7}
# A float32 sum of 256 positive terms is right to a few units of the last place.
SUM_TOLERANCE = {"float32": 2e-6, "float64": 1e-14}


@pytest.fixture(autouse=True)
def _strict_numerics():
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


def precision(dtype):
    return jax.enable_x64(True) if dtype == "float64" else contextlib.nullcontext()


@functools.cache
def batched_solver():
    return jax.jit(jax.vmap(games.max_entropy_nash))


def solve(payoffs, dtype):
    """Solves a batch of games of one shape in one call; float64 NumPy results."""
    payoffs = np.asarray(payoffs).astype(dtype)
    # Small games come in batches of 64, filled up by the last one: one compilation for a shape.
    spare = max(0, 64 - len(payoffs)) if payoffs.shape[1] <= 20 else 0
    padded = np.concatenate([payoffs, np.repeat(payoffs[-1:], spare, axis=0)])
    with precision(dtype):
        result = batched_solver()(jnp.asarray(padded))
        assert result.weights.dtype == dtype
        return games.Equilibrium(*(np.asarray(x, np.float64)[: len(payoffs)] for x in result))


def gram(rng, size, rank):
    factor = rng.normal(size=(size, rank)) / np.sqrt(rank)
    return factor @ factor.T


def lookahead(rng, size, rank, strength):
    return rng.uniform(0, 3, size)[:, None] - strength * gram(rng, size, rank)


def duplicated(rng, size):
    tasks = rng.integers(0, max(size // 2, 1), size)
    return rng.normal(size=(size, size))[np.ix_(tasks, tasks)]


def worst_converged(rng, size):
    payoff = rng.uniform(0, 1, (size, size))
    payoff[size // 2] = 1.0
    return payoff


def converged_but_not_worst(rng, size):
    payoff = rng.normal(size=(size, size))
    payoff[0] = 0.5
    return payoff


def unequal_gradients(rng, size):
    factor = rng.normal(size=(size, size)) * np.logspace(-2, 1, size)[:, None]
    return rng.uniform(0, 3, size)[:, None] - 0.1 * factor @ factor.T


def skew(rng, size):
    payoff = rng.normal(size=(size, size))
    return payoff - payoff.T


FAMILIES = {
    "gaussian": lambda rng, n: rng.normal(size=(n, n)),
    "uniform": lambda rng, n: rng.uniform(size=(n, n)),
    "degenerate": lambda rng, n: rng.integers(0, 3, (n, n)).astype(float),
    "duplicated": duplicated,
    "redundant": lambda rng, n: np.tile(rng.normal(size=(n, 1)), (1, n)),
    "worst_converged": worst_converged,
    "converged_but_not_worst": converged_but_not_worst,
    "skew": skew,
    "lookahead_1e-4": lambda rng, n: lookahead(rng, n, n, 1e-4),
    "lookahead_1e-4_low_rank": lambda rng, n: lookahead(rng, n, max(n // 4, 1), 1e-4),
    "lookahead_1e-2": lambda rng, n: lookahead(rng, n, n, 1e-2),
    "lookahead_1e-2_low_rank": lambda rng, n: lookahead(rng, n, max(n // 4, 1), 1e-2),
    "lookahead_1": lambda rng, n: lookahead(rng, n, n, 1),
    "lookahead_1_low_rank": lambda rng, n: lookahead(rng, n, max(n // 4, 1), 1),
    "lookahead_10": lambda rng, n: lookahead(rng, n, n, 10),
    "lookahead_10_low_rank": lambda rng, n: lookahead(rng, n, max(n // 4, 1), 10),
    "unequal_gradients": unequal_gradients,
    "tiny": lambda rng, n: 1e-6 * rng.normal(size=(n, n)),
    "huge": lambda rng, n: 1e6 * rng.normal(size=(n, n)),
    "offset": lambda rng, n: rng.normal(size=(n, n)) + 1e3,
}
SEEDS = {1: 1, 2: 3, 3: 3, 5: 3, 20: 2, 40: 1, 100: 1}


@functools.cache
def all_games(size):
    """Names and [game, N, N] payoffs of every family, so that one compilation serves them all."""
    named = [
        (name, make(np.random.default_rng([seed, size, index]), size))
        for seed in range(SEEDS.get(size, 1))
        for index, (name, make) in enumerate(FAMILIES.items())
    ]
    names, payoffs = zip(*named, strict=True)
    return names, np.stack(payoffs)


# Properties.


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 2, 5, 20, pytest.param(40, marks=pytest.mark.heavy)])
def test_weights_are_on_the_simplex_and_the_certificate_is_honest(size, dtype):
    _, payoffs = all_games(size)
    result = solved(size, dtype)
    assert (result.weights >= 0).all()
    np.testing.assert_allclose(result.weights.sum(1), 1, atol=SUM_TOLERANCE[dtype])
    payoffs = payoffs.astype(dtype).astype(np.float64)
    magnitude = np.abs(payoffs).max((1, 2))
    achieved = np.einsum("gij,gj->gi", payoffs, result.weights).max(1)
    # The value is a rounded inner product of payoffs of that magnitude.
    assert (np.abs(result.value - achieved) <= 4 * SUM_TOLERANCE[dtype] * magnitude).all()
    span = np.maximum(np.ptp(payoffs, axis=(1, 2)), magnitude * SUM_TOLERANCE[dtype])
    assert (result.gap <= VALUE_TOLERANCE[dtype] * span).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_permuting_tasks_permutes_the_weights(dtype):
    names, payoffs = all_games(20)
    # In a low-rank game with a strong interaction, float32 rounding decides the optimal face.
    well_posed = ["10_low_rank" not in name or dtype == "float64" for name in names]
    order = np.random.default_rng(0).permutation(20)
    weights = solve(payoffs, dtype).weights
    permuted = solve(payoffs[:, order][:, :, order], dtype).weights
    np.testing.assert_allclose(
        permuted[well_posed], weights[well_posed][:, order], atol=WEIGHT_TOLERANCE[dtype]
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale, offset", [(1e-6, 0), (1e6, 0), (3, 1), (0.1, -7)])
def test_affine_changes_of_the_payoffs_change_nothing(scale, offset, dtype):
    rng = np.random.default_rng(1)
    # Multiples of 2^-8 with a short mantissa, so that adding the offset rounds off nothing.
    payoffs = np.round(rng.normal(size=(8, 20, 20)) * 256) / 256
    weights = solve(payoffs, dtype).weights
    changed = solve(payoffs * scale + offset, dtype)
    np.testing.assert_allclose(changed.weights, weights, atol=WEIGHT_TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", ["gaussian", "lookahead_1", "lookahead_10", "skew"])
def test_a_duplicated_task_shares_its_twins_weight_equally(family, dtype):
    originals = np.stack([FAMILIES[family](np.random.default_rng(i), 19) for i in range(4)])
    # The twin is of the task with the largest weight, so that there is something to share.
    twins = solve(originals, dtype).weights.argmax(1)
    order = np.stack([np.append(np.arange(19), twin) for twin in twins])
    payoffs = np.stack([game[np.ix_(o, o)] for game, o in zip(originals, order, strict=True)])
    weights = solve(payoffs, dtype).weights
    share = weights[np.arange(4), twins]
    assert (share > 0.01).all()
    np.testing.assert_allclose(weights[:, 19], share, atol=WEIGHT_TOLERANCE[dtype])


# Pinned values.


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("strength", [1e-4, 1e-2])
def test_independent_tasks_and_a_short_lookahead_put_all_weight_on_the_worst(strength, dtype):
    losses = np.array([0.3, 2.0, 1.7, 0.1, 1.9])
    payoff = losses[:, None] - strength * np.diag([1.0, 2.0, 3.0, 4.0, 5.0])
    weights = solve(payoff[None], dtype).weights[0]
    np.testing.assert_allclose(weights, np.eye(5)[1], atol=WEIGHT_TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", ["redundant", "worst_converged"])
@pytest.mark.parametrize("size", [1, 5, 20])
def test_the_weights_are_uniform_where_the_game_leaves_the_choice_open(size, family, dtype):
    payoff = FAMILIES[family](np.random.default_rng(2), size)
    weights = solve(payoff[None], dtype).weights[0]
    np.testing.assert_allclose(weights, 1 / size, atol=WEIGHT_TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_small_games_with_known_solutions(dtype):
    cycle = np.array([[0.0, 1, -1], [-1, 0, 1], [1, -1, 0]])
    # Mixed 2x2 game: w_1 = (d - b) / (a - b - c + d) = 2/5, value (ad - bc) / (...) = 1/5; the
    # third task never is the worst and its column never is worth taking.
    mixed = np.array([[2.0, -1, 5], [-1, 1, 5], [-9, -9, 4]])
    # Columns 0 and 1 are equal and optimal, so the saddle point splits between them.
    saddle = np.array([[1.0, 1, 2], [0, 0, 3], [0.5, 0.5, 2]])
    result = solve([cycle, mixed, saddle], dtype)
    expected = [[1 / 3, 1 / 3, 1 / 3], [0.4, 0.6, 0], [0.5, 0.5, 0]]
    np.testing.assert_allclose(result.weights, expected, atol=WEIGHT_TOLERANCE[dtype])
    np.testing.assert_allclose(result.value, [0, 0.2, 1], atol=5 * VALUE_TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_entropy_prefers_the_even_split_of_an_optimal_edge(dtype):
    # Row 0 asks for w_0 >= 1/2 and nothing else matters: (1/2, 1/4, 1/4) has the most entropy.
    payoff = np.array([[-1.0, 1, 1], [0, 0, 0], [-5, -5, -5]])
    weights = solve(payoff[None], dtype).weights[0]
    np.testing.assert_allclose(weights, [0.5, 0.25, 0.25], atol=WEIGHT_TOLERANCE[dtype])


# Independent oracles.


@functools.cache
def solved(size, dtype):
    """The games of every family, solved."""
    return solve(all_games(size)[1], dtype)


def compare_with_the_oracle(names, payoffs, dtype, result=None):
    result = result or solve(payoffs, dtype)
    # The oracle gets the game as rounded to dtype, and w normalised beyond its own rounding, which
    # would otherwise count as payoff in the games with a large offset.
    payoffs = payoffs.astype(dtype).astype(np.float64)
    failures = []
    for name, payoff, w, value in zip(names, payoffs, result.weights, result.value, strict=True):
        w = w / w.sum()
        span = np.ptp(payoff)
        unit = span or np.abs(payoff).max()
        # The reported value adds float32 rounding of the payoffs, however large their offset.
        rounding = 4 * SUM_TOLERANCE[dtype] * np.abs(payoff).max()
        reference = oracle.solve(payoff)
        assert reference.value_gap <= 1e-9 * unit, (name, reference)
        excess = (payoff @ w).max() - reference.value
        if not -1e-9 * unit <= excess <= VALUE_TOLERANCE[dtype] * unit:
            failures.append((name, "achieved", excess / unit))
        if abs(value - reference.value) > VALUE_TOLERANCE[dtype] * unit + rounding:
            failures.append((name, "value", (value - reference.value) / unit))
        if dtype == "float32" and "low_rank" in name:
            # Rounding the payoffs to float32 makes a matrix of low rank one of full rank, and can
            # shrink a face of optimal w to a point: the entropy of the exact optimum is that of
            # the rounding errors. What remains true: w is not less even than the exact optimum,
            # and as even as the best w that concedes no more than w does.
            upper = oracle.solve(payoff, slack=max(excess, 0) + 1e-7 * span)
            reference_low = reference.entropy
            reference_high = upper.entropy
        else:
            assert reference.excess <= 1e-8 * unit, (name, reference)
            reference_low = reference_high = reference.entropy
        h = oracle.entropy(w)
        if not reference_low - ENTROPY_TOLERANCE <= h <= reference_high + ENTROPY_TOLERANCE:
            failures.append((name, "entropy", h, reference_low, reference_high))
    assert not failures, failures


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("size", "seed"), [(size, seed) for size in (1, 2, 5, 20, 40) for seed in range(SEEDS[size])]
)
def test_value_and_entropy_agree_with_the_oracle(size, seed, dtype):
    part = slice(seed * len(FAMILIES), (seed + 1) * len(FAMILIES))
    names, payoffs = all_games(size)
    found = games.Equilibrium(*(x[part] for x in solved(size, dtype)))
    compare_with_the_oracle(names[part], payoffs[part], dtype, found)


@pytest.mark.heavy
@pytest.mark.parametrize("family", ["gaussian", "duplicated", "lookahead_1", "lookahead_10"])
def test_value_and_entropy_agree_with_the_oracle_for_a_hundred_tasks(family):
    payoff = FAMILIES[family](np.random.default_rng(3), 100)
    compare_with_the_oracle([family], payoff[None], "float32")


@pytest.mark.heavy
def test_value_and_entropy_agree_with_the_oracle_for_256_tasks():
    rng = np.random.default_rng(4)
    compare_with_the_oracle(["lookahead_1"], lookahead(rng, 256, 256, 1)[None], "float32")


@pytest.mark.parametrize("shape", [(3, 20), (4, 1)])
def test_rectangular_games_agree_with_the_oracle(shape):
    payoffs = np.random.default_rng(5).normal(size=(6, *shape))
    compare_with_the_oracle(["rectangular"] * 6, payoffs, "float32")


# The interface.


def test_single_and_batched_games_agree():
    payoffs = jnp.asarray(all_games(5)[1][:4], jnp.float32)
    batch = batched_solver()(payoffs)
    for i, payoff in enumerate(payoffs):
        single = games.max_entropy_nash(payoff)
        # Batched and single matrix products may round differently.
        np.testing.assert_allclose(single.weights, batch.weights[i], atol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.int32])
def test_other_types_are_computed_in_float32(dtype):
    payoff = jnp.asarray([[0, 1, -1], [-1, 0, 1], [1, -1, 0]], dtype)
    result = games.max_entropy_nash(payoff)
    assert {x.dtype for x in result._replace(solved=result.gap)} == {jnp.dtype(jnp.float32)}
    assert result.solved
    np.testing.assert_allclose(result.weights, 1 / 3, atol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_payoff_that_is_not_finite_gives_nan_and_spares_the_rest_of_the_batch(bad):
    payoffs = all_games(5)[1][:3].astype(np.float32)
    clean = solve(payoffs, "float32")
    payoffs[1, 2, 3] = bad
    result = solve(payoffs, "float32")
    assert np.isnan(result.weights[1]).all() and np.isnan(result.value[1])
    np.testing.assert_array_equal(result.weights[[0, 2]], clean.weights[[0, 2]])


def test_gradients_stop_at_the_weights():
    payoff = jnp.asarray(all_games(5)[1][0], jnp.float32)
    gradient = jax.grad(lambda x: games.max_entropy_nash(x).weights[0])(payoff)
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 3), (0, 3), (3, 0)])
def test_anything_but_a_matrix_is_an_error_that_names_the_shape(shape):
    with pytest.raises(ValueError, match=r"shape \[rows, columns\].*found shape \(") as error:
        games.max_entropy_nash(jnp.zeros(shape))
    assert str(shape) in str(error.value)


def test_complex_payoffs_are_an_error():
    with pytest.raises(ValueError, match=r"real payoff matrix.*complex64"):
        games.max_entropy_nash(jnp.zeros((2, 2), jnp.complex64))

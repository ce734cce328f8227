"""Gradients whose lengths differ by a factor of 10,000: weights from float32 against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import gram_methods
from helpers.gram_methods import N
from scipy import optimize

from ldro_jax import solvers, weighting

CASES = [gram_methods.gradients(seed, spread=4.0) for seed in range(gram_methods.CASES)]
MATRICES = np.array([g @ g.T for g in CASES])
LOSSES = np.array([gram_methods.losses()] * len(CASES))
U = np.full(N, 1 / N)
# Quadratic programmes are made strictly convex by 32 roundings, whose root is an angle of 2e-3;
# what is measured is 1e-4 or less.
TOLERANCE = 2e-3


def weights_of(name, dtype="float32"):
    with jax.enable_x64(dtype == "float64"):
        return gram_methods.first_weights(name, MATRICES, LOSSES, dtype)[0]


def norm(vector):
    return np.linalg.norm(vector)


def units(g):
    return g / np.linalg.norm(g, axis=1)[:, None]


def close(found, expected):
    assert norm(found - expected) <= TOLERANCE * norm(expected)


@pytest.mark.parametrize("name", gram_methods.NAMES)
def test_float32_gives_the_update_of_float64(name):
    rough, exact = weights_of(name), weights_of(name, "float64")
    for g, a, b in zip(CASES, rough, exact, strict=True):
        close(a @ g, b @ g)


# Each from its paper's definition, on the gradients themselves, in NumPy and SciPy.


def aligned(g, w, losses, scale):
    # As in the authors' code, whose median of two is the lower one.
    left, sizes, right = np.linalg.svd(g.T, full_matrices=False)
    size = {"min": sizes.min(), "median": np.sort(sizes)[N // 2 - 1]}
    size["rmse"] = np.sqrt(np.mean(sizes**2))
    close(w @ g, size[scale] * left @ (right @ U))


def shortest(g, w, losses):
    # At the shortest combination the least product is its square (weak duality).
    update = w @ g
    lengths = np.linalg.norm(g, axis=1)
    assert (norm(update) ** 2 - g @ update <= TOLERANCE**2 * lengths * lengths.min()).all()


def towards_the_mean(g, w, losses):
    pull = 0.3
    inner = (1 + pull) * w - pull * U
    slope = g @ ((1 + pull) * w @ g)
    assert inner.min() > -1e-6
    assert inner @ slope - slope.min() <= TOLERANCE**2 * norm(g.mean(axis=0)) ** 2


def best_worst_gain(g, w, losses, c=0.5):
    mean = g.mean(axis=0)
    assert norm(w @ g - mean) <= (1 + TOLERANCE) * c * norm(mean)
    share = (w - U) / np.sum(w - U)
    bound = share @ g @ mean + c * norm(mean) * norm(share @ g)
    assert np.min(g @ (w @ g)) >= bound - TOLERANCE * norm(mean) * np.linalg.norm(g, axis=1).min()


def harmless(g, lower):
    """The shortest combination with at least these weights, by nonnegative least squares."""
    more, _ = optimize.nnls(units(g).T, -lower @ g)
    return lower @ g + more @ units(g)


def projected_mean(g, w, losses):
    close(w @ g, harmless(g, U))


def mean_of_projected(g, w, losses):
    close(w @ g, sum(harmless(g, row) for row in np.eye(N) / N))


def fair(g, w, losses, alpha, length=None):
    gains = g @ (w @ g)
    if length is not None:
        np.testing.assert_allclose(norm(w @ g), length, rtol=1e-4)
        w = w * np.sqrt(N)  # the game's own update is √N long
        gains = gains * np.sqrt(N)
    terms = np.abs(g @ g.T) @ w
    assert (np.abs(gains - w ** (-1 / alpha)) <= 1e-4 * terms).all()


def equal_cosines(g, w, losses):
    direction = np.linalg.pinv(units(g)) @ np.ones(N)
    direction /= norm(direction)
    close(w @ g, np.sum(g @ direction) * direction)


def equal_projections(g, w, losses):
    np.testing.assert_allclose(w.sum(), 1, rtol=1e-3)
    projections = units(g) @ (w @ g)
    assert np.ptp(projections) <= TOLERANCE * norm(w @ g)


def nearest(g, w, losses):
    squared = np.sum((g[:, None] - g[None, :]) ** 2, axis=2)
    scores = np.sort(squared, axis=1)[:, 1 : N - 2].sum(axis=1)
    chosen = np.argsort(scores)[:2]
    # Sums of squares that float32 can't tell apart share.
    assert scores[w > 0].max() <= scores[chosen].max() * (1 + 1e-5)
    np.testing.assert_allclose(w.sum(), 1, rtol=1e-6)


def one_length(g, w, losses):
    lengths = np.linalg.norm(g, axis=1)
    np.testing.assert_allclose(w, np.max(lengths / losses) / lengths, rtol=1e-5)


def stepped(g, w, losses):
    moved = U - 0.05 * (g @ g.T @ U + 0.1 * U)
    shift = optimize.brentq(lambda s: np.maximum(moved - s, 0).sum() - 1, -2, 2)
    np.testing.assert_allclose(w, np.maximum(moved - shift, 0), atol=1e-5)


ORACLES = {
    "aligned_mtl": lambda *case: aligned(*case, "min"),
    "aligned_mtl median": lambda *case: aligned(*case, "median"),
    "aligned_mtl rmse": lambda *case: aligned(*case, "rmse"),
    "cagrad": best_worst_gain,
    "config": equal_cosines,
    "db_mtl": one_length,
    "dualproj": projected_mean,
    "fairgrad": lambda *case: fair(*case, 2.0),
    "imtl_g": equal_projections,
    "krum": nearest,
    "mgda": shortest,
    "modo": stepped,
    "nash_mtl": lambda *case: fair(*case, 1.0, 1.0),
    "sdmgrad": towards_the_mean,
    "upgrad": mean_of_projected,
}


@pytest.mark.parametrize("name", ORACLES)
def test_float32_is_what_the_paper_defines(name):
    for g, w, losses in zip(CASES, weights_of(name), LOSSES, strict=True):
        ORACLES[name](g, w, losses)


balances = jax.jit(jax.vmap(solvers.balance, (0, None)))


@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.3, 5.0, 20.0, 100.0])
def test_fairgrad_solves_its_equation_for_any_alpha(alpha, dtype):
    all_weights, solved = balances(jnp.asarray(MATRICES, dtype), jnp.asarray(alpha, dtype))
    assert solved.all()
    for g, w in zip(CASES, np.asarray(all_weights, np.float64), strict=True):
        # Where a weight or its power underflows, it is one side of the equation that tells.
        with np.errstate(divide="ignore", under="ignore", over="ignore"):
            asked = w ** (-1 / alpha)
        seen = w > 0
        error = np.abs(g @ (w @ g) - asked)[seen]
        assert (error <= 1e-3 * (np.abs(g @ g.T) @ w)[seen]).all()


def test_what_has_no_solution_is_counted():
    opposed = np.array([[1.0, -1.0], [-1.0, 1.0]])
    for method in (weighting.nash_mtl(), weighting.fairgrad(2.0), weighting.imtl_g()):
        statistics = weighting.Statistics(jnp.int32(0), jnp.ones(2), jnp.asarray(opposed))
        weights, state = method.update(statistics, method.init(2, jnp.float32))
        assert jnp.isfinite(weights).all()
        assert state.unsolved == 1
        statistics = statistics._replace(interaction=jnp.eye(2))
        assert method.update(statistics, state)[1].unsolved == 1


@pytest.mark.parametrize("c", [0.05, 0.5, 1.0, 3.0])
def test_cagrad_between_a_long_and_a_short_gradient(c):
    # 1000 : 1, with a cosine of -0.5. In the short one's conflict alone d = g0 + c |g0| g2 / |g2|.
    matrix = jnp.array([[1, -0.5e-3], [-0.5e-3, 1e-6]])
    beyond, solved = solvers.steepest(matrix, jnp.float32(c))
    assert solved
    mean = np.sqrt(np.full(2, 0.5) @ np.asarray(matrix, np.float64) @ np.full(2, 0.5))
    if c <= 1:
        np.testing.assert_allclose(beyond, [0, c * mean / 1e-3], rtol=1e-4, atol=1e-3)
    gains = np.asarray(matrix, np.float64) @ (0.5 + np.asarray(beyond, np.float64))
    assert (gains >= -1e-9).all() or c < 1


@pytest.mark.parametrize("c", [1.0, 2.0])
def test_cagrad_harms_no_task_even_where_none_can_be_helped(c):
    for rows in ([[1.0, 0.0], [-0.5, 0.0]], [[2, 0], [-0.5, 0.866], [-0.5, -0.866]]):
        g = np.array(rows)
        beyond, solved = solvers.steepest(jnp.asarray(g @ g.T, jnp.float32), jnp.float32(c))
        w = 1 / len(g) + np.asarray(beyond, np.float64)
        assert solved
        assert (g @ (w @ g)).min() >= -1e-5


def test_krum_sums_squares_as_its_paper_does_and_distances_on_demand():
    places = np.array([[5.0, 3.0], [1.0, -2.0], [-1.0, -4.0], [-4.0, -4.0], [-3.0, 4.0]])
    statistics = weighting.Statistics(
        jnp.int32(0), jnp.ones(5), jnp.asarray(places @ places.T, jnp.float32)
    )
    # Three nearest. Task 1: 8 + 29 + 41 = 78, the least of squares; task 2: 8 + 9 + 68 = 85, whose
    # roots sum to 14.07, less than the 14.62 of task 1.
    for chosen, squared in ((1, True), (2, False)):
        method = weighting.krum(num_outliers=0, squared=squared)
        weights, _ = method.update(statistics, ())
        np.testing.assert_array_equal(weights, np.eye(5)[chosen])


def test_total_is_of_absolute_values_where_signs_differ():
    rows = np.array([[2.0, 0.0, 0.0], [1.0, 1.0, 0.0], [1.0, -1.0, 0.3]])
    statistics = weighting.Statistics(
        jnp.int32(0), jnp.ones(3), jnp.asarray(rows @ rows.T, jnp.float32)
    )
    method = weighting.rescaled(weighting.imtl_g(), 1.0)
    weights, _ = method.update(statistics, method.init(3, jnp.float32))
    # By the pseudo-inverse in float64: sizes of one in sum, while the weights sum to 0.3565.
    plain = np.array([-0.90254851, 0.97145712, 0.93109139])
    np.testing.assert_allclose(weights, plain / np.abs(plain).sum(), rtol=1e-5)

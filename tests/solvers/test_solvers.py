"""The solvers against SciPy, on Gram matrices of every kind that training makes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from ldro_jax import solvers

SIZES = [1, 2, 5, 20, 64]


def gradients(kind, size, seed=0):
    """``[N, D]``; tasks have a direction in common, so that some direction helps them all."""
    rng = np.random.default_rng(seed)
    dims = max(size // 3, 1) if kind == "low rank" else 3 * size
    found = rng.normal(size=(size, dims)) + 0.5 * rng.normal(size=dims)
    if kind == "duplicated":
        found[size // 2 :] = found[: size - size // 2]
    if kind == "a zero gradient":
        found[0] = 0
    if kind == "badly scaled":
        found *= 10 ** rng.uniform(-3, 3, size=(size, 1))
    if kind == "tiny":
        found *= 1e-12
    if kind == "huge":
        found *= 1e12
    return found


KINDS = ["random", "low rank", "duplicated", "a zero gradient", "badly scaled", "tiny", "huge"]


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(params=SIZES)
def size(request):
    return request.param


def matrix(kind, size, dtype):
    found = gradients(kind, size)
    return jnp.asarray(found @ found.T, dtype)


def precision(dtype):
    # The problems are made strictly convex by 32 roundings.
    return 2e-4 if dtype == "float32" else 1e-8


def scaled(found):
    """A matrix in units of its rows, and the units."""
    norms = np.sqrt(np.diag(found))
    norms = np.where(norms > 0, norms, 1)
    return found / norms[:, None] / norms[None, :], norms


def factor(cosines):
    """R with ``RᵀR = C``."""
    values, vectors = np.linalg.eigh(cosines)
    return np.sqrt(np.maximum(values, 0))[:, None] * vectors.T


def value(found, w):
    return w @ found @ w


def test_above_is_a_nonnegative_least_squares_problem(kind, size, dtype):
    a = matrix(kind, size, dtype)
    lower = np.random.default_rng(1).uniform(0, 1, size)
    v, solved = jax.jit(solvers.above)(a, jnp.asarray(lower, dtype))
    assert solved
    v = np.asarray(v, np.float64)
    assert np.isfinite(v).all() and (v >= lower.astype(dtype)).all()
    a = np.asarray(a, np.float64)
    cosines, norms = scaled(a)
    root = factor(cosines)
    best, _ = optimize.nnls(root, -root @ (lower * norms), maxiter=1000)
    expected = value(a, lower + best / norms)
    rounding = precision(dtype) * value(a, lower)
    assert value(a, v) <= expected + rounding + precision(dtype) * expected


def test_min_norm_is_the_shortest_combination(kind, size, dtype):
    a = matrix(kind, size, dtype)
    w, solved = jax.jit(solvers.min_norm)(a)
    w = np.asarray(w, np.float64)
    assert solved and (w >= 0).all()
    np.testing.assert_allclose(w.sum(), 1, rtol=1e-5)
    a = np.asarray(a, np.float64)
    if kind == "a zero gradient":
        np.testing.assert_allclose(w[0], 1, atol=0.02)
        return
    # Of any w on the simplex: the smallest entry of Aw is a lower bound (weak duality).
    product = a @ w
    norms = np.sqrt(np.diag(a))
    assert (value(a, w) - product <= 3 * precision(dtype) * norms * norms.min()).all()


@pytest.mark.parametrize("pull", [0.1, 10.0])
def test_on_simplex_satisfies_the_conditions_of_optimality(kind, size, pull, dtype):
    a = matrix(kind, size, dtype)
    scale = float(jnp.max(jnp.diagonal(a)))
    linear = pull * scale * jnp.asarray(np.random.default_rng(2).normal(size=size), dtype)
    w, solved = jax.jit(solvers.on_simplex)(a, linear)
    w = np.asarray(w, np.float64)
    assert solved and (w >= 0).all()
    np.testing.assert_allclose(w.sum(), 1, rtol=1e-5)
    gradient = np.asarray(a, np.float64) @ w + np.asarray(linear, np.float64)
    # What could be won by the best single task, to first order.
    gap = w @ gradient - gradient.min()
    assert gap <= 10 * precision(dtype) * max(scale, np.abs(np.asarray(linear)).max())


@pytest.mark.parametrize("radius", [0.1, 0.5, 1.5])
def test_no_update_within_the_radius_helps_the_worst_task_more(kind, size, radius, dtype):
    a = matrix(kind, size, dtype)
    v, solved = jax.jit(solvers.steepest)(a, jnp.asarray(radius, dtype))
    v, a = np.asarray(v, np.float64), np.asarray(a, np.float64)
    assert solved and (v >= 0).all()
    alive = np.diag(a) > 0
    norms = np.sqrt(np.diag(a))[alive]
    uniform = np.full(size, 1 / size)
    mean = np.sqrt(value(a, uniform))
    assert value(a, v) <= (radius * mean) ** 2 * (1 + precision(dtype)) ** 2
    gains = (a @ (uniform + v))[alive]
    if not alive.any():
        return
    # Of any combination: it bounds what the worst task can gain (weak duality).
    share = v / max(v.sum(), 1e-300)
    bound = share @ a @ uniform + radius * mean * np.sqrt(max(value(a, share), 0))
    # Where a combination is zero, no direction helps all.
    root = factor(scaled(a)[0][np.ix_(alive, alive)])
    target = np.append(np.zeros(len(root)), 1)
    _, shortest = optimize.nnls(np.vstack([root, np.ones(len(root))]), target, maxiter=1000)
    bound = bound if shortest > 3e-3 else min(bound, 0)
    assert (gains >= bound - 10 * precision(dtype) * norms * mean).all()


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_balance_solves_its_equation(kind, size, power, dtype):
    if kind == "low rank":
        pytest.skip("may have no solution")
    a = matrix(kind, size, dtype)
    w, solved = jax.jit(solvers.balance)(a, jnp.asarray(power, dtype))
    assert solved
    w = np.asarray(w, np.float64)
    a = np.asarray(a, np.float64)
    alive = np.diag(a) > 0
    assert (w[alive] > 0).all() and (w[~alive] == 0).all()
    product = (a @ w)[alive] * w[alive] ** (1 / power)
    np.testing.assert_allclose(product, 1, rtol=2e-3 if dtype == "float32" else 1e-9)


def test_twins_are_treated_alike_and_permutations_followed(dtype):
    found = gradients("random", 8)
    found[5] = found[2]
    order = np.array([3, 0, 4, 7, 1, 6, 2, 5])

    def solve(rows):
        a = jnp.asarray(rows @ rows.T, dtype)
        uniform = jnp.full(8, 1 / 8, dtype)
        return [
            solvers.min_norm(a),
            solvers.above(a, uniform),
            solvers.steepest(a, jnp.asarray(0.5, dtype)),
            solvers.on_simplex(a, a @ uniform),
            solvers.balance(a, jnp.asarray(1.0, dtype)),
        ]

    tolerance = 1e-5 if dtype == "float32" else 1e-12
    for (plain, _), (permuted, _) in zip(solve(found), solve(found[order]), strict=True):
        np.testing.assert_allclose(plain[2], plain[5], atol=tolerance)
        np.testing.assert_allclose(permuted, plain[order], atol=tolerance)


def test_they_vmap():
    batch = jnp.stack([matrix("random", 5, "float32"), matrix("duplicated", 5, "float32")])
    for solve in (solvers.min_norm, lambda a: solvers.balance(a, jnp.float32(1))):
        alone = jnp.stack([solve(a)[0] for a in batch])
        weights, solved = jax.vmap(solve)(batch)
        assert solved.all()
        np.testing.assert_allclose(weights, alone, atol=1e-5)
        # Of the second, the first two tasks and the next two are twins.
        np.testing.assert_allclose(weights[1, :2], weights[1, 2:4], atol=1e-6)

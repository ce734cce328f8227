"""A constant added to all losses: no method minds, or it says that it needs positive losses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from weighting import test_battery as battery

from ldro_jax import weighting
from ldro_jax.weighting import about, base

N = battery.N
SHIFTS = [4.0, -1.0, -8.0]
# DoReMi's references are losses, too.
SHIFTED = {"doremi": lambda shift: weighting.doremi(battery.PER_TASK / 8 + shift, 0.5)}
MORE = {
    "gradnorm softmax": lambda order: weighting.gradnorm(0.1, softmax=True),
    "lookahead_exact relative": lambda order: weighting.lookahead_exact(1.0, relative=True),
    "skill_it all steps": lambda order: weighting.skill_it(0.1, skills=battery.GRAPH, window=None),
}
EVERY = {**battery.WEIGHTINGS, **MORE}
POSITIVE = {name for name, make in EVERY.items() if make(np.arange(N)).needs_positive_losses}


@functools.cache
def compiled(name, shift=0.0):
    made = EVERY[name](np.arange(N)) if name not in SHIFTED else SHIFTED[name](shift)
    return made._replace(update=jax.jit(made.update))


def steps(shift):
    """Losses that are multiples of 1/64, so that adding a constant to them is exact."""
    for seed in range(4):
        fresh = battery.statistics(seed=seed, directions=12)
        losses = jnp.round(fresh.losses * 64) / 64 + shift
        yield fresh._replace(count=jnp.int32(seed), losses=losses)


def weights_of(name, shift):
    method = compiled(name, shift if name in SHIFTED else 0.0)
    state, found = method.init(N, jnp.float32), []
    for step in steps(shift):
        weights, state = method.update(step, state)
        found.append(np.asarray(weights))
    assert all(np.isfinite(w).all() for w in found)
    assert not any(jnp.isnan(leaf).any() for leaf in jax.tree.leaves(state))
    return found


def test_which_methods_need_positive_losses():
    assert {
        *("db_mtl", "dwa", "famo", "famo between steps", "geometric_mean", "go4align", "gradnorm"),
        *("gradnorm softmax", "grape", "imtl_l", "mgda loss+", "q_ffl", "scale_invariant"),
        *("skill_it", "skill_it all steps", "uncertainty"),
        *("lookahead_online relative", "lookahead_exact relative", "regularized_dro relative"),
        *(
            "smooth_lookahead relative",
            "term relative",
            "by_signal",
            "by_signal lookahead",
            "signal tilted",
        ),
    } == POSITIVE


# test_wrappers.py has those that look at no loss, with any other losses.
UNUSED = {name for name, said in weighting.ABOUT.items() if said.family == about.GRADIENTS}


@pytest.mark.parametrize("name", sorted(set(EVERY) - POSITIVE - UNUSED))
def test_a_constant_makes_no_difference(name):
    expected = weights_of(name, 0.0)
    for shift in SHIFTS:
        if name == "smoothed":
            # Means of larger numbers are rounded elsewhere.
            np.testing.assert_allclose(weights_of(name, shift), expected, atol=1e-4)
            continue
        # To the bit: nothing is computed with the losses but their differences.
        np.testing.assert_array_equal(weights_of(name, shift), expected)


@pytest.mark.parametrize("name", sorted(POSITIVE))
def test_weights_are_finite_where_losses_are_not_positive(name):
    for shift in SHIFTS:
        weights = weights_of(name, shift)
        assert np.all(np.asarray(weights) >= 0) and np.any(weights)
        # No weight is gone for good, or grows without limit, for one loss at or below zero.
        assert np.max(weights) < 1e3


@pytest.mark.parametrize("relative", ["term relative", "regularized_dro relative"])
def test_weights_do_not_jump_where_the_mean_loss_changes_its_sign(relative):
    # With the mean as their unit they were [0, 0, 1] at a mean of 0.02, and even at −0.05.
    method = battery.WEIGHTINGS[relative](None)
    losses = np.array([-0.5, -0.3, 0.86]) - 0.02
    found = []
    for mean in np.linspace(0.05, -0.05, 11):
        statistics = base.Statistics(
            jnp.int32(0), jnp.asarray(losses + mean, jnp.float32), jnp.eye(3)
        )
        found.append(method.update(statistics, method.init(3, jnp.float32))[0])
    assert np.abs(np.diff(found, axis=0)).max() < 0.01


@pytest.mark.parametrize("make", [weighting.imtl_l, weighting.uncertainty])
@pytest.mark.parametrize("loss", [6e4, 1e30])
def test_no_weight_is_stopped_by_a_large_loss(make, loss):
    """A step that would go beyond the minimum of its loss ends there."""
    method = make(0.1)
    state = method.init(2, jnp.float32)
    for step in range(3):
        statistics = base.Statistics(jnp.int32(step), jnp.array([loss, 1.0]), jnp.eye(2))
        weights, state = method.update(statistics, state)
    first = method.update(statistics, method.init(2, jnp.float32))[0]
    np.testing.assert_allclose(weights, first / jnp.array([loss, 1.0]), rtol=1e-4)
    # And comes back: the slope of a loss of one is that of its scale alone.
    statistics = statistics._replace(losses=jnp.ones(2))
    for _ in range(3):
        weights, state = method.update(statistics, state)
    assert weights[0] > 1.05 * first[0] / loss


def test_small_steps_of_scales_are_the_plain_ones():
    losses = np.array([0.3, 2.0, 5.0])
    statistics = base.Statistics(jnp.int32(0), jnp.asarray(losses, jnp.float32), jnp.eye(3))
    s, method = np.zeros(3), weighting.imtl_l(0.05)
    state = method.init(3, jnp.float32)
    for _ in range(40):
        weights, state = method.update(statistics, state)
        np.testing.assert_allclose(weights, np.exp(s), rtol=1e-5)
        s = s - 0.05 * (np.exp(s) * losses - 1)


@pytest.mark.parametrize("scale", [1.0, 1e6, 1e12])
def test_afl_s_weights_sum_to_one_for_any_losses(scale, dtype):
    losses = jnp.asarray(scale * np.random.default_rng(0).uniform(0.5, 2, 20), dtype)
    method = weighting.afl(1.0)
    update = jax.jit(method.update)
    state = method.init(20, jnp.dtype(dtype))
    for step in range(3):
        statistics = base.Statistics(jnp.int32(step), losses, jnp.eye(20, dtype=dtype))
        weights, state = update(statistics, state)
        np.testing.assert_allclose(weights.sum(), 1, rtol=20 * float(jnp.finfo(dtype).eps))


def test_afl_is_the_paper_s(dtype):
    losses = np.random.default_rng(1).uniform(0, 2, (6, 5))
    method, expected = weighting.afl(0.3), np.full(5, 0.2)
    update = jax.jit(method.update)
    state = method.init(5, jnp.dtype(dtype))
    for step, row in enumerate(losses):
        square = jnp.eye(5, dtype=dtype)
        statistics = base.Statistics(jnp.int32(step), jnp.asarray(row, dtype), square)
        weights, state = update(statistics, state)
        # The parameters and the weights of a step are moved with those before it.
        np.testing.assert_allclose(weights, expected, atol=50 * float(jnp.finfo(dtype).eps))
        expected = projected(expected + 0.3 * row)


def projected(values):
    """Onto the simplex: the threshold by bisection, in float64."""
    low, high = values.min() - 1, values.max()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.maximum(values - middle, 0).sum() > 1 else (low, middle)
    return np.maximum(values - low, 0)


def quadratics(params):
    centers = jnp.array([[0.0, 0.0], [1.0, 0.5], [-0.5, 2.0]])
    scales = jnp.array([[3.0, 1.0], [0.3, 2.0], [1.0, 0.2]])
    return jnp.sum(scales * (params[None, :] - centers) ** 2, axis=1) + 0.5


@pytest.mark.parametrize("optimizer", [optax.sgd(0.01, momentum=0.9), optax.adam(0.01)])
def test_famo_is_the_one_with_a_second_forward_pass_whatever_the_optimizer(optimizer):
    method, gamma, rate = weighting.famo(0.025, learning_rate=None), 1e-3, 0.025

    def moved(params, opt_state, gradient):
        # Optax leaves conversions to JAX.
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    @jax.jit
    def ours(params, opt_state, state, count):
        losses, pullback = jax.vjp(quadratics, params)
        weights, state = method.update(base.Statistics(count, losses, jnp.zeros((3, 3))), state)
        return *moved(params, opt_state, pullback(weights)[0]), state, weights

    @jax.jit
    def step(params, opt_state, weights):
        return moved(params, opt_state, jax.vjp(quadratics, params)[1](weights)[0])

    params = theirs = jnp.array([2.0, -1.0])
    opt_state = their_state = optimizer.init(params)
    state = method.init(3, jnp.float32)
    xi, mean, square = np.zeros(3), np.zeros(3), np.zeros(3)
    for count in range(150):
        params, opt_state, state, weights = ours(params, opt_state, state, jnp.int32(count))
        before = np.asarray(quadratics(theirs), np.float64)
        z = np.exp(xi) / np.exp(xi).sum()
        expected = z / before / (z / before).sum()
        # Float32 of the losses, whose differences are small, through Adam.
        np.testing.assert_allclose(weights, expected, atol=2e-3)
        theirs, their_state = step(theirs, their_state, jnp.asarray(expected, jnp.float32))
        delta = np.log(before) - np.log(np.asarray(quadratics(theirs), np.float64))
        gradient = z * (delta - z @ delta) + gamma * xi
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        corrected = mean / (1 - 0.9 ** (count + 1)), square / (1 - 0.999 ** (count + 1))
        xi = xi - rate * corrected[0] / (np.sqrt(corrected[1]) + 1e-8)
    # They have moved, or anything would do.
    assert np.abs(xi).max() > 0.3


def test_gradnorm_is_the_paper_s(dtype):
    method = weighting.gradnorm(0.02, asymmetry=1.5)
    update = jax.jit(method.update)
    rng = np.random.default_rng(0)
    w, first = np.ones(4), None
    state = method.init(4, jnp.dtype(dtype))
    for step in range(50):
        losses, gradients = rng.uniform(0.5, 2, 4), rng.normal(size=(4, 6))
        statistics = base.Statistics(
            jnp.int32(step),
            jnp.asarray(losses, dtype),
            jnp.asarray(gradients @ gradients.T, dtype),
        )
        weights, state = update(statistics, state)
        np.testing.assert_allclose(weights, w, rtol=1000 * float(jnp.finfo(dtype).eps))
        first = losses if first is None else first
        lengths = np.linalg.norm(gradients, axis=1)
        rates = losses / first / np.mean(losses / first)
        target = np.mean(w * lengths) * rates**1.5
        # The targets are constants in the gradient of the distance.
        w = np.maximum(w - 0.02 * np.sign(w * lengths - target) * lengths, 0)
        w = 4 * w / w.sum()
    assert np.abs(w - 1).max() > 0.1


def test_doge_without_own_squares():
    statistics = battery.statistics()
    matrix = np.asarray(statistics.interaction, np.float64)
    mean = np.mean(np.sqrt(np.diag(matrix)))
    for own in (True, False):
        used = matrix if own else matrix - np.diag(np.diag(matrix))
        gain = np.clip(0.01 * used.sum(axis=1) / mean, 0, 0.05) / 0.05
        method = weighting.doge(0.01, own_square=own)
        weights, _ = method.update(statistics, method.init(N, jnp.float32))
        np.testing.assert_allclose(weights, np.exp(gain) / np.exp(gain).sum(), rtol=1e-5)


@pytest.mark.parametrize("window", [1, 3, None])
def test_skill_it_sums_the_losses_of_its_window(window):
    rng = np.random.default_rng(0)
    losses = rng.uniform(0, 2, (6, N))
    method = weighting.skill_it(0.2, skills=battery.GRAPH, window=window)
    state = method.init(N, jnp.float32)
    for step in range(6):
        statistics = base.Statistics(
            jnp.int32(step), jnp.asarray(losses[step], jnp.float32), jnp.eye(N)
        )
        weights, state = method.update(statistics, state)
        start = 0 if window is None else max(0, step + 1 - window)
        expected = np.exp(0.2 * battery.GRAPH @ losses[start : step + 1].sum(axis=0))
        np.testing.assert_allclose(weights, expected / expected.sum(), rtol=2e-5)

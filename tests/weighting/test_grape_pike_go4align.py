"""GRAPE, PiKE and GO4Align against their papers' rules, written out in NumPy."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldro_jax import weighting
from ldro_jax.weighting.go4align import group_means

N = 5
STEPS = 6


def measured(seed, *, num_tasks=N):
    """Losses, the gradients' products and noise of one step, in float64."""
    generator = np.random.default_rng(seed)
    gradients = generator.normal(size=(num_tasks, 4)) + 0.5 * generator.normal(size=4)
    noise = generator.uniform(0.1, 4, num_tasks)
    return generator.uniform(0.3, 3, num_tasks), gradients @ gradients.T, noise


def given(losses, interaction, noise, dtype, count=0):
    losses, interaction, noise = (jnp.asarray(x, dtype) for x in (losses, interaction, noise))
    return weighting.Statistics(jnp.int32(count), losses, interaction, noise=noise)


compiled = functools.cache(jax.jit)


def weights_of(method, steps, dtype):
    """Weights after each step."""
    state = method.init(len(steps[0][0]), jnp.dtype(dtype))
    update = compiled(method.update)
    found = []
    for count, step in enumerate(steps):
        weights, state = update(given(*step, dtype, count), state)
        assert weights.dtype == dtype
        found.append(np.asarray(weights, np.float64))
    return found


def assert_close(found, expected, dtype):
    # A few roundings in each of the steps.
    np.testing.assert_allclose(found, expected, rtol=200 * float(jnp.finfo(dtype).eps))


def grape_by_hand(steps, weight_lr, adversary_lr):
    """Equations 3 and 4: first the tasks with the alignments of the step, then the domains."""
    alpha = z = np.full(N, 1 / N)
    found = []
    for losses, interaction, _ in steps:
        improvements = [sum(interaction[n] * alpha) / losses[n] for n in range(N)]
        z = z * np.exp(-adversary_lr * np.array(improvements))
        z = z / z.sum()
        gains = [sum(z[n] * interaction[n, k] / losses[n] for n in range(N)) for k in range(N)]
        alpha = alpha * np.exp(weight_lr * np.array(gains))
        alpha = alpha / alpha.sum()
        found.append(alpha)
    return found


def test_grape_is_the_paper_s(dtype):
    steps = [measured(seed) for seed in range(STEPS)]
    found = weights_of(weighting.grape(0.3, 0.7), steps, dtype)
    assert_close(found, grape_by_hand(steps, 0.3, 0.7), dtype)


def test_grape_with_an_adversary_who_stays_even_gains_for_all(dtype):
    losses, interaction, _ = step = measured(3)
    (found,) = weights_of(weighting.grape(0.3, 0.0), [step], dtype)
    expected = np.exp(0.3 * (interaction / losses[:, None]).mean(axis=0))
    assert_close(found, expected / expected.sum(), dtype)


def test_grape_gives_more_to_the_task_that_improves_slowly():
    step = np.array([1.0, 1.0]), np.diag([4.0, 1.0]), np.zeros(2)
    found = weights_of(weighting.grape(0.02, 0.02), [step] * 2000, "float32")
    # The weights go round the point where both improve at the same rate, 4 α_1 = α_2.
    np.testing.assert_allclose(np.mean(found, axis=0), [0.2, 0.8], atol=0.02)


def pike_by_hand(steps, weight_lr, noise_penalty, rows):
    """Algorithm 1, with the variance of one example's gradient and the size of the whole batch."""
    w = np.full(N, 1 / N)
    found = []
    for _, interaction, variance in steps:
        for k in range(N):
            penalty = noise_penalty / (2 * N * rows) * variance[k]
            w[k] *= np.exp(weight_lr * interaction[k, k] - penalty)
        w = w / np.abs(w).sum()
        found.append(w.copy())
    return found


def test_pike_is_the_paper_s(dtype):
    # Eight examples of each task; their mean has an eighth of the variance of one.
    rows = 8
    steps = [measured(seed) for seed in range(STEPS)]
    of_means = [(losses, interaction, noise / rows) for losses, interaction, noise in steps]
    found = weights_of(weighting.pike(0.05, noise_penalty=3.0), of_means, dtype)
    assert_close(found, pike_by_hand(steps, 0.05, 3.0, rows), dtype)


def test_pike_takes_a_negative_squared_length_for_zero(dtype):
    losses, interaction, noise = measured(0)
    below, zero = interaction.copy(), interaction.copy()
    below[2, 2], zero[2, 2] = -5.0, 0.0
    method = weighting.pike(0.05, noise_penalty=3.0)
    found = weights_of(method, [(losses, below, noise)], dtype)
    np.testing.assert_array_equal(found, weights_of(method, [(losses, zero, noise)], dtype))


def test_pike_needs_the_noise():
    method = weighting.pike(0.05, noise_penalty=3.0)
    assert method.uses_interaction and method.uses_noise and method.default_interaction == "split"
    statistics = given(*measured(0), "float32")._replace(noise=None)
    with pytest.raises(ValueError, match=r'noise must be .* interaction="split".*it is None'):
        method.update(statistics, method.init(N, jnp.float32))


def k_means(values, num_groups):
    """The means of the best of all divisions into groups."""
    best = np.inf
    for groups in itertools.product(range(num_groups), repeat=len(values)):
        members = [values[np.equal(groups, group)] for group in range(num_groups)]
        means = np.array([m.mean() if m.size else 0.0 for m in members])[list(groups)]
        cost = ((values - means) ** 2).sum()
        if cost < best * (1 - 1e-9):
            best, found = cost, means
    return found


@pytest.mark.parametrize("num_groups", [1, 2, 3, 4])
def test_groups_are_the_best_of_all(num_groups, dtype):
    for seed in range(5):
        values = np.random.default_rng(seed).exponential(size=6)
        found = group_means(jnp.asarray(values, dtype), num_groups)
        assert_close(found, k_means(values, num_groups), dtype)


@pytest.mark.parametrize(
    "values, num_groups, expected",
    [
        ([3.0, 1.0, 3.0, 1.0, 1.0], 2, [3.0, 1.0, 3.0, 1.0, 1.0]),
        # More groups than different values, and than values.
        ([2.0, 5.0, 2.0], 3, [2.0, 5.0, 2.0]),
        ([2.0, 5.0], 7, [2.0, 5.0]),
        ([4.0], 2, [4.0]),
        ([0.0, 0.0], 2, [0.0, 0.0]),
        # 1 + 1e-6 is nearer to 1 than to 2, and 1e-30 to 0.
        ([1.0, 2.0, 1.000001, 1e-30, 0.0], 3, [1.0000005, 2.0, 1.0000005, 5e-31, 5e-31]),
        ([1e30, 1e-30, 1e30, 2e30], 2, [4e30 / 3, 1e-30, 4e30 / 3, 4e30 / 3]),
    ],
)
def test_groups_by_hand(values, num_groups, expected):
    found = group_means(jnp.asarray(values, jnp.float32), num_groups)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def go4align_by_hand(steps, num_groups, risk_lr):
    """Equations 5 to 7 and 3, with the sum of the losses in the place of their mean."""
    q = np.full(N, 1 / N)
    found = []
    for losses, _, _ in steps:
        q = q * np.exp(-risk_lr * losses)
        q = q / q.sum()
        found.append(k_means(losses.sum() / losses * q, num_groups))
    return found


@pytest.mark.parametrize("num_groups", [1, 2, 3])
def test_go4align_is_the_paper_s(num_groups, dtype):
    steps = [measured(seed) for seed in range(STEPS)]
    found = weights_of(weighting.go4align(num_groups, risk_lr=0.2), steps, dtype)
    assert_close(found, go4align_by_hand(steps, num_groups, 0.2), dtype)


def test_go4align_with_a_group_for_each_task_is_scale_invariant(dtype):
    losses = measured(0)[0]
    (found,) = weights_of(weighting.go4align(N, risk_lr=0.0), [measured(0)], dtype)
    assert_close(found, losses.mean() / losses, dtype)


METHODS = {
    "grape": lambda rate: weighting.grape(rate, rate),
    "pike": lambda rate: weighting.pike(rate, noise_penalty=rate),
    "go4align": lambda rate: weighting.go4align(2, risk_lr=rate),
}


@pytest.mark.parametrize("name", METHODS)
def test_rates_may_be_schedules(name):
    steps = [measured(seed) for seed in range(3)]
    scheduled = METHODS[name](lambda count: jnp.where(count < 2, 0.2, 0.0))
    found = weights_of(scheduled, steps, "float32")
    expected = weights_of(METHODS[name](0.2), steps, "float32")
    np.testing.assert_array_equal(found[:2], expected[:2])
    assert (found[2] != expected[2]).any()


@pytest.mark.parametrize("name", METHODS)
def test_rates_that_make_no_sense_are_refused(name):
    for rate in (-0.1, float("nan"), "0.1"):
        with pytest.raises(ValueError, match=r"must be a number in \[0, inf\)"):
            METHODS[name](rate)


@pytest.mark.parametrize("num_groups", [0, 1.5, True])
def test_a_number_of_groups_that_makes_no_sense_is_refused(num_groups):
    with pytest.raises(ValueError, match="num_groups must be a positive integer"):
        weighting.go4align(num_groups, risk_lr=1e-4)


@functools.cache
def made(name):
    return METHODS[name](0.5)


SCALES = [1e-12, 1.0, 1e12]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("of_losses", SCALES)
@pytest.mark.parametrize("of_gradients", [0.0, *SCALES])
def test_weights_are_finite_and_twins_alike(name, of_losses, of_gradients, dtype):
    # Task 3 is task 0 again, and task 1 has no gradient.
    twins = np.array([0, 1, 2, 0, 4])
    steps = []
    for seed in range(STEPS):
        losses, interaction, noise = measured(seed)
        interaction[1, :] = interaction[:, 1] = noise[1] = 0
        interaction, noise = of_gradients**2 * interaction, of_gradients**2 * noise
        steps.append((of_losses * losses[twins], interaction[np.ix_(twins, twins)], noise[twins]))
    for weights in weights_of(made(name), steps, dtype):
        assert np.isfinite(weights).all() and (weights >= 0).all() and weights.any()
        np.testing.assert_allclose(weights[3], weights[0], rtol=50 * float(jnp.finfo(dtype).eps))
        if name != "go4align":
            np.testing.assert_allclose(weights.sum(), 1, rtol=50 * float(jnp.finfo(dtype).eps))


@pytest.mark.parametrize("name", METHODS)
def test_weights_are_finite_where_the_exponent_is_not(name):
    losses, interaction, noise = measured(0)
    losses = losses * np.array([1e-12, 1.0, 0.0, 1e12, 1.0])
    step = losses, 1e37 * interaction / np.abs(interaction).max(), 1e37 * noise
    for weights in weights_of(METHODS[name](1e3), [step] * 3, "float32"):
        assert np.isfinite(weights).all() and weights.any()

"""Weights by signal: against NumPy, what they don't depend on, and where tasks can't be learnt."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import labelled, tiny

from ldro_jax import interaction, ldro, transform, weighting
from ldro_jax.training.engine import Trial
from ldro_jax.training.method import Method
from ldro_jax.weighting import base

N, DIRECTIONS, DECAY = 5, 40, 0.97
LEAST = 1e-3


def measured(seed, scale=1.0):
    """Losses, an unbiased matrix of two noisy halves, and the variance of their mean."""
    rng = np.random.default_rng(seed)
    scale = np.broadcast_to(scale, N)[:, None]
    true = np.linspace(0, 1, N)[:, None] * rng.normal(size=(N, DIRECTIONS))
    halves = scale * (true + np.sqrt(2) * rng.normal(size=(2, N, DIRECTIONS)))
    matrix = halves.mean(axis=0) @ halves.mean(axis=0).T
    np.fill_diagonal(matrix, np.sum(halves[0] * halves[1], axis=1))
    noise = np.sum((halves[0] - halves[1]) ** 2, axis=1) / 4
    return scale[:, 0] * rng.uniform(1, 2, N), matrix, noise


def shown(step, dtype="float32", **more):
    losses, matrix, noise = (jnp.asarray(x, dtype) for x in step)
    more.setdefault("fresh", jnp.ones(N, bool))
    return base.Statistics(jnp.int32(0), losses, matrix, noise=noise, **more)


def run(method, statistics):
    update = jax.jit(method.update)
    state, found = method.init(N, statistics[0].losses.dtype), []
    for each in statistics:
        weights, state = update(each, state)
        found.append(np.asarray(weights, np.float64))
    return found


def of_the_mean(decays):
    """How much each measurement counts, the latest most."""
    weights = np.zeros(0)
    for decay in decays:
        weights = np.append(decay * weights, 1 - decay)
    return weights / weights.sum()


def shares_of(squares, noise, decays=None):
    """From measurements ``[m, N]`` of both, the latest counting most; and how sure they are."""
    squares, noise = np.asarray(squares, float), np.maximum(noise, 0)
    decays = decays or [DECAY] * len(squares)
    weights = of_the_mean(decays)
    square = np.maximum(weights @ squares, 0)
    shares = square / np.maximum(square + weights @ noise, 1e-300)
    # How far the shares of single measurements are spread, so how uncertain their mean is, in which
    # each counts by its size.
    by_size = weights[:, None] * np.maximum(np.abs(squares), noise)
    by_size = by_size / np.maximum(by_size.sum(axis=0), 1e-300)
    part = np.sum(by_size**2, axis=0)
    drawn = np.ones(squares.shape[1])
    if len(squares) > 1:
        single = squares / np.maximum(np.abs(squares) + noise, 1e-300)
        # But for what all tasks have in common: N errors less their mean have (N - 1) / N of their
        # variance.
        stretch = np.sqrt(squares.shape[1] / (squares.shape[1] - 1))
        for step in range(1, len(single)):
            mean = of_the_mean(decays[:step]) @ single[:step]
            off = single[step] - mean
            single[step] = mean + stretch * (off - off.mean())
        spread = weights @ (single - weights @ single) ** 2 / (1 - part)
        drawn = np.minimum(1, spread.mean() * part / max(shares.var(ddof=1), 1e-300))
    return np.maximum(shares + drawn * (shares.mean() - shares), LEAST), 1 - drawn


def found_by_hand(steps):
    """Shares after each step, and what is left of their differences."""
    for last in range(1, len(steps) + 1):
        yield shares_of([np.diag(s[1]) for s in steps[:last]], [s[2] for s in steps[:last]])


def shares_by_hand(steps):
    """After each step."""
    return (shares for shares, _ in found_by_hand(steps))


def certain(step, without=()):
    """After a measurement that is made twice."""
    square, noise = (np.delete(x, without) for x in (np.diag(step[1]), step[2]))
    return shares_of([square, square], [noise, noise])[0]


STEPS = [measured(seed) for seed in range(4)]


def close(dtype):
    return {"rtol": 1e-4, "atol": 1e-6} if dtype == "float32" else {"rtol": 1e-10, "atol": 1e-12}


def test_measurements_that_differ_like_tasks_say_nothing(dtype):
    # The second is the first with the tasks in another order: each is as far from its own mean.
    square, noise = np.arange(1.0, N + 1), np.full(N, 3.0)
    steps = [(np.ones(N), np.diag(s), noise) for s in (square, square[::-1])]
    first, second = run(weighting.signal(), [shown(s, dtype) for s in steps])
    np.testing.assert_allclose([first, second], 1 / N, **close(dtype))
    # And a third like the first says that they do differ, but not by how much.
    *_, third = run(weighting.signal(), [shown(steps[n], dtype) for n in (0, 1, 0, 0, 0)])
    raw, _ = shares_of([square] * 2, [noise] * 2)
    assert 0.1 < np.ptp(third) / np.ptp(raw / raw.sum()) < 0.9


def test_tasks_that_are_measured_on_the_same_rows_are_told_apart(dtype):
    """Their measurements rise and fall together, by more than the tasks differ."""
    share, together = np.array([0.4, 0.42, 0.44, 0.46, 0.48]), 0.3 * np.cos(np.arange(20.0))
    steps = [(np.ones(N), np.diag(s), 1 - s) for s in share + together[:, None]]
    told = run(weighting.signal(), [shown(s, dtype) for s in steps])[-1]
    mean = of_the_mean([DECAY] * 20) @ (share + together[:, None])
    np.testing.assert_allclose(told, mean / mean.sum(), **close(dtype))
    # One task a step says nothing of what is common, nor of what isn't.
    alone = [shown(s, dtype, known=jnp.arange(N) == n % N) for n, s in enumerate(5 * steps)]
    last = shown(steps[0], dtype, fresh=jnp.zeros(N, bool))
    np.testing.assert_allclose(run(weighting.signal(), [*alone, last])[-1], 1 / N, atol=0.02)


def evenness(present, seeds=100):
    """Weights × N of tasks that are alike, whose measurements err together, by who is there."""
    steps, number = present.shape
    method = weighting.signal()

    def one(key):
        def step(state, inputs):
            key, new = inputs
            errors = 0.2 * jax.random.normal(key) + 0.03 * jax.random.normal(key, (number,))
            share = jnp.clip(0.4 + errors, 0.01, 0.99)
            given = base.Statistics(
                jnp.int32(0), jnp.ones(number), jnp.diag(share), noise=1 - share, fresh=new
            )
            weights, state = method.update(given, state)
            return state, weights

        keys = jax.random.split(key, steps)
        return jax.lax.scan(step, method.init(number, jnp.float32), (keys, present))[1]

    return number * np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), seeds)))


def test_what_tasks_have_in_common_counts_where_they_are_measured_together():
    half = np.random.default_rng(0).random((60, 10)) < 0.5
    half[0] = True
    found = evenness(half)
    ratio = found.max(axis=2) / found.min(axis=2)
    # It would be 1.3 to 1.7 after 20 measurements.
    assert np.quantile(ratio[:, 20], 0.95) < 1.15 and np.quantile(ratio[:, -1], 0.95) < 1.15
    late = np.ones((60, 10), bool)
    late[:20, 0] = False
    # What comes later is told apart by what all had in common until then.
    assert np.median(np.abs(evenness(late)[:, 25:, 0] - 1)) < 0.1


def test_the_share_is_found_whatever_the_noise(dtype):
    # Gradients of known length, and two halves of eight rows of known variance.
    squares, variances = np.array([9.0, 1.0, 0.04, 0.0]), np.array([1.0, 4.0, 4.0, 4.0])
    true = jnp.asarray(np.sqrt(squares)[:, None] * np.eye(1, 8), dtype)[None]
    spread = jnp.asarray(np.sqrt(variances / 8 / 4), dtype)[None, :, None]
    method = weighting.signal(decay=0.999)

    @jax.jit
    def after(keys):
        def step(state, key):
            halves = true + spread * jax.random.normal(key, (2, 4, 8), dtype)
            matrix = jnp.diag(jnp.sum(halves[0] * halves[1], axis=1))
            noise = jnp.sum((halves[0] - halves[1]) ** 2, axis=1) / 4
            given = base.Statistics(jnp.int32(0), jnp.ones(4, dtype), matrix, noise=noise)
            weights, state = method.update(given, state)
            return state, weights

        return jax.lax.scan(step, method.init(4, jnp.dtype(dtype)), keys)[1][-1]

    weights = after(jax.random.split(jax.random.key(0), 4000))
    expected = squares / (squares + variances / 8)
    # The product of two halves has a spread of up to 0.35 here, its mean over some 2000 of 0.01.
    np.testing.assert_allclose(weights, expected / expected.sum(), atol=0.02)


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_weights_are_the_shares_of_the_means(power, dtype):
    found = run(weighting.signal(power), [shown(s, dtype) for s in STEPS])
    for weights, shares in zip(found, shares_by_hand(STEPS), strict=True):
        np.testing.assert_allclose(weights, shares**power / np.sum(shares**power), **close(dtype))


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_a_tilt_gives_more_where_more_can_be_gained(power, dtype):
    found = run(weighting.signal(power, tilt=1.5), [shown(s, dtype) for s in STEPS])
    for weights, step, known in zip(found, STEPS, found_by_hand(STEPS), strict=True):
        shares, sure = known
        gains = step[0] * shares**power
        gains = gains / gains.max()
        gains = gains.mean() + sure * (gains - gains.mean())
        expected = shares**power * np.exp(1.5 * gains)
        np.testing.assert_allclose(weights, expected / expected.sum(), **close(dtype))


def test_a_tilt_knows_no_unit_and_no_more_than_its_bound():
    _, matrix, noise = positive(3)
    shares = certain((None, matrix, noise))
    losses = np.array([1e-20, 1e-3, 1.0, 10.0, 1e20])
    found = run(weighting.signal(tilt=2.0), 2 * [shown((losses, matrix, noise))])
    np.testing.assert_allclose(found[0], 1 / N, rtol=1e-5)  # one measurement tells nothing
    expected = shares * np.where(losses == 1e20, np.exp(2), 1)
    np.testing.assert_allclose(found[1], expected / expected.sum(), rtol=1e-5)
    scaled = run(weighting.signal(tilt=2.0), 2 * [shown((1e-18 * losses, matrix, noise))])
    np.testing.assert_allclose(scaled, found, rtol=1e-5)


def test_a_tilt_takes_a_newcomer_for_neither_good_nor_bad():
    step = positive(3)
    noise = np.diag(step[1])  # half of each is signal
    old, both = jnp.array([True, True, True, True, False]), jnp.ones(N, bool)
    known = [shown((np.full(N, 2.0), step[1], noise), known=k) for k in (old, old, old, both)]
    found = run(weighting.signal(tilt=3.0), known)
    np.testing.assert_allclose(found[-1], 1 / N, rtol=1e-5)


@pytest.mark.parametrize("change", [0.5 ** (1 / 3), 1.0, 2 ** (1 / 3)])
def test_tasks_alike_get_about_the_same_however_their_gradients_shrink(change):
    """Squares and variances that all change by a factor from one measurement to the next."""

    def one(key):
        def step(state, inputs):
            key, scale = inputs
            halves = scale * (0.06 + jax.random.normal(key, (2, N, 30)) / 5)
            noise = jnp.sum((halves[0] - halves[1]) ** 2, axis=1) / 4
            matrix = jnp.diag(jnp.sum(halves[0] * halves[1], axis=1))
            given = base.Statistics(jnp.int32(0), jnp.ones(N), matrix, noise=noise)
            weights, state = method.update(given, state)
            return state, weights

        scales = jnp.sqrt(change) ** jnp.arange(60, dtype=jnp.float32)
        start = method.init(N, jnp.float32)
        return jax.lax.scan(step, start, (jax.random.split(key, 60), scales))[1][-1]

    method = weighting.signal()
    weights = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), 200))
    ratio = np.max(weights, axis=1) / np.min(weights, axis=1)
    # It is 5 and 6 where all measurements count alike, and 1.1 to 1.2 like this.
    assert np.median(ratio) < 1.5


def test_the_decay_may_be_a_schedule(dtype):
    decays = [0.97, 0.5, 0.9, 0.2]
    method = weighting.signal(decay=lambda count: jnp.asarray(decays, dtype)[count])
    steps = [shown(s, dtype)._replace(count=jnp.int32(n)) for n, s in enumerate(STEPS)]
    for last, weights in enumerate(run(method, steps), start=1):
        squares, noise = [np.diag(s[1]) for s in STEPS[:last]], [s[2] for s in STEPS[:last]]
        shares, _ = shares_of(squares, noise, decays[:last])
        np.testing.assert_allclose(weights, shares / shares.sum(), **close(dtype))


def test_smoothing_leaves_what_it_measures_alone():
    for method in (weighting.signal(), weighting.by_signal(weighting.term(1.0))):
        even = [s._replace(losses=jnp.ones(N)) for s in map(shown, STEPS)]
        smooth = weighting.smoothed(method, 0.9)
        np.testing.assert_allclose(run(smooth, even), run(method, even), rtol=1e-5)
    losses = [shown(s) for s in STEPS]
    tilted = weighting.signal(tilt=2.0)
    assert not np.allclose(run(weighting.smoothed(tilted, 0.9), losses), run(tilted, losses))


def test_a_lagging_matrix_counts_what_is_new_in_it():
    """A task that was measured once, in a matrix that doesn't say of which step it is."""
    kept, found = STEPS[0], []
    for step in STEPS:
        matrix, noise = step[1].copy(), step[2].copy()
        matrix[2, 2], noise[2] = kept[1][2, 2], kept[2][2]
        found.append((step[0], matrix, noise))
    lagging = run(weighting.signal(), [shown(s, fresh=None) for s in found])
    fresh = [jnp.ones(N, bool), *[jnp.arange(N) != 2] * (len(STEPS) - 1)]
    said = [shown(s, fresh=new) for s, new in zip(found, fresh, strict=True)]
    np.testing.assert_allclose(lagging, run(weighting.signal(), said), rtol=1e-6)


def test_a_high_power_leaves_the_best():
    # Measured twice the same, so that there is no doubt about it.
    weights = run(weighting.signal(100.0), 2 * [shown(STEPS[0])])[-1]
    assert weights.max() > 0.99 and weights.argmax() == certain(STEPS[0]).argmax()


def test_term_sees_losses_times_shares(dtype):
    method = weighting.by_signal(weighting.term(2.0, relative=True), 0.5)
    found = run(method, [shown(s, dtype) for s in STEPS])
    for weights, step, shares in zip(found, STEPS, shares_by_hand(STEPS), strict=True):
        losses = step[0] * np.sqrt(shares)
        expected = np.exp(2 * losses / losses.mean())
        np.testing.assert_allclose(weights, expected / expected.sum(), **close(dtype))


def test_an_excess_over_references_is_scaled_as_a_whole(dtype):
    references = np.linspace(0.1, 0.5, N)
    for make in (weighting.baselined_dro, functools.partial(weighting.doremi, share=0.0)):
        method = weighting.by_signal(make(references, 0.3))
        found = run(method, [shown(s, dtype) for s in STEPS])[-1]
        pairs = zip(STEPS, shares_by_hand(STEPS), strict=True)
        expected = np.exp(0.3 * sum(shares * (step[0] - references) for step, shares in pairs))
        np.testing.assert_allclose(found, expected / expected.sum(), **close(dtype))


def played(step, shares, *, normalize, lookahead_lr):
    """Losses of ℓ·s, and their decrease in a step along each task's gradient; relative rates."""
    losses, matrix, _ = step
    # Positive squares as they are: these cosines are below one.
    lengths = np.sqrt(np.diag(matrix))
    rows = shares[:, None] * (matrix / lengths if normalize else matrix)
    unit = np.mean(losses * shares)
    own = shares * lengths if normalize else np.sqrt(shares) * lengths
    rate = lookahead_lr * unit / np.sqrt(np.mean(own**2)) ** (1 if normalize else 2)
    return losses * shares / unit, rate * rows / unit


def positive(seed):
    """Statistics whose squares come out positive and large enough for all cosines."""
    rng = np.random.default_rng(seed)
    gradients = rng.normal(size=(N, DIRECTIONS)) + 0.3
    return rng.uniform(1, 2, N), gradients @ gradients.T, rng.uniform(1, 200, N)


@pytest.mark.parametrize("normalize", [True, False])
def test_online_lookahead_scales_rows(normalize, dtype):
    steps = [positive(seed) for seed in range(4)]
    inner = weighting.lookahead_online(2.0, 0.5, relative=True, normalize_interaction=normalize)
    found = run(weighting.by_signal(inner), [shown(s, dtype) for s in steps])
    last = np.full(N, 1 / N)
    for weights, step, shares in zip(found, steps, shares_by_hand(steps), strict=True):
        losses, decrease = played(step, shares, normalize=normalize, lookahead_lr=2.0)
        worst = np.argmax(losses - decrease @ last)
        last = last * np.exp(0.5 * decrease[worst])
        last = last / last.sum()
        np.testing.assert_allclose(weights, last, **close(dtype))


@pytest.mark.parametrize("normalize", [True, False])
def test_smooth_lookahead_is_at_the_equilibrium_of_scaled_rows(normalize, dtype):
    step = positive(7)
    inner = weighting.smooth_lookahead(1.0, 0.3, relative=True, normalize_interaction=normalize)
    w = run(weighting.by_signal(inner), 2 * [shown(step, dtype)])[-1]
    losses, decrease = played(step, certain(step), normalize=normalize, lookahead_lr=1.0)
    v = np.exp((losses - decrease @ w) / 0.3)
    answer = np.exp(decrease.T @ (v / v.sum()) / 0.3)
    # The solver stops at a tolerance.
    np.testing.assert_allclose(w, answer / answer.sum(), atol=2e-4)
    assert np.ptp(w) > 0.05


def test_the_size_of_a_tasks_own_loss_makes_no_difference(dtype):
    scales = np.array([1e-3, 1.0, 7.0, 1e3, 0.2])
    plain, scaled = (
        run(weighting.signal(), [shown(measured(s, c), dtype) for s in range(3)])
        for c in (1.0, scales)
    )
    np.testing.assert_allclose(scaled, plain, **close(dtype))


RELATIVE = {
    "term": weighting.term(2.0, relative=True),
    "lookahead_online": weighting.lookahead_online(1.0, 0.5, relative=True),
    "raw": weighting.lookahead_online(1.0, 0.5, relative=True, normalize_interaction=False),
    "smooth": weighting.smooth_lookahead(3.0, 0.3, relative=True),
}


@pytest.mark.parametrize("name", RELATIVE)
def test_a_common_factor_makes_no_difference(name):
    method = weighting.by_signal(RELATIVE[name])
    steps = [positive(seed) for seed in range(3)]
    bigger = [(30 * losses, 900 * matrix, 900 * noise) for losses, matrix, noise in steps]
    found, expected = (run(method, [shown(s) for s in given]) for given in (bigger, steps))
    np.testing.assert_allclose(found, expected, atol=2e-4)
    # Nor does the same share of signal for all, here a tenth.
    even = [(losses, m, 9 * np.diag(m)) for losses, m, _ in steps]
    found = run(method, [shown(s) for s in even])
    np.testing.assert_allclose(found, run(RELATIVE[name], [shown(s) for s in steps]), atol=2e-4)


def test_without_noise_it_is_the_weighting_inside(dtype):
    clean = [(losses, matrix, np.zeros(N)) for losses, matrix, _ in map(positive, range(3))]
    for inner in (weighting.group_dro(0.3), weighting.lookahead_online(0.1, 0.5)):
        statistics = [shown(s, dtype) for s in clean]
        found = run(weighting.by_signal(inner), statistics)
        np.testing.assert_allclose(found, run(inner, statistics), **close(dtype))
    np.testing.assert_allclose(run(weighting.signal(), statistics), 1 / N, **close(dtype))


def test_neither_gradient_nor_noise_is_no_signal():
    losses, matrix, noise = positive(0)
    matrix[2], matrix[:, 2], noise[2] = 0, 0, 0
    weights = run(weighting.signal(), 2 * [shown((losses, matrix, noise))])[-1]
    expected = certain((losses, matrix, noise))
    assert expected[2] == LEAST
    np.testing.assert_allclose(weights, expected / expected.sum(), rtol=1e-5)


def test_what_was_never_measured_has_the_mean_share():
    step = positive(1)
    fresh = jnp.array([True, True, False, True, True])
    stale = (step[0], np.where(fresh, step[1], 0), np.where(fresh, step[2], 0))
    weights = run(weighting.signal(), 2 * [shown(stale, fresh=fresh)])[-1]
    others = certain(step, without=2)
    expected = np.insert(others, 2, others.mean())
    np.testing.assert_allclose(weights, expected / expected.sum(), rtol=1e-5)
    # Before anything is measured, all are alike.
    (weights,) = run(weighting.signal(), [shown(stale, fresh=jnp.zeros(N, bool))])
    np.testing.assert_allclose(weights, 1 / N, rtol=1e-6)


def test_a_task_that_is_not_there_changes_nothing():
    step, known = positive(1), jnp.array([True, True, False, True, True])
    found = run(weighting.signal(), 2 * [shown(step, known=known)])[-1]
    shares = np.insert(certain(step, without=2), 2, 0)
    np.testing.assert_allclose(found, shares / shares.sum(), rtol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.5])
def test_each_measurement_counts_once(smoothing):
    """Not once for each of the three steps that it stays, and no mean of means."""
    tx = transform.weighted(
        weighting.term(1.0), N, signal_power=1.0, smoothing=smoothing, interaction_interval=3
    )
    steps = [measured(seed) for seed in range(7)]

    @jax.jit
    def update(state, step):
        losses, matrix, noise = step
        given = {"losses": losses, "pullback": lambda w: w[0]}
        given["interaction_fn"] = lambda: interaction.Measured(matrix, noise)
        # The second task isn't in the batch of the fourth step.
        present = (jnp.arange(N) != 1) | (state.count != 3)
        return tx.update(None, state, jnp.ones([]), present=present, **given)[1]

    state = tx.init(jnp.ones([]))
    for step in steps:
        state = update(state, jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), step))
    squares, noise = np.zeros(N), np.zeros(N)
    for count in (0, 3, 6):
        # An interaction_fn may be of other rows: that of an absent task is measured as well.
        squares = DECAY * squares + (1 - DECAY) * np.diag(steps[count][1])
        noise = DECAY * noise + (1 - DECAY) * steps[count][2]
    np.testing.assert_allclose(state.weighting.squares, squares, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(state.weighting.noise, noise, rtol=1e-4)


# Doors, defaults and errors.


def test_every_door_measures_by_halves():
    smooth = {"lookahead_lr": 1.0, "temperature": 0.3, "relative": True}
    intervals = [
        (Method("a", "signal"), 20),
        (Method("a", "group_dro", {"weight_lr": 0.1}, signal_power=1.0), 20),
        (Method("a", "smooth_lookahead", smooth, signal_power=1.0), 1),
        (Method("a", "term", {"tilt": 1.0}, signal_power=1.0, interaction_interval=5), 5),
    ]
    for method, interval in intervals:
        assert method.uses_interaction and method.interval == interval
        assert method.named_strategy == "split"
        tx = method.transform(2)
        assert tx.interval == interval and tx.weighting.uses_noise
        assert tx.plan.strategy.parts == 2
    assert Method("a", "term", {"tilt": 1.0}, signal_power=1.0).settings() == {
        "tilt": 1.0,
        "interaction_interval": 20,
        "signal_power": 1.0,
    }
    assert ldro.transform(2, **smooth, signal_power=1.0).plan.strategy.parts == 2


def test_without_rates_ldro_weighs_by_signal_with_a_tilt():
    tx = ldro.transform(N)
    assert (tx.interval, tx.plan.strategy.parts) == (20, 2)
    statistics = [shown(s) for s in STEPS]
    np.testing.assert_array_equal(
        run(tx.weighting, statistics), run(weighting.signal(tilt=1.0), statistics)
    )
    squared = ldro.transform(N, signal_power=2.0, interaction_interval=5)
    assert squared.interval == 5
    np.testing.assert_array_equal(
        run(squared.weighting, statistics), run(weighting.signal(2.0, tilt=1.0), statistics)
    )


def test_more_rows_say_more_of_the_same_noise():
    """The variance is that of a batch's gradient, however many rows it was measured on."""

    def loss_fn(params, batch):
        return jnp.mean(jnp.sum((batch - params[None]) ** 2, axis=1))

    rows = jax.random.normal(jax.random.key(0), (2, 1024, 500))
    tx, params = ldro.transform(2), jnp.zeros(500)
    for more in ({}, {"interaction_batch": rows}, {"interaction_batch": rows[:, :256]}):
        given = {"loss_fn": loss_fn, "batch": rows[:, :64], **more}
        _, state = tx.update(None, tx.init(params), params, **given)
        # Of one row and one parameter it is 4.
        noise = transform.find_state(state).noise
        np.testing.assert_allclose(noise, 4 * 500 / 64, rtol=0.2)


def test_what_is_of_a_lookahead_needs_one():
    for options in ({"relative": True}, {"normalize_interaction": False}):
        with pytest.raises(ValueError, match="give lookahead_lr as well"):
            ldro.transform(3, **options)
    with pytest.raises(ValueError, match="Given: adversary_temperature"):
        ldro.transform(3, adversary_temperature=0.1)
    with pytest.raises(ValueError, match=r"signal_power must be .* it is -1"):
        ldro.transform(3, signal_power=-1.0)


@pytest.mark.parametrize("name", ["average", "mgda"])
def test_a_weighting_that_does_not_look_at_losses_is_refused(name):
    tx = Method("a", name, signal_power=1.0).transform(2)
    with pytest.raises(ValueError, match=r"doesn't look at them\. .* weighting\.signal"):
        tx.init(jnp.ones(2))


def test_what_it_can_not_do_is_refused():
    with pytest.raises(ValueError, match=r"needs all of it, as signal_power does"):
        Method(
            "a",
            "lookahead_online",
            {"lookahead_lr": 1.0, "weight_lr": 0.1},
            interaction="products",
            signal_power=1.0,
        )
    for method in (weighting.signal(), weighting.by_signal(weighting.term(1.0))):
        statistics = shown(STEPS[0])._replace(noise=None)
        with pytest.raises(ValueError, match=r'noise must be .* interaction="split".*it is None'):
            method.update(statistics, method.init(N, jnp.float32))


# Training.


@pytest.mark.parametrize(
    "method",
    [
        Method("Signal", "signal", interaction_interval=1),
        Method(
            "TERM by signal",
            "term",
            {"tilt": 3.0, "relative": True},
            signal_power=1.0,
            interaction_interval=1,
        ),
    ],
    ids=["signal", "by signal"],
)
def test_tasks_that_can_not_be_learnt_get_less_than_half(method):
    """Five tasks of one linear model, the last two of other inputs with random labels."""
    slopes = jnp.array([1.0, -1.0, 0.5, -2.0, 0, 0, 0, 0])
    own = (jnp.arange(N) < 3)[:, None] == (slopes != 0)[None, :]

    def batch(key):
        first, second = jax.random.split(key)
        x = jnp.where(own[:, None], jax.random.normal(first, (N, 32, 8)), 0)
        random = jax.random.normal(second, (N, 32)) > 0
        return x, jnp.where((jnp.arange(N) < 3)[:, None], x @ slopes > 0, random)

    def loss_fn(params, batch):
        return jnp.mean(optax.sigmoid_binary_cross_entropy(batch[0] @ params, batch[1]))

    tx = optax.chain(method.transform(N), optax.sgd(0.05))

    @jax.jit
    def train(keys):
        def step(carry, key):
            params, state = carry
            updates, state = tx.update(None, state, params, loss_fn=loss_fn, batch=batch(key))
            return (optax.apply_updates(params, updates), state), ldro.weights(state)

        params = jnp.zeros(8)
        return jax.lax.scan(step, (params, tx.init(params)), keys)[1]

    # With six seeds at most 0.065 to 0.29 for signal alone.
    weights = train(jax.random.split(jax.random.key(1), 120))[50:].mean(axis=0)
    assert weights[3:].max() < weights[:3].min() / 2


@pytest.mark.parametrize(
    "make, a_problem, options",
    [
        (tiny.stacked, tiny.problem, {}),
        (tiny.stacked, tiny.problem, {"lagged": True, "interaction_interval": 1}),
        (tiny.stacked, labelled.problem, {}),
        pytest.param(tiny.meshed, tiny.problem, {}, marks=pytest.mark.heavy),
    ],
    ids=["stacked", "lagged", "labels", "meshed"],
)
def test_the_trainer_measures_what_it_weighs_by(make, a_problem, options):
    method = Method("Signal", "signal", **{"interaction_interval": 2, **options})
    session, seen = make(method, a_problem()).start([Trial(method, 0)]), []
    for step in (1, 2, 3):
        session.advance(step, lambda step: False, tiny.Progress())
        state = transform.find_state(session.state(0).opt_state)
        assert not state.unmeasured.any()
        seen.append(np.stack([np.diag(state.interaction), state.noise]).astype(np.float64))
    # In the first step and the third; or in every one, for the weights of the next.
    first, second = (seen[0], seen[1]) if method.lagged else (seen[0], seen[2])
    assert (first[1] > 0).all()
    means = (1 - DECAY) * (DECAY * first + second)
    kept = state.weighting
    np.testing.assert_allclose([kept.squares, kept.noise], means, rtol=1e-4, atol=1e-7)
    shares, _ = shares_of([first[0], second[0]], [first[1], second[1]])
    np.testing.assert_allclose(state.weights, shares / shares.sum(), rtol=1e-4)
    square = np.maximum(means[0], 0)
    share = weighting.signal_shares(session.state(0).opt_state)
    np.testing.assert_allclose(share, square / (square + means[1]), rtol=1e-4)

"""Wrappers, and the properties that methods are known by."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldro_jax import transform, weighting
from ldro_jax.weighting import about, base

N = 5


def statistics(seed=0, *, dtype="float32", scale=1.0, count=0, gradients=None, losses=None):
    rng = np.random.default_rng(seed)
    drawn, rows = rng.uniform(1, 2, N), rng.normal(size=(N, 9))
    losses = drawn if losses is None else losses
    gradients = rows if gradients is None else gradients
    gradients = np.asarray(gradients) * scale
    return base.Statistics(
        jnp.int32(count),
        jnp.asarray(np.asarray(losses) * scale, dtype),
        jnp.asarray(gradients @ gradients.T, dtype),
        noise=jnp.asarray(np.sum(gradients**2, axis=1) / 7, dtype),
    )


def run(method, steps):
    method = method._replace(update=jax.jit(method.update))
    state, found = method.init(steps[0].losses.size, steps[0].losses.dtype), []
    for step in steps:
        weights, state = method.update(step, state)
        found.append(np.asarray(weights))
    return found


def test_a_floor_is_a_share_of_the_weights_whatever_they_sum_to():
    tx = transform.weighted(weighting.group_dro(5.0), N, total=20.0, floor=0.1)
    arguments = {"losses": jnp.arange(N, dtype="float32"), "pullback": lambda w: w[0]}
    _, state = tx.update(None, tx.init(jnp.ones([])), jnp.ones([]), **arguments)
    np.testing.assert_allclose(state.weights.sum(), 20, rtol=1e-5)
    np.testing.assert_allclose(state.weights.min(), 20 * 0.1 / N, rtol=1e-3)


@pytest.mark.parametrize(
    "method", [weighting.gradnorm(0.01), weighting.stch(0.1), weighting.dwa(window=2)]
)
@pytest.mark.parametrize("first", ["absent", "not finite"])
def test_a_task_that_is_seen_late_has_no_better_past(method, first):
    tx = transform.weighted(method, 2)
    matrix = jnp.array([[1.0, 0.2], [0.2, 1.0]])

    def step(state, losses, present):
        arguments = {"pullback": lambda w: w[0], "interaction_fn": lambda: matrix}
        arguments |= {"losses": losses, "present": present}
        return tx.update(None, state, jnp.ones([]), **arguments)[1]

    step, both = jax.jit(step), jnp.array([True, True])
    state = tx.init(jnp.ones([]))
    if first == "absent":
        state = step(state, jnp.ones(2), jnp.array([True, False]))
    else:
        state = step(state, jnp.array([1.0, jnp.nan]), both)
    for _ in range(300):
        state = step(state, jnp.ones(2), both)
    np.testing.assert_allclose(state.weights[0], state.weights[1], rtol=1e-4)


def seen(statistics, state):
    """The weights are what the weighting sees."""
    return statistics.losses + 0 * statistics.interaction[0], state


def seen_diagonal(statistics, state):
    return jnp.diagonal(statistics.interaction), state


SEES_LOSSES = base.Weighting(lambda n, dtype: (), seen, uses_interaction=True)
SEES_DIAGONAL = base.Weighting(lambda n, dtype: (), seen_diagonal, uses_interaction=True)


@pytest.mark.parametrize("inner, of", [(SEES_LOSSES, "losses"), (SEES_DIAGONAL, "interaction")])
def test_smoothed_shows_corrected_exponential_means(inner, of):
    steps = [statistics(seed) for seed in range(6)]
    found = run(weighting.smoothed(inner, 0.7), steps)
    values = [np.asarray(getattr(s, of), np.float64) for s in steps]
    values = [np.diag(v) if v.ndim == 2 else v for v in values]
    for last, row in enumerate(found):
        shares = 0.7 ** np.arange(last, -1, -1)
        expected = np.average(values[: last + 1], axis=0, weights=shares)
        np.testing.assert_allclose(row, expected, rtol=1e-5)


def test_smoothed_keeps_no_matrix_that_is_not_used():
    state = weighting.smoothed(weighting.group_dro(0.1), 0.9).init(N, jnp.float32)
    assert state.interaction is None


def test_averaged_moves_from_the_first_weights():
    steps = [statistics(seed, count=seed) for seed in range(4)]
    raw = run(weighting.term(3.0), steps)
    expected = raw[0]
    for got, new in zip(run(weighting.averaged(weighting.term(3.0), 0.6), steps), raw, strict=True):
        expected = 0.6 * expected + 0.4 * new
        np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_normalized_gradients_gives_the_update_of_unit_vectors():
    gradients = np.random.default_rng(0).normal(size=(N, 9))
    lengths = np.linalg.norm(gradients, axis=1)
    (units,) = run(weighting.mgda(), [statistics(gradients=gradients / lengths[:, None])])
    wrapped = weighting.normalized_gradients(weighting.mgda())
    (found,) = run(wrapped, [statistics(gradients=gradients)])
    update, expected = found @ gradients, units @ (gradients / lengths[:, None])
    np.testing.assert_allclose(found.sum(), 1, rtol=1e-5)
    cosine = update @ expected / np.linalg.norm(update) / np.linalg.norm(expected)
    assert cosine > 1 - 1e-5


def test_clipped_and_rescaled_limit_the_weights():
    steps = [statistics()]
    (raw,) = run(weighting.aligned_mtl(), steps)
    (found,) = run(weighting.clipped(weighting.aligned_mtl(), 0.0, 0.15), steps)
    np.testing.assert_allclose(found, np.clip(raw, 0, 0.15), rtol=1e-6)
    (found,) = run(weighting.rescaled(weighting.aligned_mtl(), 2.0), steps)
    np.testing.assert_allclose(found, 2 * raw / np.abs(raw).sum(), rtol=1e-5)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: weighting.smoothed(weighting.average(), 1.0), r"decay must be .*\[0, 1\)"),
        (lambda: weighting.averaged(weighting.average(), -0.1), "decay must be"),
        (lambda: weighting.clipped(weighting.average(), 0.5, 0.1), "upper must be"),
        (lambda: weighting.rescaled(weighting.average(), 0.0), "total must be"),
    ],
)
def test_what_is_out_of_range_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# Properties.


@pytest.mark.parametrize(
    "method",
    [
        weighting.lookahead_online(1.0, 0.5, relative=True),
        weighting.lookahead_online(1.0, 0.5, relative=True, normalize_interaction=False),
        weighting.lookahead_exact(1.0, relative=True),
        weighting.smooth_lookahead(3.0, 0.3, relative=True),
        weighting.smooth_lookahead(3.0, 0.3, relative=True, normalize_interaction=False),
        weighting.term(2.0, relative=True),
        weighting.regularized_dro(0.4, relative=True),
    ],
)
def test_relative_rates_make_no_difference_of_scale(method):
    plain, scaled = ([statistics(s, scale=c) for s in range(4)] for c in (1.0, 100.0))
    assert not np.allclose(run(method, plain)[-1], 1 / N, atol=2e-3)
    for a, b in zip(run(method, plain), run(method, scaled), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 if method.uses_interaction else 1e-6)


CONFLICTS = [
    statistics(seed, gradients=np.random.default_rng(seed).normal(size=(N, 6)) + 0.4)
    for seed in range(8)
]


@pytest.mark.parametrize(
    "method",
    [
        weighting.upgrad(),
        weighting.dualproj(),
        weighting.mgda(),
        weighting.cagrad(1.2),
        weighting.nash_mtl(),
        weighting.fairgrad(2.0),
        weighting.imtl_g(),
        weighting.config(),
    ],
)
def test_non_conflicting(method):
    """No loss grows, to first order."""
    for step in CONFLICTS:
        (w,) = run(method, [step])
        change = np.asarray(step.interaction, np.float64) @ w
        assert change.min() >= -1e-4 * np.abs(change).max()


def test_average_conflicts_on_these_gradients():
    assert any((np.asarray(s.interaction).sum(axis=1) < 0).any() for s in CONFLICTS)


@pytest.mark.parametrize("method", [weighting.upgrad(), weighting.average()])
def test_linear_under_scaling(method):
    """The update is a linear function of the length of each gradient (Quinton and Rey)."""
    gradients = np.random.default_rng(3).normal(size=(N, 9)) + 0.4

    def update(lengths):
        scaled = gradients * lengths[:, None]
        return run(method, [statistics(gradients=scaled)])[0] @ scaled

    a, b = np.array([1.0, 2, 3, 1, 1]), np.array([2.0, 1, 0.5, 4, 1])
    np.testing.assert_allclose(update(a) + update(b), update(a + b), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "name", [n for n, a in weighting.ABOUT.items() if a.family == about.GRADIENTS]
)
def test_invariant_to_losses_that_are_not_used(name):
    method = weighting.create(name, weighting.usual(name, N))
    (a,) = run(method, [statistics()])
    (b,) = run(method, [statistics(losses=np.arange(1.0, 6))])
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, said in weighting.ABOUT.items()
        if not (said.random or callable(said.usual) or name == "krum")
    ],
)
def test_twins_are_treated_alike_and_zero_gradients_are_finite(name):
    method = weighting.create(name, weighting.usual(name, N))
    gradients = np.random.default_rng(3).normal(size=(N, 9)) + 0.3
    gradients[4] = gradients[1]
    losses = [1.0, 1.5, 1.2, 1.1, 1.5]
    steps = [statistics(gradients=gradients, losses=losses, count=c) for c in range(3)]
    for weights in run(method, steps):
        # Which of two equal tasks is taken costs next to nothing.
        np.testing.assert_allclose(weights[1], weights[4], rtol=2e-3, atol=2e-3)
    gradients[2] = 0
    losses[2] = 0
    steps = [statistics(gradients=gradients, losses=losses, count=c) for c in range(3)]
    assert all(np.isfinite(w).all() for w in run(method, steps))
    assert all(
        jnp.isfinite(x).all()
        for x in jax.tree.leaves(method.init(N, jnp.float32))
        if name != "stch"
    )

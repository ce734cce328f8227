"""What each weighting computes: pinned values, references in NumPy, and how methods coincide."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import oracles

from ldro_jax import weighting

LOSSES = np.array([1.0, 3.0, 2.0])
GRADIENTS = np.array([[1.0, 0.0], [1.0, 1.0], [-1.0, 2.0]])
INTERACTION = GRADIENTS @ GRADIENTS.T


def weights_of(method, losses=LOSSES, interaction=INTERACTION, *, steps=1, count=0):
    losses = jnp.asarray(losses, jnp.float32)
    interaction = jnp.asarray(interaction, jnp.float32)
    state, update = method.init(losses.size, jnp.float32), jax.jit(method.update)
    for step in range(steps):
        current = weighting.Statistics(jnp.int32(count + step), losses, interaction)
        weights, state = update(current, state)
    return np.asarray(weights)


# Worked out by hand from the formulas, with e = exp(1): the losses differ by one, rates are one.
@pytest.mark.parametrize(
    "method, expected",
    [
        (weighting.average(), [1 / 3, 1 / 3, 1 / 3]),
        (weighting.static_mixing([1, 4, 16], exponent=0.5), [1 / 7, 2 / 7, 4 / 7]),
        (weighting.group_dro(1.0), [0.09003057, 0.66524096, 0.24472847]),
        # Adjusted losses: 1 + 2, 3 + 2/2 and 2 + 2/1.
        (
            weighting.group_dro(1.0, group_sizes=[1, 4, 1], adjustment=2.0),
            [0.15536240, 0.42231880, 0.42231880],
        ),
        # Baselined losses 0, 1 and 2.
        (weighting.baselined_dro([1.0, 2.0, 0.0], 1.0), [0.09003057, 0.24472847, 0.66524096]),
        (weighting.interpolated(0.3), [0.1, 0.8, 0.1]),
        # A w = [1/3, 4/3, 5/3] and l - Aw = [2/3, 5/3, 1/3]: task 1, whose row of A is [1, 2, 1].
        (
            weighting.lookahead_online(1.0, 1.0, normalize_interaction=False),
            [0.21194156, 0.57611688, 0.21194156],
        ),
        # The same row, over the norms 1, sqrt(2) and sqrt(5).
        (weighting.lookahead_online(1.0, 1.0), [0.32377918, 0.48993629, 0.18628453]),
    ],
)
def test_pinned(method, expected):
    # Eight digits are given, float32 has seven.
    np.testing.assert_allclose(weights_of(method), expected, rtol=1e-6)


@pytest.mark.parametrize("normalize", [True, False])
def test_lookahead_online_is_algorithm_2(normalize):
    method = weighting.lookahead_online(0.3, 0.7, normalize_interaction=normalize)
    interaction = oracles.normalized(INTERACTION) if normalize else INTERACTION
    expected = np.full(3, 1 / 3)
    for _ in range(30):
        expected = oracles.lookahead_step(LOSSES, interaction, expected, 0.3, 0.7)
    # 30 multiplications in float32. The best responses are the same, or it would be far off.
    np.testing.assert_allclose(weights_of(method, steps=30), expected, atol=1e-5)


@pytest.mark.parametrize("references", [np.zeros(3), np.array([0.5, 2.8, 0.1])])
def test_dro_is_the_papers(references):
    expected = np.full(3, 1 / 3)
    for _ in range(10):
        expected = oracles.group_dro_step(LOSSES, expected, 0.1, references)
    method = weighting.baselined_dro(references, 0.1)
    np.testing.assert_allclose(weights_of(method, steps=10), expected, atol=1e-6)


@pytest.mark.parametrize(
    "method, same",
    [
        (weighting.group_dro(0.0), weighting.average()),
        (weighting.static_mixing([1.0, 5.0, 1e9], exponent=0.0), weighting.average()),
        (weighting.erm([7.0, 7.0, 7.0]), weighting.average()),
        (weighting.interpolated(1.0), weighting.average()),
        (weighting.lookahead_online(0.1, 0.0), weighting.average()),
        (weighting.lookahead_online(0.0, 0.1), weighting.average()),
        (weighting.with_floor(weighting.group_dro(0.5), 1.0), weighting.average()),
        (weighting.with_floor(weighting.group_dro(0.5), 0.0), weighting.group_dro(0.5)),
        (weighting.baselined_dro(np.zeros(3), 0.5), weighting.group_dro(0.5)),
        (weighting.group_dro(0.5, group_sizes=[7, 7, 7], adjustment=2.0), weighting.group_dro(0.5)),
    ],
)
def test_methods_coincide(method, same):
    np.testing.assert_allclose(weights_of(method, steps=3), weights_of(same, steps=3), rtol=1e-6)


def test_erm_weighs_tasks_by_their_rows():
    weights = weights_of(weighting.erm([970, 20, 10]), steps=2)
    np.testing.assert_allclose(weights, [0.97, 0.02, 0.01], rtol=1e-6)


def test_unimax_is_algorithm_1():
    # A budget of 12: the smallest gets its limit of 2 epochs, then the next, and the rest is even.
    weights = weights_of(weighting.unimax([1.0, 2.0, 6.0], budget=12 / 9, epochs=2.0))
    np.testing.assert_allclose(weights, np.array([2, 4, 6]) / 12, rtol=1e-6)
    # Without a limit it is even.
    np.testing.assert_allclose(weights_of(weighting.unimax([1.0, 2.0, 6.0], epochs=1e9)), 1 / 3)


def test_doremi_counts_what_is_above_the_references():
    method = weighting.doremi([2.0, 2.0, 1.0], 1.0, share=0.1)
    expected = 0.9 * np.exp([0, 1, 1]) / (1 + 2 * np.e) + 0.1 / 3
    np.testing.assert_allclose(weights_of(method), expected, rtol=1e-6)


@pytest.mark.parametrize("scale", [0.1, 10.0])
def test_lookahead_online_between_independent_tasks_favours_the_worst_alone(scale):
    # With A = c 1 only the worst task gains, by exp(eta lambda c): section 2.4 of the paper.
    method = weighting.lookahead_online(0.01, 1.0, normalize_interaction=False)
    weights = weights_of(method, interaction=scale * np.eye(3))
    gain = np.exp(0.01 * scale)
    np.testing.assert_allclose(weights, np.array([1, gain, 1]) / (2 + gain), rtol=1e-6)


@pytest.mark.parametrize(
    "method",
    [
        weighting.average(),
        weighting.group_dro(0.5),
        weighting.interpolated(0.2),
        weighting.lookahead_online(0.1, 1.0),
        weighting.lookahead_exact(0.1),
    ],
)
def test_duplicated_tasks_share_equally(method):
    # Tasks 1 and 3 are the same, and the worst.
    twins = np.array([0, 1, 2, 1])
    weights = weights_of(method, LOSSES[twins], INTERACTION[np.ix_(twins, twins)], steps=5)
    np.testing.assert_allclose(weights[1], weights[3], rtol=1e-5)


# The three cases of the paper's section 2.4. The solver promises the value of the game to 1e-5 of
# its range, from which the weights follow to about 1e-3.
@pytest.mark.parametrize(
    "interaction, expected",
    [
        pytest.param(np.eye(3), [0, 1, 0], id="independent"),
        pytest.param(np.ones((3, 3)), [1 / 3, 1 / 3, 1 / 3], id="redundant"),
        pytest.param(np.diag([1.0, 0.0, 1.0]), [1 / 3, 1 / 3, 1 / 3], id="worst has converged"),
    ],
)
def test_lookahead_exact_on_the_papers_cases(interaction, expected):
    weights = weights_of(weighting.lookahead_exact(0.01), interaction=interaction)
    np.testing.assert_allclose(weights, expected, atol=1e-3)


def test_a_zero_gradient_has_a_zero_column():
    gradients = GRADIENTS * np.array([[1.0], [0.0], [1.0]])
    interaction = gradients @ gradients.T
    method = weighting.lookahead_online(1.0, 1.0)
    weights = weights_of(method, interaction=interaction)
    assert np.isfinite(weights).all()
    expected = oracles.lookahead_step(
        LOSSES, oracles.normalized(interaction), np.full(3, 1 / 3), 1.0, 1.0
    )
    np.testing.assert_allclose(weights, expected, rtol=1e-6)


def test_no_task_dies_in_a_long_run():
    # A ratio of weights of exp(-20000), whose exponential is zero in any precision, comes back.
    method = weighting.group_dro(1.0)

    @jax.jit
    def many_steps(losses, state):
        def step(_, state):
            return method.update(weighting.Statistics(jnp.int32(0), losses, jnp.eye(3)), state)[1]

        return jax.lax.fori_loop(0, 10_000, step, state)

    losses = jnp.asarray(LOSSES, jnp.float32)
    state = many_steps(losses, method.init(3, jnp.float32))
    assert jnp.isfinite(state.log_weights).all()
    np.testing.assert_allclose(jnp.exp(state.log_weights), [0, 1, 0], atol=1e-6)
    state = many_steps(4 - losses, state)
    state = many_steps(losses[::-1], state)
    assert jnp.isfinite(state.log_weights).all()
    # Each task has by now lost or gained 10,000 times its losses 1 + 3 + 2, 3 + 1 + 3, 2 + 2 + 1.
    np.testing.assert_allclose(jnp.exp(state.log_weights), [0, 1, 0], atol=1e-6)


def halving(count):
    return 0.4 * 0.5 ** count.astype(jnp.float32)


@pytest.mark.parametrize(
    "factory",
    [
        weighting.group_dro,
        lambda rate: weighting.baselined_dro([0.1, 0.2, 0.3], rate),
        weighting.interpolated,
        lambda rate: weighting.lookahead_online(rate, 1.0),
        lambda rate: weighting.lookahead_online(1.0, rate),
        weighting.lookahead_exact,
        lambda rate: weighting.with_floor(weighting.group_dro(1.0), rate),
    ],
)
def test_hyperparameters_may_be_schedules(factory):
    losses = [1.0, 1.1, 1.05]
    method = factory(halving)
    scheduled = weights_of(method, losses, count=2)
    np.testing.assert_allclose(scheduled, weights_of(factory(0.1), losses), rtol=1e-6)
    assert not np.allclose(scheduled, weights_of(method, losses, count=0), rtol=1e-3)


def test_optax_schedule():
    method = weighting.group_dro(optax.linear_schedule(0.0, 1.0, 10))
    np.testing.assert_allclose(
        weights_of(method, count=5), weights_of(weighting.group_dro(0.5)), rtol=1e-6
    )


def test_floor_bounds_every_weight_from_below():
    method = weighting.with_floor(weighting.group_dro(1.0), 0.3)
    np.testing.assert_allclose(weights_of(method, steps=500), [0.1, 0.8, 0.1], rtol=1e-6)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: weighting.group_dro(-0.1), r"weight_lr must be a number in \[0, inf\).* -0\.1"),
        (lambda: weighting.group_dro("fast"), r"weight_lr must be a number .* 'fast'"),
        (lambda: weighting.group_dro(float("nan")), "weight_lr must be a number .* nan"),
        (lambda: weighting.group_dro(0.1, adjustment=1.0), "adjustment needs group_sizes"),
        (
            lambda: weighting.group_dro(0.1, group_sizes=[1, 0, 2]),
            r"group_sizes must be one finite positive .*\[1, 0, 2\]",
        ),
        (lambda: weighting.baselined_dro([1.0, float("nan")], 0.1), "finite number .*nan"),
        (lambda: weighting.baselined_dro([1.0], -1), "weight_lr must be"),
        (lambda: weighting.interpolated(1.5), r"alpha must be a number in \[0, 1\].* 1\.5"),
        (lambda: weighting.lookahead_online(-1.0, 0.1), "lookahead_lr must be"),
        (lambda: weighting.lookahead_online(0.1, -1.0), "weight_lr must be"),
        (lambda: weighting.lookahead_exact(-1.0), "lookahead_lr must be"),
        (lambda: weighting.static_mixing([1.0, -2.0]), r"sizes must be .*\[1\.0, -2\.0\]"),
        (lambda: weighting.static_mixing([[1.0]]), "sizes must be"),
        (
            lambda: weighting.with_floor(weighting.average(), 2.0),
            r"floor must be a number in \[0, 1\]",
        ),
        (lambda: weighting.with_floor(weighting.average(), True), "floor must be a number"),
    ],
)
def test_a_wrong_hyperparameter_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "method, message",
    [
        (weighting.group_dro(0.1, group_sizes=[1, 2]), "group_sizes must .* 3 tasks.*\\(2,\\)"),
        (weighting.baselined_dro([1, 2, 3, 4], 0.1), "reference_losses must .* 3 tasks.*\\(4,\\)"),
        (weighting.static_mixing([1, 2]), "sizes must .* 3 tasks.*\\(2,\\)"),
    ],
)
def test_a_wrong_number_of_tasks_is_named(method, message):
    with pytest.raises(ValueError, match=message):
        weights_of(method)


def test_numpy_scalars_are_numbers():
    method = weighting.group_dro(np.float32(0.5))
    np.testing.assert_array_equal(weights_of(method), weights_of(weighting.group_dro(0.5)))


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
def test_lookahead_online_answers_to_the_worst_of_its_expected_losses(relative, normalize):
    method = weighting.lookahead_online(
        0.1, 1.0, relative=relative, normalize_interaction=normalize
    )
    generator = np.random.default_rng(0)
    even = jnp.full(3, 1 / 3)
    for _ in range(30):
        gradients = generator.normal(size=(3, 4)) * generator.uniform(0.3, 3, (3, 1))
        losses = jnp.asarray(10 + generator.uniform(0, 0.3, 3), jnp.float32)
        matrix = jnp.asarray(gradients @ gradients.T, jnp.float32)
        current = weighting.Statistics(jnp.int32(0), losses, matrix)
        worst = int(jnp.argmax(method.expected_losses(current, even)))
        weights = weights_of(method, losses, matrix)
        row = np.asarray(matrix[worst])
        if normalize:
            row = row / np.sqrt(np.diagonal(matrix))
        # log w moves along the row of that task.
        moved = np.log(weights) - np.log(weights).mean()
        along = row - row.mean()
        np.testing.assert_allclose(
            moved / np.linalg.norm(moved), along / np.linalg.norm(along), atol=1e-3
        )

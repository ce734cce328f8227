"""Weightings by products of the interaction matrix: what they do with the matrix itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldro_jax import games, solvers, weighting
from ldro_jax.interaction.products import of_matrix
from ldro_jax.weighting import about, base, products

N = 5


def settings():
    for name in sorted(about.METHODS):
        said = about.ABOUT[name]
        for word, given in {"usual": said.usual, **said.variants}.items():
            made = weighting.create(name, about.settings(given, np.arange(1, N + 1)))
            if made.by_products is not None:
                yield pytest.param(made, id=f"{name}-{word}"), name


MADE = [case for case, _ in settings()]
# They answer to the game or programme of each step by a part of the way.
FOLLOWING = ("mgda", "sdmgrad", "smooth_lookahead")
THE_SAME = [case for case, name in settings() if name not in FOLLOWING]


def problems(steps, seed=0):
    """Losses [N] and a Gram matrix [N, N] for each step."""
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        gradients = rng.normal(size=(N, 7)) * rng.uniform(0.3, 1, (N, 1))
        yield np.float32(rng.uniform(0.5, 2, N)), np.float32(gradients @ gradients.T)


def asking(matrix, *, present=None, **options):
    times, squares = of_matrix(matrix)
    return products.Asking(
        times, squares, jnp.ones(N, bool) if present is None else present, **options
    )


def statistics(count, losses, matrix, **options):
    nothing = jnp.zeros((N, N), losses.dtype)
    return base.Statistics(count, losses, nothing, products=asking(matrix, turn=count, **options))


def weigh(made, problems, **options):
    """The weights of each step, [steps, N]."""
    state = made.by_products.init(N, jnp.float32)
    step = jax.jit(
        lambda state, *given: made.by_products.update(statistics(*given, **options), state)
    )
    found = []
    for count, (losses, matrix) in enumerate(problems):
        weights, state = step(state, jnp.int32(count), losses, matrix)
        found.append(weights)
    return np.array(found), state


def by_matrix(made, problems):
    state, found = made.init(N, jnp.float32), []
    step = jax.jit(lambda state, *given: made.update(base.Statistics(*given), state))
    for count, (losses, matrix) in enumerate(problems):
        weights, state = step(state, jnp.int32(count), losses, matrix)
        found.append(weights)
    return np.array(found)


@pytest.mark.parametrize("made", THE_SAME)
def test_with_all_products_in_a_step_they_are_those_of_the_matrix(made):
    losses, matrix = next(iter(problems(1)))
    rng = np.random.default_rng(1)
    # One matrix, since lengths are means over steps.
    every = [(losses * np.float32(rng.uniform(0.9, 1.1, N)), matrix) for _ in range(12)]
    found, _ = weigh(made, every)
    np.testing.assert_allclose(found, by_matrix(made, every), rtol=1e-4, atol=1e-5)


def test_raw_lookahead_is_the_same_where_the_matrix_is_another_in_each_step():
    made = weighting.lookahead_online(0.5, 0.3, normalize_interaction=False)
    every = list(problems(40))
    found, _ = weigh(made, every)
    np.testing.assert_allclose(found, by_matrix(made, every), rtol=1e-5, atol=1e-6)
    # And it did something.
    assert np.ptp(found[-1]) > 0.1


@pytest.mark.parametrize("in_turn", [False, True])
def test_smooth_lookahead_comes_to_its_equilibrium(in_turn):
    losses, matrix = next(iter(problems(1)))
    made = weighting.smooth_lookahead(0.3, 0.5, normalize_interaction=False)
    found, _ = weigh(made, [(losses, matrix)] * 300, in_turn=in_turn)
    expected = games.smooth_equilibrium(
        losses, 0.3 * matrix, column_temperature=0.5, row_temperature=0.5
    )
    np.testing.assert_allclose(found[-1], expected.weights, rtol=1e-4)
    assert np.ptp(expected.weights) > 0.05


@pytest.mark.parametrize("pull", [0.0, 0.5])
def test_mgda_comes_near_to_its_minimum(pull):
    losses, matrix = next(iter(problems(1)))
    made = weighting.sdmgrad(pull) if pull else weighting.mgda()
    found, _ = weigh(made, [(losses, matrix)] * 400)
    even = np.full(N, 1 / N)
    best, _ = solvers.on_simplex(matrix, jnp.asarray(pull * matrix @ even, jnp.float32))
    best = (np.asarray(best) + pull * even) / (1 + pull)

    def above(weights):
        return weights @ matrix @ weights / (best @ matrix @ best) - 1

    assert 0 <= above(found[-1]) + 1e-5 < 0.02 < 0.1 * above(even)


@pytest.mark.parametrize("made", MADE)
@pytest.mark.parametrize("in_turn", [False, True])
def test_weights_are_finite_from_the_first_step(made, in_turn):
    found, state = weigh(made, problems(20), in_turn=in_turn)
    assert np.isfinite(found).all()
    held = next(
        x
        for x in jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, products.Held))
        if isinstance(x, products.Held)
    )
    assert np.isfinite(held.values).all()
    np.testing.assert_array_equal(held.unmeasured, 0)


def test_lookahead_waits_until_all_is_measured():
    found, _ = weigh(weighting.lookahead_online(1.0, 1.0), problems(6), in_turn=True)
    # The lengths, A w, and the row of the worst task.
    np.testing.assert_allclose(found[:2], 1 / N, rtol=1e-6)
    assert np.ptp(found[2]) > 1e-3


def test_in_turn_one_product_is_measured_in_a_step_and_the_others_stay():
    asked = (lambda values: jnp.ones(N), lambda values: jnp.arange(N, dtype=jnp.float32))
    held = products.Held.nothing(2, N, jnp.float32)
    matrices = [matrix for _, matrix in problems(6)]
    diagonals, order = [], []
    for turn, matrix in enumerate(matrices):
        now = asking(matrix, turn=jnp.int32(turn), in_turn=True).measured(held, asked, squares=True)
        number = (turn + 2) % 3
        if turn > 2:
            # In random order after the first round; what is measured is seen.
            changed = [k for k in (0, 1) if not np.array_equal(now.values[k], held.values[k])]
            number = changed[0] if changed else 2
            order.append(number)
        for other in {0, 1} - {number}:
            np.testing.assert_array_equal(now.values[other], held.values[other])
        if number < 2:
            np.testing.assert_allclose(
                now.values[number], matrix @ [np.ones(N), np.arange(N)][number], rtol=1e-5
            )
            np.testing.assert_array_equal(now.vectors[number], asked[number](None))
        else:
            diagonals.append(np.diag(matrix))
        held = now
    assert sorted(order) == [0, 1, 2]
    # They are no estimates.
    np.testing.assert_allclose(held.diagonal, diagonals[-1], rtol=1e-5)


def test_lengths_are_means_that_begin_at_that_of_all_tasks():
    estimates = np.random.default_rng(0).normal(size=(3, 2, N)).astype(np.float32)
    # The second term is a square, the first need not be.
    estimates[:, 1] **= 2
    held = products.Held.nothing(0, N, jnp.float32)
    for one in estimates:
        squares = jnp.asarray(one)
        asked = products.Asking(
            jnp.zeros_like, lambda key, s=squares: (s, jnp.arange(N) != 4, False), jnp.ones(N, bool)
        )
        held = asked.measured(held, (), squares=True)
    weights = 0.01 * 0.99 ** np.array([2, 1, 0])
    sums, total = np.einsum("s,scn->cn", weights, estimates), weights.sum()
    # Of the last task there is nothing.
    of_all = np.mean(sums[:, :4] / total, axis=1, keepdims=True)
    first, second = sums + (1 - total) * of_all
    expected = np.maximum(first, 0) + second
    np.testing.assert_allclose(held.diagonal[:4], expected[:4], rtol=1e-5)
    np.testing.assert_allclose(held.diagonal[4], max(of_all[0, 0], 0) + of_all[1, 0], rtol=1e-5)
    assert held.known(squares=True).tolist() == [True] * 4 + [False]


@pytest.mark.parametrize("name", ["aioli", "lookahead_online", "mgda"])
def test_tasks_that_come_by_turns_are_all_measured(name):
    # Each is there every third step, when in a fixed order the same thing would be measured.
    made = weighting.create(name, about.usual(name, N))
    state = made.by_products.init(N, jnp.float32)
    step = jax.jit(
        lambda state, *given, present: made.by_products.update(
            statistics(*given, present=present, in_turn=True), state
        )
    )
    for count, (losses, matrix) in enumerate(problems(40)):
        present = jnp.arange(N) % 3 == count % 3
        weights, state = step(state, jnp.int32(count), losses, matrix, present=present)
    assert np.ptp(weights) > 1e-3


def test_nothing_is_measured_that_is_not_due():
    held = products.Held.nothing(1, N, jnp.float32)

    def never(vector):
        raise AssertionError("measured")

    asked = products.Asking(never, never, jnp.ones(N, bool), due=False)
    now = asked.measured(held, (lambda values: jnp.ones(N),), squares=True)
    assert jax.tree.all(jax.tree.map(lambda x, y: np.array_equal(x, y, equal_nan=True), now, held))


def test_absent_tasks_and_what_is_not_finite_keep_their_last_values():
    matrix = next(iter(problems(1)))[1]
    ones = (lambda values: jnp.ones(N),)
    first = asking(matrix).measured(products.Held.nothing(1, N, jnp.float32), ones)
    present = jnp.arange(N) != 1
    broken = jnp.asarray(2 * matrix).at[3].set(jnp.inf)
    second = asking(broken, present=present).measured(first, ones)
    # An absent task is no part of what is pulled back either, nor is one without a finite gradient.
    vector = np.array(present & (jnp.arange(N) != 3), np.float32)
    expected = np.where(np.isin(range(N), (1, 3)), first.values[0], 2 * matrix @ vector)
    np.testing.assert_allclose(second.values[0], expected, rtol=1e-5)
    np.testing.assert_array_equal(second.unmeasured, [0, 0, 0, 1, 0])
    # A task that was never measured stands at the mean of the others.
    late = asking(matrix, present=present).measured(products.Held.nothing(1, N, jnp.float32), ones)
    filled = late.filled()[0]
    np.testing.assert_allclose(filled[1], np.mean(np.delete(filled, 1)), rtol=1e-5)
    np.testing.assert_array_equal(late.known(), present)


def test_wrappers_wrap_both_forms():
    made = weighting.with_floor(weighting.averaged(weighting.lookahead_online(1.0, 5.0), 0.5), 0.5)
    found, _ = weigh(made, problems(10))
    assert (found >= 0.5 / N - 1e-6).all()
    assert np.ptp(found[-1]) > 0.1
    assert weighting.normalized_gradients(weighting.mgda()).by_products is None


def test_forms_of_a_matrix_have_none():
    assert weighting.lookahead_exact(0.1).by_products is None
    assert weighting.mgda(normalization="l2").by_products is None
    assert weighting.doge(0.01, own_square=False).by_products is None

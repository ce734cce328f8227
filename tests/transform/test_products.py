"""Products of the interaction matrix in the transformation: all forms, due steps, and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ldro_jax import interaction, ldro, transform, weighting

N, ROWS, SIZE = 4, 8, 3
RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(ROWS, SIZE)).astype(np.float32)
TARGETS = RNG.normal(size=(ROWS, N)).astype(np.float32)
PARAMS = jnp.asarray(RNG.normal(size=(SIZE, 1)), jnp.float32)
TOGETHER = interaction.products(in_turn=False)
RAW = {"normalize_interaction": False}


def losses_fn(params):
    return jnp.mean((INPUTS @ params - TARGETS) ** 2, axis=0)


def given(form, params):
    if form == "layout":
        return None, {"losses_fn": losses_fn}
    if form == "forward":
        return None, ldro.statistics(losses_fn, params, interaction="products")
    if form == "a matrix":
        return None, ldro.statistics(losses_fn, params)
    return jax.jacrev(losses_fn)(params), {"losses": losses_fn(params)}


def weights(strategy, form, steps=25, **options):
    made = weighting.lookahead_online(0.5, 0.5, **RAW)
    options.setdefault("interaction_interval", 1)
    tx = optax.chain(transform.weighted(made, N, interaction=strategy, **options), optax.sgd(0.05))

    @jax.jit
    def step(params, state):
        updates, arguments = given(form, params)
        updates, state = tx.update(updates, state, params, **arguments)
        return optax.apply_updates(params, updates), state

    params, state, found = PARAMS, tx.init(PARAMS), []
    for _ in range(steps):
        params, state = step(params, state)
        found.append(transform.find_state(state).weights)
    return np.array(found), transform.find_state(state)


@pytest.mark.parametrize("form", ["layout", "forward", "a matrix", "stacked"])
def test_on_the_same_rows_training_goes_the_same_way_as_by_the_matrix(form):
    found, state = weights(TOGETHER, form)
    expected, _ = weights("jacrev", "layout")
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert np.ptp(expected[-1]) > 0.1
    # No matrix is measured.
    assert not state.interaction.any() and not state.measured.any()


def test_by_default_a_product_is_measured_in_each_step():
    tx = ldro.transform(N, lookahead_lr=0.5, weight_lr=0.5, interaction="products")
    assert tx.interval == 1 and tx.plan.strategy.in_turn


def test_an_interval_counts_steps_from_one_product_to_the_next():
    found, _ = weights("products", "layout", interaction_interval=5)
    # A w in the first step, the row of the worst task in the sixth, which moves all that follow.
    np.testing.assert_allclose(found[:5], 1 / N, rtol=1e-6)
    # Up to what all have in common by the normalisation.
    moves = np.diff(np.log(found[4:] / found[4:, :1]), axis=0)
    np.testing.assert_allclose(moves[:10], np.broadcast_to(moves[0], (10, N)), atol=1e-4)
    assert np.abs(moves[0]).max() > 1e-2 < np.abs(moves[10] - moves[9]).max()


def after(matrix):
    """The weights of MoDo after its first step, from even ones, with a rate of 0.1."""
    moved = 1 / N - 0.1 * matrix @ np.full(N, 1 / N)
    return weighting.base.onto_simplex(jnp.asarray(moved, jnp.float32))


def test_examples_of_each_task():
    def loss_fn(params, batch):
        return jnp.mean((batch["x"] @ params - batch["y"]) ** 2)

    batch = {"x": jnp.stack([INPUTS] * N), "y": jnp.asarray(TARGETS.T[:, :, None])}
    made = weighting.modo(0.1)
    found = []
    # Given apart, all of them are taken; else a share of the batch's.
    first = jax.tree.map(lambda x: x[:, :4], batch)
    for options in ({"interaction_batch": first}, {}):
        strategy = interaction.products(apart=True, share=0.5)
        tx = transform.weighted(made, N, interaction=strategy)
        _, state = jax.jit(
            lambda params, tx=tx, options=options: tx.update(
                None, tx.init(params), params, loss_fn=loss_fn, batch=batch, **options
            )
        )(PARAMS)
        found.append(state.weights)
    np.testing.assert_allclose(*found, rtol=1e-6)

    def gradient(task, rows):
        return np.ravel(jax.grad(loss_fn)(PARAMS, jax.tree.map(lambda x: x[task, rows], batch)))

    halves = [np.array([gradient(i, np.array(r)) for i in range(N)]) for r in ([0, 2], [1, 3])]
    np.testing.assert_allclose(found[0], after(halves[1] @ halves[0].T), rtol=1e-5)


def test_in_the_geometry_of_an_optimizer():
    scale = jnp.abs(PARAMS) + 0.5
    made = weighting.modo(0.1)
    _, state = jax.jit(
        lambda params: (tx := transform.weighted(made, N, interaction=TOGETHER)).update(
            None, tx.init(params), params, losses_fn=losses_fn, preconditioner=scale
        )
    )(PARAMS)
    jacobian = np.asarray(jax.jacrev(losses_fn)(PARAMS)).reshape(N, SIZE)
    matrix = jacobian @ np.diag(np.ravel(scale)) @ jacobian.T
    np.testing.assert_allclose(state.weights, after(matrix), rtol=1e-5)


def test_what_is_not_finite_is_counted_and_leaves_no_trace():
    tx = transform.weighted(weighting.modo(0.1), N, interaction=TOGETHER)

    def losses(params):
        found = losses_fn(params)
        # Of a root at zero the slope is infinite, and times zero not a number.
        return found.at[2].add(jnp.sqrt(jnp.sum(0 * params)))

    _, state = jax.jit(lambda params: tx.update(None, tx.init(params), params, losses_fn=losses))(
        PARAMS
    )
    np.testing.assert_array_equal(state.unmeasured, np.full(N, 1))
    np.testing.assert_allclose(state.weights, 1 / N, rtol=1e-6)


@jax.custom_vjp
def doubled(x):
    return 2 * x


doubled.defvjp(lambda x: (doubled(x), None), lambda _, g: (2 * g,))


def test_a_model_that_cannot_be_pushed_forward_is_refused_in_a_jit():
    tx = transform.weighted(weighting.modo(0.1), N, interaction="products")

    @jax.jit
    def step(params):
        return tx.update(None, tx.init(params), params, losses_fn=lambda p: losses_fn(doubled(p)))

    with pytest.raises(ValueError, match="jax.custom_jvp, or measure the matrix"):
        step(PARAMS)


def test_halves_need_rows():
    tx = transform.weighted(weighting.modo(0.1), N, interaction=interaction.products(apart=True))
    with pytest.raises(ValueError, match="two halves of the rows, which losses_fn doesn't have"):
        tx.update(None, tx.init(PARAMS), PARAMS, losses_fn=losses_fn)


def test_products_are_not_lagged():
    with pytest.raises(ValueError, match="interaction='products' measures none"):
        transform.weighted(weighting.modo(0.1), N, interaction="products", lagged=True)


def test_products_do_not_serve_a_weighting_of_the_matrix():
    tx = transform.weighted(weighting.modo(0.1), N, interaction="auto")
    given = ldro.statistics(losses_fn, PARAMS, interaction="products")
    with pytest.raises(ValueError, match="Build it with interaction='products' as well"):
        tx.update(None, tx.init(PARAMS), PARAMS, **given)


def test_the_state_of_another_way_to_measure_is_refused():
    made = weighting.lookahead_online(0.5, 0.5)
    ways = [transform.weighted(made, N, interaction=way) for way in ("auto", "products")]
    for one, other in (ways, ways[::-1]):
        with pytest.raises(ValueError, match="another way to measure the interaction"):
            one.update(None, other.init(PARAMS), PARAMS, losses_fn=losses_fn)


def test_a_gradient_that_is_not_finite_belongs_to_its_own_products_alone():
    matrix = jnp.diag(jnp.arange(1.0, N + 1)).at[2].set(jnp.nan).at[:, 2].set(jnp.nan)
    tx = transform.weighted(weighting.modo(0.1), N, interaction=TOGETHER)
    losses, pull = jax.vjp(losses_fn, PARAMS)
    _, state = tx.update(
        None, tx.init(PARAMS), PARAMS, losses=losses, pullback=pull, interaction_fn=lambda: matrix
    )
    np.testing.assert_array_equal(state.unmeasured, [0, 0, 1, 0])
    assert np.ptp(state.weights) > 1e-3


def test_a_method_that_needs_the_matrix_is_refused():
    with pytest.raises(ValueError, match="needs a weighting that can do with products"):
        ldro.transform(N, lookahead_lr=0.5, exact=True, interaction="products")


def test_a_weighting_that_asks_for_products_is_given_no_matrix():
    made = weighting.modo(0.1).by_products
    assert made is not None
    assert transform.weighted(made, N).plan.strategy.gives_products
    with pytest.raises(ValueError, match="interaction='products' or 'auto', but it is 'vmap'"):
        transform.weighted(made, N, interaction="vmap")


def test_a_weighting_that_reads_the_matrix_as_well_is_refused():
    def update(statistics, state):
        return statistics.interaction[0], state

    made = weighting.Weighting(lambda n, dtype: (), update, uses_products=True)
    with pytest.raises(ValueError, match="reads statistics.interaction"):
        transform.weighted(made._replace(default_interaction="products"), N).init(PARAMS)


def test_losses_without_a_way_to_measure_are_refused():
    tx = transform.weighted(weighting.modo(0.1), N, interaction="products")
    losses, pull = jax.vjp(losses_fn, PARAMS)
    with pytest.raises(ValueError, match="Pass interaction_fn"):
        tx.update(None, tx.init(PARAMS), PARAMS, losses=losses, pullback=pull)

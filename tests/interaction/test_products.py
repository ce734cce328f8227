"""Products of the interaction matrix: those of gradients by `jax.grad`, one task after another."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldro_jax import interaction
from ldro_jax.interaction.products import of_losses, of_matrix, random_signs

N, ROWS, SIZE = 5, 8, 6


def problem(dtype):
    rng = np.random.default_rng(0)
    batches = rng.normal(size=(2, ROWS, SIZE)).astype(dtype)
    params = {"a": rng.normal(size=(SIZE, 3)).astype(dtype), "b": np.ones((3, N), dtype)}
    return jax.tree.map(jnp.asarray, params), batches


def losses(rows, params):
    return jnp.mean(jnp.tanh(rows @ params["a"]) @ params["b"], axis=0) ** 2


def gradients(rows, params, scale=None):
    """[N, parameters], in units of √scale."""
    found = []
    for task in range(N):
        gradient = jax.grad(lambda p, task=task: losses(rows, p)[task])(params)
        if scale is not None:
            gradient = jax.tree.map(lambda g, s: g * np.sqrt(s), gradient, scale)
        found.append(np.concatenate([np.ravel(x) for x in jax.tree.leaves(gradient)]))
    return np.array(found, np.float64)


def given(rows):
    return lambda params: (losses(rows, params), jnp.ones(N, bool))


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
def test_a_product_is_that_of_the_gradients_of_both_halves(x64, scaled):
    with jax.enable_x64(x64):
        params, (first, second) = problem(np.float64 if x64 else np.float32)
        scale = jax.tree.map(lambda p: 0.5 + p**2, params) if scaled else None
        vector = np.linspace(-1, 2, N).astype(first.dtype)

        @jax.jit
        def times(params, vector):
            asked = of_losses(given(first), given(second), params, preconditioner=scale)
            return asked.times(vector)

        product, there = times(params, vector)
        expected = gradients(second, params, scale) @ gradients(first, params, scale).T @ vector
        np.testing.assert_allclose(product, expected, rtol=1e-12 if x64 else 1e-4)
        assert product.dtype == first.dtype and there.all()


@pytest.mark.parametrize("apart", [False, True])
def test_squared_lengths_are_those_of_a_batch_on_average(apart):
    params, (first, second) = problem(np.float32)
    asked = of_losses(given(first), given(second) if apart else None, params, part=0.25)
    keys = jax.random.split(jax.random.key(1), 4000)
    estimates, there = jax.jit(jax.vmap(lambda key: asked.squares(key)[:2]))(keys)
    one, other = gradients(first, params), gradients(second, params)
    expected = np.stack([np.zeros(N), np.sum(one**2, axis=1)])
    if apart:
        # A quarter of the noise of the halves.
        mean = np.sum(one**2 + other**2, axis=1) / 2
        expected = np.stack([0.75 * np.sum(one * other, axis=1), 0.25 * mean])
    error = np.std(estimates, axis=0) / len(keys) ** 0.5
    assert there.all()
    # Five standard errors of the mean, each of which is far below the number itself.
    assert np.all(np.abs(np.mean(estimates, axis=0) - expected) <= 5 * error)
    assert np.all(error < 0.1 * np.abs(expected) + 1e-4)


def test_on_the_same_rows_a_product_is_that_of_their_matrix():
    params, (rows, _) = problem(np.float32)
    vector = np.linspace(-1, 2, N).astype(np.float32)
    product, _ = jax.jit(lambda p: of_losses(given(rows), None, p).times(vector))(params)
    matrix = gradients(rows, params) @ gradients(rows, params).T
    np.testing.assert_allclose(product, matrix @ vector, rtol=1e-4)


def test_random_signs_are_even_and_independent():
    like = {"a": jnp.zeros((40, 50)), "b": jnp.zeros(33, jnp.bfloat16)}
    signs = jax.jit(jax.vmap(functools.partial(random_signs, like=like)))(
        jax.random.split(jax.random.key(0), 64)
    )
    for leaf, shape in zip(jax.tree.leaves(signs), jax.tree.leaves(like), strict=True):
        assert leaf.dtype == shape.dtype and leaf.shape[1:] == shape.shape
        flat = np.asarray(leaf, np.float64).reshape(64, -1)
        assert set(np.unique(flat)) == {-1, 1}
        assert abs(flat.mean()) < 5 / flat.size**0.5
        # Those of two places have nothing to do with each other, those of one word neither.
        products = flat[:, 1:] * flat[:, :-1]
        assert abs(products.mean()) < 5 / products.size**0.5


def test_what_is_not_there_counts_nowhere():
    params, (first, second) = problem(np.float32)

    def without(rows, missing):
        def found(params):
            there = jnp.arange(N) != missing
            # A model that has no row of a task gives anything for it.
            return jnp.where(there, losses(rows, params), jnp.sum(params["a"])), there

        return found

    asked = of_losses(without(first, 1), without(second, 3), params)
    vector = np.float32([1, 2, 3, 4, 5])
    product, there = jax.jit(asked.times)(vector)
    left, right = gradients(second, params), gradients(first, params)
    expected = left @ right.T @ np.where(np.arange(N) == 1, 0, vector)
    np.testing.assert_array_equal(there, np.arange(N) != 3)
    np.testing.assert_allclose(product[there], expected[there], rtol=1e-4)
    # Along the gradient of a task without rows nothing was measured.
    assert not jax.jit(asked.times)(np.float32([0, 1, 0, 0, 0]))[1].any()
    np.testing.assert_array_equal(
        asked.squares(jax.random.key(0))[1], [True, False, True, False, True]
    )


@pytest.mark.parametrize("apart", [False, True])
def test_the_strategy_takes_each_half_of_the_examples_or_all(apart):
    params, (rows, _) = problem(np.float32)
    batch = np.stack([rows + task for task in range(N)])

    def loss_fn(params, rows):
        return jnp.mean((jnp.tanh(rows @ params["a"]) @ params["b"]) ** 2)

    asked = interaction.products(apart=apart).matrix(loss_fn, params, jnp.asarray(batch))
    product, _ = jax.jit(asked.times)(jnp.ones(N))

    def gradient(task, half):
        found = jax.grad(loss_fn)(params, batch[task, half::2] if apart else batch[task])
        return np.concatenate([np.ravel(x) for x in jax.tree.leaves(found)])

    first, second = (np.array([gradient(task, half) for task in range(N)]) for half in (0, 1))
    np.testing.assert_allclose(product, second @ first.T @ np.ones(N), rtol=1e-4)


def test_products_of_a_matrix_that_is_there():
    matrix = jnp.asarray(np.arange(9.0).reshape(3, 3), jnp.float32)
    asked = of_matrix(matrix)
    np.testing.assert_allclose(asked.times(jnp.ones(3))[0], [3, 12, 21])
    squares, _, exact = asked.squares(jax.random.key(0))
    np.testing.assert_allclose(squares.sum(axis=0), [0, 4, 8])
    assert exact


@jax.custom_vjp
def doubled(x):
    return 2 * x


doubled.defvjp(lambda x: (doubled(x), None), lambda _, g: (2 * g,))


def test_a_model_without_forward_mode_is_refused():
    def losses(params):
        return doubled(params) * jnp.ones(2), jnp.ones(2, bool)

    for other in (None, losses):
        asked = of_losses(losses, other, jnp.ones([]))
        with pytest.raises(ValueError, match="jax.custom_jvp, or measure the matrix"):
            asked.times(jnp.ones(2))
        with pytest.raises(ValueError, match="jax.custom_jvp, or measure the matrix"):
            asked.squares(jax.random.key(0))


def test_one_example_has_no_halves():
    loss_fn = lambda params, rows: jnp.sum(params * rows)  # noqa: E731
    with pytest.raises(ValueError, match="two halves of each task's examples"):
        interaction.products(apart=True).matrix(loss_fn, jnp.ones([]), jnp.ones((N, 1)))


def test_products_have_no_split():
    with pytest.raises(ValueError, match="split needs a strategy that measures the matrix"):
        interaction.split("products")


@pytest.mark.parametrize("share", [0, 1.5, "half"])
def test_a_share_out_of_range_is_refused(share):
    with pytest.raises(ValueError, match="share must be a number in"):
        interaction.products(share=share)

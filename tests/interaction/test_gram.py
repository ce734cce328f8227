"""Inner products of stacked gradients, against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldro_jax.interaction import base

# A scalar parameter, one slice, slices that don't divide the length, and longer ones.
SHAPES = [(), (3, 4), (130, 257), (1100, 1000)]


@pytest.mark.parametrize("function", [base.products, base.products_by_slices])
@pytest.mark.parametrize("shape", SHAPES)
def test_products_are_those_of_numpy(function, shape):
    x = jax.random.normal(jax.random.key(0), (3, *shape))
    y = jax.random.normal(jax.random.key(1), (2, *shape))
    found = jax.jit(lambda x, y: function(x, y, jnp.float32))(x, y)
    expected = np.asarray(x, np.float64).reshape(3, -1) @ np.asarray(y, np.float64).reshape(2, -1).T
    # Of the product of the norms, the most that an inner product can be.
    np.testing.assert_allclose(found, expected, atol=1e-6 * max(1, x[0].size))


def test_half_precision_is_summed_in_single():
    x = jnp.ones((1, 40_000), jnp.bfloat16)
    for function in (base.products, base.products_by_slices):
        found = function(x, x, jnp.float32)
        assert found.dtype == jnp.float32
        # bfloat16 would stop counting at 256.
        assert found[0, 0] == 40_000


def test_gram_adds_up_the_leaves():
    left = {"a": jnp.ones((2, 3)), "b": 2 * jnp.ones((2,))}
    np.testing.assert_array_equal(base.gram(left), 7 * np.ones((2, 2)))

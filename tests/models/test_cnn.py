"""The convolutional networks are the paper's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldro_jax.models import cnn

CONVOLUTION = 3 * 3


def num_parameters(model):
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def test_the_small_network_has_the_parameters_worked_out_by_hand():
    expected = (
        (CONVOLUTION * 3 * 32 + 32)
        + 3 * (CONVOLUTION * 32 * 32 + 32)
        + (32 * 128 + 128)
        + 2 * (128 * 128 + 128)
        + (128 * 100 + 100)
    )
    assert num_parameters(cnn.CNN(num_classes=100)) == expected == 78_788


def test_the_large_network_has_the_parameters_worked_out_by_hand():
    large = cnn.CNN(num_classes=100, filters=(160, 160, 160), features=(320, 320))
    expected = (
        (CONVOLUTION * 3 * 160 + 160)
        + 2 * (CONVOLUTION * 160 * 160 + 160)
        + (160 * 320 + 320)
        + (320 * 320 + 320)
        + (320 * 100 + 100)
    )
    assert num_parameters(large) == expected == 651_940


def textbook(params, x, num_convolutions, num_dense):
    """Convolution and bias, ReLU, pooling, as one reads them, in XLA's own operations."""
    dimensions = ("NHWC", "HWIO", "NHWC")
    for layer in range(num_convolutions):
        kernel, bias = params[f"conv{layer}_kernel"], params[f"conv{layer}_bias"]
        x = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=dimensions)
        x = jnp.maximum(x + bias[None, None, None, :], 0)
        blocks = (1, 2, 2, 1)
        x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, blocks, blocks, "VALID")
    x = x.mean(axis=(1, 2))
    for layer in range(num_dense):
        x = jnp.maximum(x, 0) if layer else x
        x = x @ params[f"Dense_{layer}"]["kernel"] + params[f"Dense_{layer}"]["bias"][None, :]
    return x


@pytest.mark.parametrize(("filters", "features", "size"), [((4, 5), (6, 3), 13), ((3,), (), 5)])
def test_the_network_is_the_textbooks(filters, features, size):
    model = cnn.CNN(num_classes=3, filters=filters, features=features)
    generator = np.random.default_rng(0)
    x = jnp.asarray(generator.standard_normal((4, size, size, 3)), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(1), x)["params"]
    # Biases other than zero, of both signs, so that their place before or after a ReLU shows.
    params = jax.tree.map(
        lambda p: jnp.asarray(0.3 * generator.standard_normal(p.shape), p.dtype), shapes
    )

    def reference(params):
        return textbook(params, x, len(filters), len(features) + 1)

    def ours(params):
        return model.apply({"params": params}, x)

    @jax.jit
    def logits_and_gradients(params):
        def one(apply):
            logits, pullback = jax.vjp(apply, params)
            return logits, pullback(jnp.sin(logits))[0]

        return one(ours), one(reference)

    found, expected = logits_and_gradients(params)
    assert found[0].shape == (4, 3) and found[0].dtype == np.float32
    # A few hundred roundings of numbers around one.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, expected
    )

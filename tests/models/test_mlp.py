"""The perceptron is what its docstring says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldro_jax.models import mlp


@pytest.mark.parametrize("features", [(), (5,), (5, 4)])
def test_mlp_is_dense_layers_with_relu_between(features):
    model = mlp.MLP(num_classes=3, features=features)
    inputs = jax.random.normal(jax.random.key(0), (6, 2, 4))
    params = model.init(jax.random.key(1), inputs)["params"]
    params = jax.tree.map(lambda p: p + 0.1, params)
    assert len(params) == len(features) + 1
    x = np.asarray(inputs).reshape(6, 8)
    for i in range(len(params)):
        layer = jax.tree.map(np.asarray, params[f"Dense_{i}"])
        x = (np.maximum(x, 0) if i else x) @ layer["kernel"] + layer["bias"]
    np.testing.assert_allclose(model.apply({"params": params}, inputs), x, rtol=1e-5, atol=1e-6)


def test_mlp_flattens_any_input():
    model = mlp.MLP(num_classes=2)
    params = model.init(jax.random.key(0), jnp.zeros((1, 12)))
    images = jax.random.normal(jax.random.key(1), (5, 3, 4))
    np.testing.assert_array_equal(
        model.apply(params, images), model.apply(params, images.reshape(5, 12))
    )

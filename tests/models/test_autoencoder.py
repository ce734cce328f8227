"""The autoencoders are what their docstrings say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldro_jax.models import autoencoder, cnn


def test_the_perceptron_has_two_heads_on_its_last_hidden_layer():
    model = autoencoder.MLPAutoencoder(num_classes=3, features=(5, 4))
    inputs = jax.random.normal(jax.random.key(0), (6, 2, 4))
    params = jax.tree.map(lambda p: p + 0.1, model.init(jax.random.key(1), inputs))
    found = model.apply(params, inputs)
    layers, x = jax.tree.map(np.asarray, params["params"]), np.asarray(inputs).reshape(6, 8)
    for name in ("Dense_0", "Dense_1"):
        x = np.maximum(x @ layers[name]["kernel"] + layers[name]["bias"], 0)
    close = {"rtol": 1e-5, "atol": 1e-6}
    np.testing.assert_allclose(found["features"], x, **close)
    for output, name, shape in (
        ("logits", "classes", (6, 3)),
        ("reconstruction", "decoder", (6, 2, 4)),
    ):
        expected = (x @ layers[name]["kernel"] + layers[name]["bias"]).reshape(shape)
        np.testing.assert_allclose(found[output], expected, **close)


def test_each_position_of_the_convolutions_gives_its_square_of_pixels():
    model = autoencoder.CNNAutoencoder(num_classes=3, filters=(4, 5))
    inputs = jax.random.normal(jax.random.key(0), (2, 8, 12, 3))
    params = jax.tree.map(lambda p: p + 0.01, model.init(jax.random.key(1), inputs))
    found, layers = model.apply(params, inputs), params["params"]
    # The trunk is that of the CNN, and so are the logits without further layers.
    classes = {"Dense_0": layers["classes"]}
    trunk = {name: x for name, x in layers.items() if name.startswith("conv")}
    plain = cnn.CNN(num_classes=3, filters=(4, 5), features=())
    logits = plain.apply({"params": {**trunk, **classes}}, inputs)
    np.testing.assert_allclose(found["logits"], logits, rtol=1e-5)
    features, decoder = np.asarray(found["features"]), jax.tree.map(np.asarray, layers["decoder"])
    assert features.shape == (2, 2, 3, 5)
    expected = np.zeros(inputs.shape)
    for y in range(2):
        for x in range(3):
            square = features[:, y, x] @ decoder["kernel"] + decoder["bias"]
            expected[:, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4] = square.reshape(2, 4, 4, 3)
    np.testing.assert_allclose(found["reconstruction"], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "make, shape, said",
    [
        (lambda: autoencoder.MLPAutoencoder(2, ()), (1, 4), "features must be at least one width"),
        (lambda: autoencoder.MLPAutoencoder(0), (1, 4), "num_classes must be"),
        (lambda: autoencoder.CNNAutoencoder(2, (0,)), (1, 4, 4, 1), "filters must be"),
        (
            lambda: autoencoder.CNNAutoencoder(2, (2, 2)),
            (1, 8, 6, 1),
            "multiples of 4, as 2 poolings halve them, but they are 8 and 6",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(make, shape, said):
    with pytest.raises(ValueError, match=said):
        make().init(jax.random.key(0), jnp.zeros(shape))

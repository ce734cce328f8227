"""docs/libraries.md: with each library that is installed, A is that of a loop of gradients."""

import os
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import oracles

from ldro_jax import ldro

_TEXT = (pathlib.Path(__file__).parents[1] / "docs" / "libraries.md").read_text(encoding="utf-8")
_INTRODUCTION, *_SECTIONS = re.split(r"^## ", _TEXT, flags=re.MULTILINE)
_CODE = {section.splitlines()[0]: section for section in _SECTIONS}
_NEEDS = {
    "Equinox": "equinox",
    "Haliax": "haliax",
    "Penzai": "penzai",
    "Haiku": "haiku",
    "Keras 3": "keras",
    "jraph": "jraph",
    "NumPyro": "numpyro",
    "Grain": "grain",
    "Orbax and Flax's serialization": "orbax.checkpoint",
    "kfac-jax": "kfac_jax",
}


def blocks(text):
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


@pytest.mark.filterwarnings("default")  # their own business
@pytest.mark.parametrize("name", _CODE)
def test_a_library_works_as_written(name, tmp_path):
    if name == "Keras 3" and os.environ.get("KERAS_BACKEND") != "jax":
        pytest.skip("Keras computes with TensorFlow unless KERAS_BACKEND=jax")
    if name == "kfac-jax" and jax.__version_info__ >= (0, 7):
        pytest.skip("kfac-jax 0.0.8 needs an older JAX")
    pytest.importorskip(_NEEDS[name])
    start, end = blocks(_INTRODUCTION)
    names = {"jax": jax, "jnp": jnp, "ldro": ldro, "optax": optax, "directory": tmp_path}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        code, *more = blocks(_CODE[name])
        exec(start + code, names)
        if "loss_fn" in names:
            exec("before = params\n" + end, names)
            expected = oracles.gram(names["loss_fn"], names["before"], names["batch"])
            found = np.asarray(ldro.interaction(names["opt_state"]), np.float64)
            np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
            assert np.abs(expected).max() > 0
        for block in more:
            exec(block, names)
    if "restored" in names:
        for state in (names["restored"], names["again"]):
            jax.tree.map(np.testing.assert_array_equal, state, names["opt_state"])
    if "stats" in names:
        assert names["stats"]["loss"] < 1


def test_float32_weights_are_drawn_as_the_documentation_does():
    (code,) = blocks(_CODE["Grain"])[1:]
    tx = ldro.transform(3, lookahead_lr=0.1, weight_lr=0.1)
    names = {"jnp": jnp, "ldro": ldro, "tx": tx}
    exec(code, names)
    assert names["task"] in range(3)
    # As they are, NumPy refuses some that it takes from an array of its own.
    refused = 0
    for number in range(2, 20):
        weights = jax.nn.softmax(jnp.arange(20) / number)
        np.random.default_rng(0).choice(20, p=np.asarray(weights))
        try:
            np.random.default_rng(0).choice(20, p=weights)
        except ValueError:
            refused += 1
    assert refused > 0


def test_every_library_is_tested():
    assert set(_CODE) == set(_NEEDS)

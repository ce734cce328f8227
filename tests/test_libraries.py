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


def seed(names):
    """Keras begins from numbers of its own."""
    if "keras" in names:
        names["keras"].utils.set_random_seed(0)


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
        (of_all,) = [block for block in blocks(_TEXT) if "def of_all_tasks" in block]
        exec(of_all, names)
        for block in more:
            seed(names)
            exec(block, names)
    if "restored" in names:
        for state in (names["restored"], names["again"]):
            jax.tree.map(np.testing.assert_array_equal, state, names["opt_state"])
    if "states" in names:
        # From the same beginning, each task by itself in a loop.
        before, _ = next(block for block in more if "states = " in block).split("given, states")
        again = dict(names) | {"batch": dict(names["batch"])}
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            seed(names)
            exec(before, again)
            tasks = [jax.tree.map(lambda x, n=n: x[n], again["batch"]) for n in range(3)]
            each = [again["loss_and_state"](again["params"], task)[1] for task in tasks]
        for found, start, *parts in zip(
            *map(jax.tree.leaves, (names["state"], again["state"], *each)), strict=True
        ):
            is_float = np.issubdtype(np.asarray(found).dtype, np.floating)
            expected = np.mean(parts, axis=0) if is_float else parts[0]
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
            assert not is_float or np.abs(found - start).max() > 0
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

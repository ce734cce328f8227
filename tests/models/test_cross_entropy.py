"""The losses are SciPy's, and their logits never exist all at once."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from ldro_jax.models import cross_entropy

# With a chunk of 2 no array but that of all logits, 132 numbers, has more than 48.
B, L, D, V = 2, 6, 4, 11


def problem(dtype, scale=1.0):
    generator = np.random.default_rng(0)
    hidden = scale * generator.standard_normal((B, L, D))
    embedding = generator.standard_normal((V, D))
    # The targets include the padding, 0, which the padded positions have as well.
    targets = generator.integers(0, V, (B, L))
    targets[0, 0], targets[1, -1] = 0, V - 1
    return jnp.asarray(hidden, dtype), jnp.asarray(embedding, dtype), jnp.asarray(targets, "int32")


def weighted(hidden, embedding, targets, chunk):
    losses = cross_entropy.token_losses(hidden, embedding, targets, chunk=chunk)
    # Every position has a cotangent of its own.
    weights = jnp.cos(jnp.arange(B * L, dtype=losses.dtype)).reshape(B, L)
    return (losses * weights).sum(), losses


@functools.cache
def _program(chunk):
    return jax.jit(jax.value_and_grad(functools.partial(weighted, chunk=chunk), (0, 1), True))


def losses_and_gradients(chunk, *arguments):
    (_, losses), gradients = _program(chunk)(*arguments)
    return losses, gradients


@pytest.mark.parametrize("scale", [1.0, 1000.0])
@pytest.mark.parametrize("chunk", [None, 4])
def test_losses_are_scipys(dtype, chunk, scale):
    hidden, embedding, targets = problem(dtype, scale)
    logits = np.asarray(hidden, "float64") @ np.asarray(embedding, "float64").T
    expected = -np.take_along_axis(
        scipy.special.log_softmax(logits, axis=-1), np.asarray(targets)[..., None], -1
    )
    losses, _ = losses_and_gradients(chunk, hidden, embedding, targets)
    assert losses.shape == (B, L) and losses.dtype == dtype
    # A loss is a difference of logits, whose sums of four products are rounded a few times.
    tolerance = 8 * float(jnp.finfo(dtype).eps) * np.abs(logits).max()
    np.testing.assert_allclose(losses, expected[..., 0], rtol=0, atol=tolerance)


# One that divides L, one that doesn't, and one that is larger.
@pytest.mark.parametrize("chunk", [2, 4, 100])
def test_chunks_change_neither_losses_nor_gradients(chunk):
    with jax.enable_x64(True):
        arguments = problem("float64")
        expected = losses_and_gradients(None, *arguments)
        found = losses_and_gradients(chunk, *arguments)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            assert a.dtype == "float64"
            # Sums in another order, of a few tens of numbers around one.
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-14)


def test_losses_of_bfloat16_are_float32():
    hidden, embedding, targets = problem("float32")
    rounded = hidden.astype("bfloat16"), embedding.astype("bfloat16").astype("float32"), targets
    exact = (rounded[0].astype("float32"), *rounded[1:])
    found, (hidden_gradient, embedding_gradient) = losses_and_gradients(4, *rounded)
    assert found.dtype == embedding_gradient.dtype == "float32"
    assert hidden_gradient.dtype == "bfloat16"
    # Products of rounded numbers are summed and normalised in float32: nothing is lost.
    expected, _ = losses_and_gradients(4, *exact)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def largest_arrays(chunk):
    """Numbers of elements of the largest array in the traced and in the compiled program."""
    lowered = _program(chunk).lower(*problem("float32"))
    # "f32[2,6,11]" in the jaxpr and in HLO.
    return [
        max(int(np.prod([int(n) for n in dims.split(",")])) for dims in found)
        for text in (
            str(jax.make_jaxpr(_program(chunk))(*problem("float32"))),
            lowered.compile().as_text(),
        )
        if (found := re.findall(r"\b[fsupred]+\d*\[(\d+(?:,\d+)*)\]", text))
    ]


def test_with_chunks_all_logits_are_never_there():
    assert largest_arrays(None) == [B * L * V] * 2
    # The hidden states are the largest; the logits of a chunk are 44.
    assert largest_arrays(2) == [B * L * D] * 2

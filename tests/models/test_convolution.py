"""Convolution and pooling against loops, against XLA's own, and in every place they are used."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from ldro_jax.models import convolution

# Images that are not square, not even and smaller than a filter, and one channel.
SHAPES = [(2, 5, 4, 3, 6), (1, 1, 1, 2, 3), (3, 2, 7, 1, 1)]


def normal(seed, shape, dtype="float32"):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def problem(shape, dtype="float32"):
    """Images, a kernel, and numbers to weigh the outputs with."""
    batch, height, width, channels, filters = shape
    return (
        normal(0, (batch, height, width, channels), dtype),
        normal(1, (3, 3, channels, filters), dtype),
        normal(2, (batch, height, width, filters), dtype),
    )


def plain(x, kernel):
    dimensions = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=dimensions)


def loops(x, kernel, cotangent):
    """Outputs, and the gradients of their inner product with the cotangent, in NumPy."""
    x, kernel, cotangent = (np.asarray(a, np.float64) for a in (x, kernel, cotangent))
    batch, height, width, _ = x.shape
    outputs, to_x, to_kernel = np.zeros(cotangent.shape), np.zeros(x.shape), np.zeros(kernel.shape)
    for b, row, column, i, j in np.ndindex(batch, height, width, 3, 3):
        r, c = row + i - 1, column + j - 1
        if 0 <= r < height and 0 <= c < width:
            outputs[b, row, column] += x[b, r, c] @ kernel[i, j]
            to_x[b, r, c] += kernel[i, j] @ cotangent[b, row, column]
            to_kernel[i, j] += np.outer(x[b, r, c], cotangent[b, row, column])
    return outputs, to_x, to_kernel


def outputs_and_gradients(conv, x, kernel, cotangent):
    outputs, pullback = jax.vjp(conv, x, kernel)
    return outputs, *pullback(cotangent)


def assert_close(found, expected, dtype="float32", *, terms=100):
    # Sums of up to `terms` numbers around one, in another order.
    tolerance = terms * float(jnp.finfo(dtype).eps)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shape", SHAPES)
def test_convolution_and_gradients_are_a_loop(shape, dtype):
    arguments = problem(shape, dtype)
    found = jax.jit(functools.partial(outputs_and_gradients, convolution.conv3x3))(*arguments)
    assert_close(found, loops(*arguments), dtype)


def test_both_ways_to_compute_it_agree(dtype):
    arguments = problem((4, 8, 8, 5, 7), dtype)
    found, expected = (
        jax.jit(functools.partial(outputs_and_gradients, conv))(*arguments)
        for conv in (convolution.conv3x3, plain)
    )
    assert_close(found, expected, dtype, terms=4 * 8 * 8)


def test_elsewhere_than_on_cpu_it_is_xlas_convolution(monkeypatch):
    arguments = problem((2, 5, 4, 3, 6))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    jaxpr = str(jax.make_jaxpr(convolution.conv3x3)(*arguments[:2]))
    assert "custom_vjp" not in jaxpr
    found = outputs_and_gradients(convolution.conv3x3, *arguments)
    assert_close(found, loops(*arguments))


def test_in_a_scan_over_steps():
    # The loop that the gradients are written for: gradient descent on the kernel.
    x, kernel, target = problem((3, 6, 5, 2, 4))

    def descend(conv, kernel):
        def step(kernel, _):
            def loss_fn(kernel):
                return jnp.mean((conv(x, kernel) - target) ** 2)

            loss, gradient = jax.value_and_grad(loss_fn)(kernel)
            return kernel - 0.1 * gradient, loss

        return jax.lax.scan(step, kernel, None, length=5)

    found, expected = (
        jax.jit(functools.partial(descend, conv))(kernel) for conv in (convolution.conv3x3, plain)
    )
    assert found[1][-1] < 0.9 * found[1][0]
    assert_close(found, expected)


def test_under_vmap_every_task_gets_its_own_gradient():
    tasks = [problem((2, 5, 4, 3, 6), "float32") for _ in range(3)]
    x = jnp.stack([task[0] * (1 + i) for i, task in enumerate(tasks)])
    _, kernel, cotangent = tasks[0]

    def gradients(x):
        def loss_fn(kernel, x):
            return jnp.sum(cotangent * convolution.conv3x3(x, kernel))

        return jax.grad(loss_fn, argnums=(0, 1))(kernel, x)

    to_kernel, to_x = jax.jit(jax.vmap(gradients))(x)
    for task in range(3):
        _, *expected = loops(x[task], kernel, cotangent)
        assert_close((to_x[task], to_kernel[task]), expected)


def pooled(x):
    """Maxima in NumPy."""
    batch, height, width, channels = x.shape
    result = np.zeros((batch, height // 2, width // 2, channels), x.dtype)
    for row, column in np.ndindex(height // 2, width // 2):
        block = x[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        result[:, row, column] = block.max(axis=(1, 2))
    return result


@pytest.mark.parametrize("size", [(4, 6), (5, 7), (2, 3), (1, 4)])
def test_pooling_is_flaxs_and_a_loop(size, dtype):
    x = normal(0, (2, *size, 3), dtype)
    found = convolution.max_pool_2x2(x)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, nn.max_pool(x, (2, 2), (2, 2)))
    np.testing.assert_array_equal(found, pooled(np.asarray(x)))


def test_the_gradient_of_pooling_goes_to_the_largest():
    x, cotangent = normal(0, (2, 5, 6, 3)), normal(1, (2, 2, 3, 3))

    def gradient(pool):
        return jax.jit(jax.grad(lambda x: jnp.sum(cotangent * pool(x))))(x)

    expected = gradient(lambda x: nn.max_pool(x, (2, 2), (2, 2)))
    np.testing.assert_array_equal(gradient(convolution.max_pool_2x2), expected)


def test_runs_with_kernels_of_their_own_side_by_side():
    # As a sweep does on an accelerator: every run has its own images and its own kernel.
    runs = [problem((2, 4, 5, 3, 2)), problem((2, 4, 5, 3, 2))]
    runs[1] = tuple(2 * array for array in runs[1])

    gradients = functools.partial(outputs_and_gradients, convolution.conv3x3)
    stacked = (jnp.stack(arrays) for arrays in zip(*runs, strict=True))
    together = jax.jit(jax.vmap(gradients))(*stacked)
    for index, run in enumerate(runs):
        assert_close([found[index] for found in together], loops(*run))

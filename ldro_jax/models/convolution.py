"""Convolution and pooling that XLA compiles to fast code on CPU as well."""

from typing import Any

import jax
import jax.numpy as jnp

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def conv3x3(x_BxHxWxC: jax.Array, kernel_3x3xCxD: jax.Array) -> jax.Array:
    """A 3×3 convolution with stride 1 that keeps the size of the image.

    Inside a loop XLA:CPU has fast code only for convolutions in the layout of a forward pass: the
    usual gradient of the kernel, in another layout, takes a hundred times as long. So on CPU both
    gradients are written as such convolutions, and there is no forward-mode derivative (the
    interaction strategy ``columns``). Elsewhere this is ``jax.lax.conv_general_dilated``.

    Returns:
      ``[B, H, W, D]``.
    """
    if jax.default_backend() == "cpu":
        return _conv_for_cpu(x_BxHxWxC, kernel_3x3xCxD)
    return _conv(x_BxHxWxC, kernel_3x3xCxD)


def max_pool_2x2(x_BxHxWxC: jax.Array) -> jax.Array:
    """Maximum over blocks of 2×2; an odd last row or column is left out.

    A reshape and a maximum, whose gradient XLA:CPU computes faster than that of ``reduce_window``.

    Returns:
      ``[B, H // 2, W // 2, C]``.
    """
    batch, height, width, channels = x_BxHxWxC.shape
    height, width = height // 2, width // 2
    even = x_BxHxWxC[:, : 2 * height, : 2 * width]
    return even.reshape(batch, height, 2, width, 2, channels).max(axis=(2, 4))


def _conv(x: jax.Array, kernel: jax.Array, padding: Any = "SAME") -> jax.Array:
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=_DIMENSIONS)


@jax.custom_vjp
def _conv_for_cpu(x, kernel):
    return _conv(x, kernel)


def _forward(x, kernel):
    return _conv(x, kernel), (x, kernel)


def _backward(residuals, gradient):
    x, kernel = residuals
    to_x = _conv(gradient, jnp.flip(kernel, (0, 1)).swapaxes(2, 3))
    # Channels in place of examples and examples in place of channels.
    to_kernel = _conv(x.transpose(3, 1, 2, 0), gradient.transpose(1, 2, 0, 3), ((1, 1), (1, 1)))
    return to_x, to_kernel.transpose(1, 2, 0, 3)


_conv_for_cpu.defvjp(_forward, _backward)

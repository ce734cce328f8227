"""Losses relative to their own size: the geometric mean, and logarithms.

References:
  Chennupati, Sistu, Yogamani and Rawashdeh, *MultiNet++: Multi-Stream Feature Aggregation and
  Geometric Loss Strategy for Multi-Task Learning*, CVPR Workshops 2019.
"""

import jax.numpy as jnp

from ldro_jax.weighting import base, gram


def geometric_mean() -> base.Weighting:
    r"""The weights of the geometric mean of the losses, :math:`(Π_k ℓ_k)^{1/N} / (N ℓ_i)`.

    Returns:
      The :class:`~ldro_jax.weighting.base.Weighting`, stateless. Without a positive loss the weight
      of a task is zero.
    """

    def weights(statistics):
        losses = statistics.losses
        positive = losses > 0
        logs = jnp.where(positive, jnp.log(jnp.where(positive, losses, 1)), 0)
        mean = jnp.exp(jnp.sum(logs) / jnp.maximum(jnp.sum(positive.astype(losses.dtype)), 1))
        return mean * gram.inverse_or_zero(losses) / losses.size

    return base.stateless(weights)


def scale_invariant() -> base.Weighting:
    r"""The weights of the sum of log losses, :math:`1 / ℓ_i`: no loss counts for its unit.

    Returns:
      The :class:`~ldro_jax.weighting.base.Weighting`, stateless. Without a positive loss the weight
      of a task is zero.
    """
    return base.stateless(lambda statistics: gram.inverse_or_zero(statistics.losses))

"""CAGrad: the best worst-case decrease, within a distance of the mean gradient.

References:
  Liu, Liu, Jin, Stone and Liu, *Conflict-Averse Gradient Descent for Multi-task Learning*, NeurIPS
  2021.
"""

import jax.numpy as jnp
import optax

from ldro_jax import solvers
from ldro_jax.weighting import base, gram


def cagrad(c: optax.ScalarOrSchedule = 0.5) -> base.Weighting:
    r"""The update d that maximises :math:`\min_i ⟨g_i, d⟩` with :math:`‖d − g_0‖ ≤ c ‖g_0‖`.

    :math:`g_0` is the mean gradient. With
    :math:`w^* = \arg\min_w w^⊤Au + c \sqrt{u^⊤Au} \sqrt{w^⊤Aw}` over the simplex, u uniform, the
    weights are :math:`u + c \sqrt{u^⊤Au / w^{*⊤}Aw^*} \, w^*`. They conflict with no task for
    c ≥ 1; c = 0 is the average loss.

    Args:
      c: in [0, inf), usually below 1. A number or an Optax schedule.

    Returns:
      The :class:`~ldro_jax.weighting.base.Weighting`, stateless; the weights are 1 / N or more.

    Raises:
      ValueError: if c is negative or not finite.
    """
    base.check_range("c", c)

    def weights(statistics):
        interaction = statistics.interaction
        radius = base.value_at(c, statistics)
        uniform = jnp.full_like(statistics.losses, 1 / statistics.losses.size)
        found = solvers.steepest(interaction, radius)
        scale = jnp.max(jnp.diagonal(interaction))
        scale = jnp.where(scale > 0, scale, 1)

        def squared(w):
            return jnp.maximum(w @ gram.dot(interaction / scale, w), 0)

        # Where the found gradient is nothing but rounding, all tasks are as good as converged.
        length = squared(found)
        lost = length <= 64 * jnp.finfo(length.dtype).eps * squared(uniform)
        ratio = jnp.sqrt(squared(uniform) / jnp.where(lost, 1, length))
        return uniform + jnp.where(lost, 0, radius * ratio) * found

    return base.stateless(weights)._replace(uses_interaction=True)

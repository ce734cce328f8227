"""UPGrad: the mean of the task gradients, each projected so that it conflicts with none.

References:
  Quinton and Rey, *Jacobian Descent for Multi-Objective Optimization*, 2024.
"""

import jax
import jax.numpy as jnp

from ldro_jax import solvers
from ldro_jax.weighting import base


def upgrad() -> base.Weighting:
    r""":math:`Σ_i \arg\min_{v ≥ e_i / N} v^⊤ A v`.

    Each gradient is projected onto the cone of directions in which no loss grows, by N quadratic
    programmes solved together. The update has no conflict with any task, and is linear in the
    length of each gradient.

    Returns:
      The :class:`~ldro_jax.weighting.base.Weighting`, stateless; the weights are 1 / N or more.
    """

    def weights(statistics):
        count = statistics.losses.size
        bounds = jnp.eye(count, dtype=statistics.interaction.dtype) / count
        return jax.vmap(solvers.above, (None, 0))(statistics.interaction, bounds).sum(axis=0)

    return base.stateless(weights)._replace(uses_interaction=True)

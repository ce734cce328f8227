"""DualProj: the mean gradient, projected so that it conflicts with no task (as GEM does).

References:
  Lopez-Paz and Ranzato, *Gradient Episodic Memory for Continual Learning*, NIPS 2017.
"""

import jax.numpy as jnp

from ldro_jax import solvers
from ldro_jax.weighting import base


def dualproj() -> base.Weighting:
    r""":math:`\arg\min_{v ≥ 1/N} v^⊤ A v`: the mean gradient, projected onto the dual cone.

    Returns:
      The :class:`~ldro_jax.weighting.base.Weighting`, stateless; the weights are 1 / N or more.
    """

    def weights(statistics):
        uniform = jnp.full_like(statistics.losses, 1 / statistics.losses.size)
        return solvers.above(statistics.interaction, uniform)

    return base.stateless(weights)._replace(uses_interaction=True)

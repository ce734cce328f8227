"""SDMGrad: MGDA's direction, drawn towards the mean gradient.

References:
  Xiao, Ban and Ji, *Direction-oriented Multi-objective Learning: Simple and Provable Stochastic
  Algorithms*, NeurIPS 2023.
"""

import jax.numpy as jnp
import optax

from ldro_jax import solvers
from ldro_jax.weighting import base, gram


def sdmgrad(strength: optax.ScalarOrSchedule = 0.3) -> base.Weighting:
    r""":math:`(w + λu) / (1 + λ)` with :math:`w = \arg\min_w ½ w^⊤Aw + λ w^⊤Au` over the simplex.

    The quadratic programme is solved as it is; the inner gradient loops of other implementations
    oscillate at their defaults.

    Args:
      strength: λ; 0 is MGDA, large is the average loss. A number or an Optax schedule.

    Returns:
      The :class:`~ldro_jax.weighting.base.Weighting`, stateless; the weights sum to one.

    Raises:
      ValueError: if λ is negative or not finite.
    """
    base.check_range("strength", strength)

    def weights(statistics):
        pull = base.value_at(strength, statistics)
        uniform = jnp.full_like(statistics.losses, 1 / statistics.losses.size)
        linear = pull * gram.dot(statistics.interaction, uniform)
        found = solvers.on_simplex(statistics.interaction, linear)
        return (found + pull * uniform) / (1 + pull)

    return base.stateless(weights)._replace(uses_interaction=True)

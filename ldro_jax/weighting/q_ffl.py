"""q-fair federated learning: powers of the losses.

References:
  Li, Sanjabi, Beirami and Smith, *Fair Resource Allocation in Federated Learning*, ICLR 2020.
"""

import jax
import jax.numpy as jnp
import optax

from ldro_jax.weighting import base


def q_ffl(q: optax.ScalarOrSchedule) -> base.Weighting:
    r"""Weights of :math:`\frac{1}{q+1} Σ_i ℓ_i^{q+1}`, :math:`∝ ℓ_i^q`, made to sum to one.

    Args:
      q: 0 is the average loss, large the worst task. A number or an Optax schedule.

    Returns:
      The :class:`~ldro_jax.weighting.base.Weighting`, stateless. A loss that is not positive has no
      weight, unless none is.

    Raises:
      ValueError: if q is negative or not finite.
    """
    base.check_range("q", q)

    def weights(statistics):
        losses = statistics.losses
        logs = jnp.log(jnp.maximum(losses, jnp.finfo(losses.dtype).tiny))
        return jax.nn.softmax(base.value_at(q, statistics) * logs)

    return base.stateless(weights)

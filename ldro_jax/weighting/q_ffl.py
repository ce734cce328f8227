"""q-fair federated learning: powers of the losses.

References:
  Li, Sanjabi, Beirami and Smith, *Fair Resource Allocation in Federated Learning*, ICLR 2020.
"""

import jax
import jax.numpy as jnp
import optax

from ldro_jax.weighting import about, base


@about.method(about.WORST, weights="∝ ℓ^q", paper="Li 2020", usual={"q": 2.0}, scale_free=True)
def q_ffl(q: optax.ScalarOrSchedule) -> base.Weighting:
    r"""Weights of :math:`\frac{1}{q+1} Σ_i ℓ_i^{q+1}`, :math:`∝ ℓ_i^q`, made to sum to one.

    A loss of zero has no weight, unless all are; one below zero is taken for zero, so the method
    needs positive losses.

    Args:
      q: 0 is the average loss, large the worst task.

    Raises:
      ValueError: if q is negative or not finite.
    """
    base.check_range("q", q)

    def weights(statistics):
        losses = statistics.losses
        logs = jnp.log(jnp.maximum(losses, jnp.finfo(losses.dtype).tiny))
        known = base.known_tasks(statistics)
        return jax.nn.softmax(base.value_at(q, statistics) * logs, where=known)

    return base.stateless(weights)._replace(needs_positive_losses=True)

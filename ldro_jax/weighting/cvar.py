"""Conditional value at risk over tasks: the mean of the worst share of them.

References:
  Rockafellar and Uryasev, *Optimization of Conditional Value-at-Risk*, Journal of Risk, 2000.
"""

import jax.numpy as jnp
import optax

from ldro_jax.weighting import about, base


@about.method(
    about.WORST,
    weights="even on the worst share of tasks",
    paper="Rockafellar 2000",
    usual={"share": 0.3},
    scale_free=True,
)
def cvar(share: optax.ScalarOrSchedule) -> base.Weighting:
    r""":math:`\arg\max_w w^⊤ ℓ` over the simplex with :math:`w_i ≤ 1 / (αN)`.

    Tied tasks share alike.

    Args:
      share: α in (0, 1], the share of the tasks, the worst, whose mean counts; 1 is the average
        loss, 1 / N or less the worst task.

    Raises:
      ValueError: if α lies outside (0, 1].
    """
    base.check_range("share", share, "(0, 1]")

    def weights(statistics):
        known, losses = base.known_tasks(statistics), statistics.losses
        limit = 1 / (base.value_at(share, statistics) * base.number_known(statistics))
        other = losses[None, :]
        worse = jnp.sum(known[None, :] & (other > losses[:, None]), axis=1, dtype=losses.dtype)
        tied = jnp.sum(known[None, :] & (other == losses[:, None]), axis=1, dtype=losses.dtype)
        left = jnp.maximum(1 - worse * limit, 0)
        return jnp.where(known, jnp.minimum(limit, left / jnp.maximum(tied, 1)), 0)

    return base.stateless(weights)

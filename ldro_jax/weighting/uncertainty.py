"""Uncertainty weighting: each task's weight is the precision of its noise, which is learned.

References:
  Kendall, Gal and Cipolla, *Multi-Task Learning Using Uncertainty to Weigh Losses for Scene
  Geometry and Semantics*, CVPR 2018.
"""

import jax.numpy as jnp
import optax

from ldro_jax.weighting import about, base, imtl


@about.method(
    about.SCALES,
    weights="½ exp(−s), s learned",
    paper="Kendall 2018",
    state="s",
    sums_to="",
    usual={"weight_lr": 0.1},
)
def uncertainty(weight_lr: optax.ScalarOrSchedule) -> base.Weighting:
    r""":math:`½ e^{−s}`, with s, a logarithm of a variance, learned on :math:`½ (e^{−s} ℓ + s)`.

    The weights begin at ½ and tend to 1 / 2ℓ. The method needs positive losses, such as squared
    errors and cross entropies.

    Args:
      weight_lr: learning rate of s.

    Raises:
      ValueError: if the rate is negative or not finite.
    """
    base.check_range("weight_lr", weight_lr)

    def update(statistics, state):
        precision = jnp.exp(-state.scales)
        steps = -base.value_at(weight_lr, statistics) * (1 - precision * statistics.losses) / 2
        best = jnp.log(base.positive_losses(statistics))
        weights = jnp.where(base.known_tasks(statistics), precision / 2, 0)
        return weights, imtl.learned_scales(statistics, state.scales, steps, best)

    return base.Weighting(imtl.no_scales, update, needs_positive_losses=True)

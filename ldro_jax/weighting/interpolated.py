"""Average and worst loss, interpolated.

References:
  Michel, Ruder and Yogatama, *Balancing Average and Worst-case Accuracy in Multitask Learning*,
  2021, appendix B.2.
"""

import jax.numpy as jnp
import optax

from ldro_jax.weighting import about, base


@about.method(
    about.WORST,
    weights="α/N, and 1 − α on the worst",
    paper="Michel 2021",
    usual={"alpha": 0.3},
    scale_free=True,
)
def interpolated(alpha: optax.ScalarOrSchedule) -> base.Weighting:
    r"""Weights of :math:`α · \frac1N Σ_i ℓ_i + (1 − α) · \max_i ℓ_i`.

    Args:
      alpha: α in [0, 1]; 1 is the average loss, 0 trains on the worst task of each batch alone.

    Raises:
      ValueError: if α lies outside [0, 1].
    """
    base.check_range("alpha", alpha, "[0, 1]")

    def weights(statistics):
        known, losses = base.known_tasks(statistics), statistics.losses
        share = base.value_at(alpha, statistics)
        # Tied tasks share, so that neither their order nor a duplicate makes a difference.
        worst = known & (losses == jnp.max(losses, where=known, initial=-jnp.inf))
        worst = worst.astype(losses.dtype)
        weights = share / base.number_known(statistics) + (1 - share) * worst / jnp.sum(worst)
        return jnp.where(known, weights, 0)

    return base.stateless(weights)

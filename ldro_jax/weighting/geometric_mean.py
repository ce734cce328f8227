"""Losses relative to their own size: the geometric mean, and logarithms.

References:
  Chennupati, Sistu, Yogamani and Rawashdeh, *MultiNet++: Multi-Stream Feature Aggregation and
  Geometric Loss Strategy for Multi-Task Learning*, CVPR Workshops 2019.
"""

import jax.numpy as jnp

from ldro_jax.weighting import about, base


@about.method(
    about.SCALES,
    weights="GM(ℓ)/(Nℓ); 1/ℓ where `total=1`",
    paper="Chennupati 2019",
    sums_to="",
    scale_free=True,
)
def geometric_mean() -> base.Weighting:
    r"""The weights of the geometric mean of the losses, :math:`(Π_k ℓ_k)^{1/N} / (N ℓ_i)`.

    It needs positive losses; made to sum to one, it is :func:`scale_invariant`.
    """

    def weights(statistics):
        known, losses = base.known_tasks(statistics), base.positive_losses(statistics)
        mean = jnp.exp(jnp.mean(jnp.log(losses), where=known))
        return jnp.where(known, mean / losses / base.number_known(statistics), 0)

    return base.stateless(weights)._replace(needs_positive_losses=True)


@about.method(about.SCALES, weights="1/ℓ", sums_to="", scale_free=True)
def scale_invariant() -> base.Weighting:
    r"""The weights of the sum of log losses, :math:`1 / ℓ_i`: no loss counts for its unit.

    It needs positive losses, and the weight of a task whose loss can be made zero grows without
    limit.
    """

    def weights(statistics):
        return jnp.where(base.known_tasks(statistics), 1 / base.positive_losses(statistics), 0)

    return base.stateless(weights)._replace(needs_positive_losses=True)

"""DB-MTL: logarithms of the losses, with gradients of one length.

References:
  Lin, Ye, Zhang, Tsang and Zhang, *Dual-Balancing for Multi-Task Learning*, 2023.
"""

import jax.numpy as jnp

from ldro_jax.weighting import about, base, gram, products


@about.method(
    about.SCALES, weights="∝ 1/‖g‖, on log losses", paper="Lin 2023", sums_to="", scale_free=True
)
def db_mtl() -> base.Weighting:
    r""":math:`\max_k(d_k / ℓ_k) / d_i`: gradients of log losses, as long as the longest of them.

    The paper's moving average of the gradients is left out: that is the optimizer's momentum.
    """

    def weights(statistics):
        lengths = gram.lengths(base.known_interaction(statistics))
        longest = jnp.max(lengths / base.positive_losses(statistics))
        return longest * gram.inverse_or_zero(lengths)

    made = base.stateless(weights)._replace(uses_interaction=True, needs_positive_losses=True)
    return made._replace(by_products=products.of_lengths(made))

"""ConFIG: an update with the same cosine to every gradient, as long as their projections on it.

References:
  Liu, Chu and Thuerey, *ConFIG: Towards Conflict-free Training of Physics Informed Neural
  Networks*, 2024.
"""

import jax.numpy as jnp

from ldro_jax.weighting import about, base, gram


@about.method(
    about.GRADIENTS,
    weights="equal cosines; IMTL-G where `total=1`",
    paper="Liu 2024",
    sums_to="",
    signed=True,
    solver="convex",
    scale_free=True,
)
def config() -> base.Weighting:
    r""":math:`\frac{d^⊤ C z}{z^⊤ C z} \, z / d`, :math:`z = C^+ 1`, from cosines C and lengths d.

    The update is as long as the sum of the gradients' projections on it, so the weights of
    gradients that agree are about 1 each.
    """

    def weights(statistics):
        cosines, lengths = (
            f(base.known_interaction(statistics)) for f in (gram.cosines, gram.lengths)
        )
        z, solved = gram.pseudo_solve(cosines, lengths)
        product = gram.dot(cosines, z)
        longest = jnp.max(lengths)
        relative = lengths / jnp.where(longest > 0, longest, 1)
        squared = z @ product
        length = relative @ product * gram.inverse_or_zero(squared)
        return length * z * gram.inverse_or_zero(relative), solved

    return base.solving(weights)

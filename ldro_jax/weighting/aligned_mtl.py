"""Aligned-MTL: gradients made orthogonal and of one length, as near as possible to what they are.

References:
  Senushkin, Patakin, Kuznetsov and Konushin, *Independent Component Alignment for Multi-Task
  Learning*, CVPR 2023.
"""

import jax.numpy as jnp

from ldro_jax import checks
from ldro_jax.weighting import base, gram

_SCALES = ("min", "median", "rmse")


def aligned_mtl(*, scale: str = "min") -> base.Weighting:
    r""":math:`\sqrt{s} \, V Λ^{−1/2} V^⊤ u`, from the eigenvalues Λ and eigenvectors V of A.

    Args:
      scale: s, of the eigenvalues that aren't zero: the smallest ("min", the paper's), the median,
        or the mean ("rmse", after the root of it).

    Returns:
      The :class:`~ldro_jax.weighting.base.Weighting`, stateless; the weights are about 1 / N.

    Raises:
      ValueError: if the scale is none of these.
    """
    checks.one_of("scale", scale, _SCALES)

    def weights(statistics):
        values, vectors, kept = gram.spectral(statistics.interaction)
        roots = jnp.sqrt(jnp.where(kept, values, 1))
        if scale == "min":
            root = jnp.min(jnp.where(kept, roots, jnp.inf))
        elif scale == "median":
            root = jnp.nanmedian(jnp.where(kept, roots, jnp.nan))
        else:
            mean = jnp.sum(jnp.where(kept, roots, 0) ** 2) / jnp.maximum(
                jnp.sum(kept.astype(roots.dtype)), 1
            )
            root = jnp.sqrt(mean)
        ratio = jnp.where(kept, jnp.where(kept, root, 0) / roots, 0)
        uniform = jnp.full_like(values, 1 / values.size)
        return gram.dot(vectors, ratio * gram.dot(vectors.T, uniform))

    return base.stateless(weights)._replace(uses_interaction=True)

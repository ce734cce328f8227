"""Aligned-MTL: gradients made orthogonal and of one length, as near as possible to what they are.

References:
  Senushkin, Patakin, Kuznetsov and Konushin, *Independent Component Alignment for Multi-Task
  Learning*, CVPR 2023.
"""

import jax.numpy as jnp

from ldro_jax.runtime import checks
from ldro_jax.weighting import about, base, gram

_SCALES = ("min", "median", "rmse")


@about.method(
    about.GRADIENTS,
    weights="√s A^(−1/2) u",
    paper="Senushkin 2023",
    sums_to="about 1",
    variants={"median": {"scale": "median"}, "rmse": {"scale": "rmse"}},
    signed=True,
    solver="convex",
    scale_free=True,
)
def aligned_mtl(*, scale: str = "min") -> base.Weighting:
    r""":math:`\sqrt{s} \, V Λ^{−1/2} V^⊤ u`, from the eigenvalues Λ and eigenvectors V of A.

    Args:
      scale: s, of the eigenvalues that aren't zero: the smallest ("min", the paper's), the median
        (of two in the middle the smaller, as in the authors' code), or the mean ("rmse", after the
        root of it).

    Raises:
      ValueError: if the scale is none of these.
    """
    checks.one_of("scale", scale, _SCALES)

    def weights(statistics):
        cosines, lengths = (
            f(base.known_interaction(statistics)) for f in (gram.cosines, gram.lengths)
        )
        longest = jnp.max(lengths)
        relative = lengths / jnp.where(longest > 0, longest, 1)
        # The roots of A's eigenvalues are the singular values of R diag(d), with RᵀR = C. Squared,
        # those of short gradients would be lost beside those of long ones.
        values, vectors, kept = gram.spectral(cosines)
        root = jnp.sqrt(jnp.where(kept, values, 0))
        left, sizes, right = jnp.linalg.svd(root[:, None] * vectors.T * relative[None, :])
        rank = jnp.sum(kept, dtype=jnp.int32)
        # Sizes descend. As many are zero as there are zeros in C.
        chosen = jnp.arange(sizes.size, dtype=jnp.int32) < rank
        if scale == "min":
            size = sizes[jnp.maximum(rank - 1, 0)]
        elif scale == "median":
            size = sizes[rank // 2]
        else:
            total = jnp.linalg.norm(jnp.where(chosen, sizes, 0))
            size = total / jnp.sqrt(jnp.maximum(rank, 1).astype(sizes.dtype))
        # The update is size · U Vᵀu, of which R diag(d) w are the coordinates.
        coordinates = gram.dot(left, jnp.where(chosen, gram.dot(right, gram.even(statistics)), 0))
        combined = gram.dot(vectors, gram.inverse_or_zero(root) * coordinates)
        return size * combined * gram.inverse_or_zero(relative)

    return base.stateless(weights, uses_interaction=True)

"""What methods compute from a Gram matrix of task gradients."""

import jax
import jax.numpy as jnp
from jax import lax

from ldro_jax.solvers import quadratic


def dot(matrix: jax.Array, vector: jax.Array) -> jax.Array:
    """A product in full precision, where an accelerator would round the factors.

    Args:
      matrix: ``[..., N]``.
      vector: ``[N]`` or ``[N, M]``.

    Returns:
      The product.
    """
    return jnp.dot(matrix, vector, precision=lax.Precision.HIGHEST)


def inverse_or_zero(values: jax.Array) -> jax.Array:
    """One over each value, and zero for those that aren't positive: a converged task has no pull.

    Args:
      values: any shape.

    Returns:
      The same shape.
    """
    positive = values > 0
    return jnp.where(positive, 1 / jnp.where(positive, values, 1), 0)


def norms(interaction: jax.Array) -> jax.Array:
    """Lengths of the task gradients.

    Args:
      interaction: ``[N, N]``.

    Returns:
      ``[N]``; see :func:`ldro_jax.solvers.quadratic.lengths`.
    """
    return quadratic.lengths(interaction)


def cosines(interaction: jax.Array) -> jax.Array:
    """Cosines of the angles between task gradients.

    Args:
      interaction: ``[N, N]``.

    Returns:
      ``[N, N]``, zero in the row and column of a task whose gradient is zero.
    """
    inverse = inverse_or_zero(norms(interaction))
    return jnp.clip(interaction * inverse[:, None] * inverse[None, :], -1, 1)


def spectral(matrix: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Eigenvalues and eigenvectors of a positive semidefinite matrix.

    Args:
      matrix: ``[N, N]``.

    Returns:
      The eigenvalues ``[N]``, in ascending order; the eigenvectors, as columns ``[N, N]``; and
      which eigenvalues are more than rounding, bool ``[N]``.
    """
    scale = jnp.max(jnp.abs(matrix))
    scale = jnp.where(scale > 0, scale, 1)
    values, vectors = jnp.linalg.eigh(matrix / scale)
    cutoff = matrix.shape[0] * jnp.finfo(matrix.dtype).eps * jnp.max(values)
    return values * scale, vectors, values > cutoff


def pseudo_solve(matrix: jax.Array, vector: jax.Array) -> jax.Array:
    """The shortest of the least-squares solutions of ``matrix x = vector``.

    Args:
      matrix: ``[N, N]``, positive semidefinite.
      vector: ``[N]``.

    Returns:
      ``[N]``.
    """
    values, vectors, kept = spectral(matrix)
    inverse = jnp.where(kept, 1 / jnp.where(kept, values, 1), 0)
    return dot(vectors, inverse * dot(vectors.T, vector))

"""What methods compute from a Gram matrix of task gradients."""

import jax
import jax.numpy as jnp

from ldro_jax.solvers.quadratic import dot, lengths
from ldro_jax.weighting import base

__all__ = ["cosines", "dot", "even", "inverse_or_zero", "lengths", "pseudo_solve", "spectral"]


def even(statistics: base.Statistics) -> jax.Array:
    """Even weights ``[N]`` of the known tasks, which sum to one."""
    mask = base.known_tasks(statistics).astype(statistics.losses.dtype)
    return mask / jnp.sum(mask)


def inverse_or_zero(values: jax.Array) -> jax.Array:
    """One over each value; zero for those that aren't positive: a converged task has no pull."""
    positive = values > 0
    return jnp.where(positive, 1 / jnp.where(positive, values, 1), 0)


def cosines(interaction: jax.Array) -> jax.Array:
    """Cosines of the angles between task gradients, ``[N, N]``; zero where a gradient is zero."""
    inverse = inverse_or_zero(lengths(interaction))
    return jnp.clip(interaction * inverse[:, None] * inverse[None, :], -1, 1)


def pseudo_solve(cosines: jax.Array, lengths: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The shortest z for which ``C z`` is nearest to one for every task with a gradient.

    Args:
      cosines: C, ``[N, N]``, as :func:`cosines` gives them.
      lengths: of the gradients, ``[N]``.

    Returns:
      z, ``[N]``, zero for a task without gradient; and whether ``C z`` is one.
    """
    ones = (lengths > 0).astype(cosines.dtype)
    values, vectors, kept = spectral(cosines)
    inverse = jnp.where(kept, 1 / jnp.where(kept, values, 1), 0)
    z = dot(vectors, inverse * dot(vectors.T, ones))
    error = jnp.max(jnp.abs(dot(cosines, z) - ones))
    return z, error <= jnp.finfo(z.dtype).eps ** 0.5


def spectral(cosines: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Eigenvalues and eigenvectors of a matrix of cosines, ``[N, N]``.

    Returns:
      The eigenvalues ``[N]``, in ascending order; the eigenvectors, as columns ``[N, N]``; and
      which eigenvalues are more than rounding, bool ``[N]``.
    """
    values, vectors = jnp.linalg.eigh(cosines)
    # The cosines themselves were rounded several times.
    cutoff = (values.size + 8) * jnp.finfo(values.dtype).eps * jnp.max(values)
    return values, vectors, values > cutoff

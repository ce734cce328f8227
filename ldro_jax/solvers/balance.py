"""Weights under which every task gains in proportion to a power of its weight."""

import jax
import jax.numpy as jnp
from jax import lax

from ldro_jax.solvers import quadratic

_MAX_STEPS = 60


def balance(matrix: jax.Array, power: jax.Array) -> jax.Array:
    r"""Solves :math:`A w = w^{-1/α}` for w > 0.

    It is where :math:`½ w^⊤ A w − Σ_i φ(w_i)`, with :math:`φ'(w) = w^{-1/α}`, has its minimum,
    which is convex for every α > 0. Found by Newton's method on log w, no step longer than a factor
    of e.

    Args:
      matrix: A, ``[N, N]``, positive semidefinite.
      power: α, positive.

    Returns:
      w, ``[N]``; zero for a task whose gradient is zero.
    """
    cosines, norms, _ = quadratic.scaled(matrix)
    alive = quadratic.lengths(matrix) > 0
    count = norms.size
    # In units in which the equation of a lone task is u = 1. Its rows and columns then differ by
    # powers of the norms, which are one for α = 1 and shared evenly between them otherwise.
    exponent = (1 - power) / (1 + power)
    ratio = norms / jnp.exp(jnp.mean(jnp.log(norms)))
    ridge = quadratic.regular(cosines)
    system = ridge * ratio[None, :] ** exponent / ratio[:, None] ** exponent
    tolerance = 4 * count * jnp.finfo(norms.dtype).eps

    def residual(log_u):
        u = jnp.exp(log_u)
        product = jnp.dot(system, u, precision=lax.Precision.HIGHEST)
        return product - jnp.exp(-log_u / power), u

    def advance(carry):
        log_u, _, step = carry
        gap, u = residual(log_u)
        slope = u ** (-1 / power) / power
        # d gap / d log u.
        change = jnp.linalg.solve(system * u[None, :] + jnp.diag(slope), -gap)
        length = jnp.minimum(1, 1 / jnp.maximum(jnp.max(jnp.abs(change)), 1e-30))
        new = log_u + length * change
        return jnp.where(jnp.isfinite(new), new, log_u), jnp.max(jnp.abs(change)), step + 1

    def unfinished(carry):
        _, change, step = carry
        return (change > tolerance) & (step < _MAX_STEPS)

    start = jnp.full_like(norms, -jnp.log(count) * power / (1 + power))
    log_u, _, _ = lax.while_loop(unfinished, advance, (start, jnp.ones((), norms.dtype), 0))
    unit = norms ** (-2 * power / (1 + power))
    return jnp.where(alive, jnp.exp(log_u) * unit, 0)

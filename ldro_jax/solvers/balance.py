"""Weights under which every task gains in proportion to a power of its weight."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from ldro_jax.solvers import quadratic

_MAX_STEPS = 100


@functools.partial(jax.jit, inline=True)
def balance(matrix: jax.Array, power: jax.Array) -> tuple[jax.Array, jax.Array]:
    r"""Solves :math:`A w = w^{-1/α}` for w > 0.

    It is where :math:`½ w^⊤ A w − Σ_i φ(w_i)`, with :math:`φ'(w) = w^{-1/α}`, has its minimum,
    which is convex for every α > 0. Found by Newton's method on log w, while the power goes from
    one to α. No step lets a weight or a gain grow by more than a factor of e².

    Args:
      matrix: A, ``[N, N]``, positive semidefinite.
      power: α, positive. Tried from 0.01 to 50 for lengths of gradients within a factor of 1e4.

    Returns:
      w, ``[N]``, zero for a task whose gradient is zero; and whether they solve the equation, in
      float32 to about 2 %. There is no solution where a convex combination of the gradients is
      zero, and none that rounding leaves where one is nearly so.
    """
    cosines, norms, _ = quadratic.scaled(matrix)
    alive = quadratic.lengths(matrix) > 0
    # A task without gradient is made one that has nothing to do with the others.
    cosines = cosines + jnp.diag((~alive).astype(norms.dtype))
    system = quadratic.regular(cosines)
    ratio = norms / jnp.exp(jnp.mean(jnp.log(norms)))
    tolerance = 4 * norms.size * jnp.finfo(norms.dtype).eps

    def sides(log_u, power):
        """Coefficients of the unit gradients, and the gains along them that they ask for.

        In units in which a lone task has both at one, but for the lengths' share.
        """
        unit = ratio ** ((1 - power) / (1 + power))
        return unit * jnp.exp(jnp.maximum(log_u, -60)), unit * jnp.exp(-log_u / power)

    def newton(log_u, power, matrix):
        x, gains = sides(log_u, power)
        hessian = matrix + jnp.diag(gains / (power * x))
        scale = 1 / jnp.sqrt(jnp.diagonal(hessian))
        factor = jax.scipy.linalg.cho_factor(hessian * scale[:, None] * scale[None, :])
        gap = gains - quadratic.dot(matrix, x)
        change = jax.scipy.linalg.cho_solve(factor, gap * scale) * scale / x
        return change, jnp.max(jnp.abs(change)) / jnp.maximum(1, power)

    def advance(carry):
        log_u, old, _, step = carry
        new = jnp.clip(power, old / 1.3, old * 1.3)
        log_u = log_u * (new / (1 + new)) / (old / (1 + old))
        change, size = newton(log_u, new, system)
        growth = jnp.maximum(jnp.max(change), jnp.max(-change / new))
        moved = log_u + change * jnp.minimum(1, 2 / jnp.maximum(growth, 1e-30))
        size = jnp.where(new == power, size, jnp.inf)
        return jnp.where(jnp.isfinite(moved), moved, log_u), new, size, step + 1

    def unfinished(carry):
        *_, change, step = carry
        return (change > tolerance) & (step < _MAX_STEPS)

    start = jnp.full_like(norms, -jnp.log(norms.size) / 2)
    carry = (start, jnp.ones_like(power), jnp.full_like(power, jnp.inf), 0)
    log_u, *_ = lax.while_loop(unfinished, advance, carry)
    # Where a step for the matrix as it is would go elsewhere, the solution is one of rounding.
    _, error = newton(log_u, power, cosines)
    solved = error <= jnp.finfo(norms.dtype).eps ** 0.25
    unit = norms ** (-2 * power / (1 + power))
    return jnp.where(alive, jnp.exp(log_u) * unit, 0), solved

"""The Newton system of both stages of a game, and the steps along its directions.

Both players' strategies are one vector x = [w; v], and what they pay for each strategy another,
y = [z; s]: then K x = y + E m for the skew matrix K = [0 L^T; -L 0], m = [theta; -t] and E which
says whose a strategy is. Many small arrays would cost more than their arithmetic.
"""

import jax
import jax.numpy as jnp
from jax import lax

MAX_STEPS = 100
PATIENCE = 8


def skew(payoff):
    """K, [M + N, M + N]."""
    num_rows, num_columns = payoff.shape
    return jnp.block(
        [
            [jnp.zeros((num_columns, num_columns), payoff.dtype), payoff.T],
            [-payoff, jnp.zeros((num_rows, num_rows), payoff.dtype)],
        ]
    )


def bordered(payoff):
    """K with the border -E beside and E^T below it, [M + N + 2, M + N + 2]."""
    columns = (jnp.arange(sum(payoff.shape)) < payoff.shape[1]).astype(payoff.dtype)
    border = jnp.stack([columns, 1 - columns], axis=1)
    corner = jnp.zeros((2, 2), payoff.dtype)
    return jnp.block([[skew(payoff), -border], [border.T, corner]])


def solver(bordered, x, y, proximal):
    """Factorises the Newton system shared by both stages and returns its solver.

    The solver returns dx and dm such that

      y dx + x (K dx - E dm) = a,     E^T dx = b,

    up to the `proximal` terms, relative to x, that keep the system regular when the optimal x is
    not unique (duplicated tasks). They damp the steps and leave the solution where it is.
    """
    matrix, scale = _system(bordered, x, y, proximal)
    factors, _, permutation = lax.linalg.lu(matrix)

    def solve(a, b):
        rhs = jnp.concatenate([a * scale, b])[permutation][:, None]
        lower = _triangular(factors, rhs, lower=True, unit_diagonal=True)
        found = _triangular(factors, lower)[:, 0]
        return found[:-2], found[-2:]

    return solve


def solution(bordered, x, y, proximal, a, b):
    """What :func:`solver` finds for one a and b: they are eliminated with the matrix."""
    matrix, scale = _system(bordered, x, y, proximal)
    rhs = jnp.concatenate([a * scale, b])[:, None]
    factors, _, _ = lax.linalg.lu(jnp.concatenate([matrix, rhs], axis=1))
    found = _triangular(factors[:, :-1], factors[:, -1:])[:, 0]
    return found[:-2], found[-2:]


def _system(bordered, x, y, proximal):
    # The usual reduction to a Cholesky factorisation squares the condition number, which float32
    # cannot afford. Rows scaled to one and partial pivoting keep the conditioning of the game.
    scale = 1 / (x + y)
    rows = jnp.concatenate([x * scale, jnp.ones(2, x.dtype)])
    diagonal = jnp.concatenate([(y + proximal * x) * scale, jnp.zeros(2, x.dtype)])
    return rows[:, None] * bordered + jnp.diag(diagonal), scale


def _triangular(factors, rhs, **options):
    return lax.linalg.triangular_solve(factors, rhs, left_side=True, **options)


def to_the_bound(x, dx):
    """How many steps dx each x can go until it is zero; infinity where it grows."""
    return jnp.where(dx < 0, -x / jnp.where(dx < 0, dx, -1), jnp.inf)


def select(condition, new, old):
    """A choice between two trees of arrays."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)

"""The Newton system of both stages of a game, and the steps along its directions."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

MAX_STEPS = 100
PATIENCE = 8


def solver(
    payoff: jax.Array,
    w: jax.Array,
    curvature: jax.Array,
    v: jax.Array,
    slack: jax.Array,
    proximal: jax.Array,
) -> Callable[..., tuple[jax.Array, ...]]:
    """Factorises the Newton system shared by both stages and returns its solver.

    The solver returns (dw, dv, dtheta, dt) such that

      curvature_j dw_j + w_j ((L^T dv)_j - dtheta) = a_j,
      v_i ((L dw)_i - dt) - slack_i dv_i = b_i,     sum(dw) = c,     sum(dv) = d,

    up to the [N] `proximal` terms, relative to v, that keep the system regular when the optimal v
    is not unique (duplicated tasks). They damp the steps and leave the solution where it is.
    """
    num_rows, num_columns = payoff.shape
    # The usual reduction to a Cholesky factorisation squares the condition number, which float32
    # cannot afford. Rows scaled to one and partial pivoting keep the conditioning of the game.
    column_scale, row_scale = 1 / (curvature + w), 1 / (slack + v)
    to_columns, to_rows = (w * column_scale)[:, None], (v * row_scale)[:, None]

    def zeros(*shape):
        return jnp.zeros(shape, payoff.dtype)

    def ones(*shape):
        return jnp.ones(shape, payoff.dtype)

    diagonal_w = jnp.diag((curvature + jnp.finfo(payoff.dtype).eps * w) * column_scale)
    diagonal_v = jnp.diag((slack + proximal * v) * row_scale)
    matrix = jnp.block(
        [
            [diagonal_w, to_columns * payoff.T, -to_columns, zeros(num_columns, 1)],
            [to_rows * payoff, -diagonal_v, zeros(num_rows, 1), -to_rows],
            [ones(1, num_columns), zeros(1, num_rows + 2)],
            [zeros(1, num_columns), ones(1, num_rows), zeros(1, 2)],
        ]
    )
    factors = jax.scipy.linalg.lu_factor(matrix)

    def solve(a, b, c, d):
        rhs = jnp.concatenate([a * column_scale, b * row_scale, jnp.stack([c, d])])
        x = jax.scipy.linalg.lu_solve(factors, rhs)
        return x[:num_columns], x[num_columns:-2], x[-2], x[-1]

    return solve


def longest_step(fraction: jax.typing.ArrayLike, *pairs: tuple[jax.Array, jax.Array]) -> jax.Array:
    """The longest step in [0, 1] that keeps every x of the pairs (x, dx) positive."""
    ratios = [
        jnp.min(jnp.where(dx < 0, -x / jnp.where(dx < 0, dx, -1), jnp.inf)) for x, dx in pairs
    ]
    return jnp.minimum(1, fraction * jnp.min(jnp.stack(ratios)))


def select(condition: jax.Array, new: Any, old: Any) -> Any:
    """A choice between two trees of arrays."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)

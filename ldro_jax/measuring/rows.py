"""Rows that belong to tasks: their losses, and gradients for weights chosen from these."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

# (params, rows, index of the microbatch) -> (losses [R], anything else).
RowLosses = Callable[[Any, Any, Any], tuple[jax.Array, Any]]


def forward(
    row_losses: RowLosses, params: Any, rows: Any, microbatches: int = 1
) -> tuple[jax.Array, Any, Callable[[jax.Array], Any]]:
    """Losses of all rows, and the backward pass for coefficients that depend on them.

    With several microbatches it costs a second forward pass, and only the activations of one of
    them are held at a time. Every device keeps its rows: microbatch m is made of the rows m, m +
    microbatches, and so on.

    Args:
      row_losses: ``(params, rows, microbatch) -> (losses [R], auxiliary)``; called with R rows at a
        time and the index of the microbatch.
      params: of the model.
      rows: arrays ``[B, ...]``.
      microbatches: in how many parts to take them; must divide B.

    Returns:
      The losses ``[B]``; the auxiliary output, stacked along a leading axis of microbatches; and
      ``(coefficients [B]) -> gradient`` of the sum of coefficients times losses.
    """
    if microbatches == 1:
        losses, pull, auxiliary = jax.vjp(lambda p: row_losses(p, rows, 0), params, has_aux=True)
        return losses, jax.tree.map(lambda x: jnp.asarray(x)[None], auxiliary), lambda c: pull(c)[0]

    def parts(array):
        return jnp.moveaxis(array.reshape(-1, microbatches, *array.shape[1:]), 1, 0)

    divided = (jax.tree.map(parts, rows), jnp.arange(microbatches))
    losses, auxiliary = jax.lax.map(lambda part: row_losses(params, *part), divided)

    def pullback(coefficients):
        def add(total, part):
            taken, cotangent = part
            _, pull, _ = jax.vjp(lambda p: row_losses(p, *taken), params, has_aux=True)
            return jax.tree.map(jnp.add, total, pull(cotangent)[0]), None

        zeros = jax.tree.map(jnp.zeros_like, params)
        return jax.lax.scan(add, zeros, (divided, parts(coefficients)))[0]

    return jnp.moveaxis(losses, 0, 1).reshape(-1), auxiliary, pullback


def by_task(
    rows: Any, num_tasks: int, *, limit: int | None = None, multiple: int = 1, where: Any = None
) -> tuple[Any, jax.Array]:
    """The same rows with a leading axis of tasks.

    Args:
      rows: arrays ``[B, ...]``.
      num_tasks: N.
      limit: take so many rows of each task.
      multiple: the number of rows of a task is filled up to a multiple of this, so that they can be
        split over devices.
      where: where the rows of each task are, int32 ``[N, E]``, filled up with −1; by default row r
        belongs to task ``r mod N``.

    Returns:
      Arrays ``[N, E, ...]``, and bool ``[N, E]``: which rows are not there to fill up.
    """
    size = jax.tree.leaves(rows)[0].shape[0]
    if where is None:
        where = jnp.arange(size, dtype=jnp.int32).reshape(-1, num_tasks).T
    where = where[:, :limit]
    where = jnp.pad(where, ((0, 0), (0, -where.shape[1] % multiple)), constant_values=-1)
    return jax.tree.map(lambda array: array[jnp.maximum(where, 0)], rows), where >= 0

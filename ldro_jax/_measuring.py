"""The interaction matrix of a step: measured when it is due, and which tasks it couldn't be for."""

import functools
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ldro_jax.interaction import base as interaction_base


def measure(
    matrix_fn: Callable[[], jax.Array] | None,
    last: jax.Array,
    known: jax.Array,
    due: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """The interaction matrix of this step, and which tasks could not be measured.

    Args:
      matrix_fn: measures it, ``() -> [N, N]``, or ``None`` if there is no way to.
      last: the matrix so far, ``[N, N]``.
      known: the tasks that it can be measured for, bool ``[N]``.
      due: whether to measure it, bool; ``None`` in every step.

    Returns:
      The matrix ``[N, N]``, and bool ``[N]``; see
      :func:`~ldro_jax.interaction.base.refreshed`.

    Raises:
      ValueError: if there is no way to measure the matrix, or it has another shape.
    """
    if matrix_fn is None:
        raise ValueError(
            "This weighting uses the interaction matrix, but the losses came with a pullback and "
            "no interaction_fn. Pass interaction_fn, a function without arguments that returns the "
            f"Gram matrix of the task gradients, {list(last.shape)}."
        )

    def fresh():
        matrix = jnp.asarray(matrix_fn())
        if matrix.shape != last.shape:
            raise ValueError(
                f"The interaction matrix must have shape {last.shape}, but it has {matrix.shape}."
            )
        return interaction_base.refreshed(last, matrix.astype(last.dtype), known)

    return _if_due(due, fresh, (last, jnp.zeros_like(known)))


def all_underflow(
    gradient: Any, squares: jax.Array, known: jax.Array, due: jax.Array | None
) -> jax.Array:
    """Whether all squared norms of this step are zero though its gradient is not.

    The matrix alone can't tell such a step from one in which all tasks have converged.

    Args:
      gradient: of the weighted loss.
      squares: the squared norms of the task gradients, ``[N]``.
      known: the tasks that they were measured for, bool ``[N]``.
      due: whether they were measured in this step, bool; ``None`` if in every step.

    Returns:
      Bool, a scalar.
    """
    no = jnp.zeros([], bool)

    def any_nonzero():
        leaves = [(x != 0).any() for x in jax.tree.leaves(gradient)]
        return functools.reduce(operator.or_, leaves, no)

    suspect = ~(known & (squares != 0)).any()
    # Nested, since under vmap a condition that differs between the runs costs as if always true.
    return _if_due(due, lambda: jax.lax.cond(suspect, any_nonzero, lambda: no), no)


def _if_due(due, true_fun, otherwise):
    return true_fun() if due is None else jax.lax.cond(due, true_fun, lambda: otherwise)

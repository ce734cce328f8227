"""The interaction matrix of a step: measured when it is due, and which tasks it couldn't be for."""

import functools
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import core

from ldro_jax.interaction import base as interaction_base
from ldro_jax.runtime import checks


def measure(
    matrix_fn: Callable[[], jax.Array | interaction_base.Measured] | None,
    last: interaction_base.Measured,
    present: jax.Array,
    due: jax.Array | None,
    *,
    from_batch: bool = True,
    needs_noise: bool = False,
) -> tuple[interaction_base.Measured, jax.Array, jax.Array]:
    """The interaction matrix of this step, and which tasks could not be measured.

    Args:
      matrix_fn: measures it, ``() -> [N, N]`` or with the noise, or ``None`` if there is no way to.
      last: what was measured last.
      present: the tasks that are in the batch, bool ``[N]``.
      due: whether to measure it, bool; ``None`` in every step.
      from_batch: whether it is measured on that batch. Otherwise it may be measured for absent
        tasks too: those whose squared length isn't exactly zero.
      needs_noise: whether the weighting uses the noise.

    Returns:
      The matrix and the noise, which stays as it is where the strategy doesn't measure it; which
      tasks could not be measured, bool ``[N]``, see
      :func:`~ldro_jax.interaction.base.refreshed`; and which were, bool ``[N]``.

    Raises:
      ValueError: if there is no way to measure the matrix or the noise that is needed, or one of
        them has another shape.
    """
    if matrix_fn is None:
        raise ValueError(
            "This weighting uses the interaction matrix, but the losses came with a pullback and "
            "no interaction_fn. Pass interaction_fn, a function without arguments that returns the "
            f"Gram matrix of the task gradients, {list(last.matrix.shape)}."
        )

    def fresh():
        found = matrix_fn()
        plain = not isinstance(found, interaction_base.Measured)
        if plain and needs_noise:
            raise ValueError(
                "This weighting uses the variance of the gradients, which was not measured. Use "
                "interaction='split' with loss_fn and batch, or return an interaction.Measured "
                "from interaction_fn."
            )
        found = (found, last.noise) if plain else found
        try:
            found = interaction_base.Measured(*map(jnp.asarray, found))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"interaction_fn must return the Gram matrix, {list(last.matrix.shape)}, but it "
                f"returned {checks.shown(found[0])}."
            ) from error
        for what, new, old in zip(("matrix", "noise"), found, last, strict=True):
            if new.shape != old.shape:
                raise ValueError(
                    f"The interaction {what} must have shape {old.shape}, but it has {new.shape}."
                )
        matrix, noise = (x.astype(last.noise.dtype) for x in found)
        # Without its noise a square may vanish.
        squares = jnp.diagonal(matrix) + (0 if plain else noise)
        known = present if from_batch else present | (squares != 0)
        matrix, unmeasured = interaction_base.refreshed(last.matrix, matrix, known, squares)
        taken = known & ~unmeasured & jnp.isfinite(noise)
        measured = interaction_base.Measured(matrix, jnp.where(taken, noise, last.noise))
        return measured, unmeasured, known & ~unmeasured

    none = jnp.zeros_like(present)
    return _if_due(due, fresh, (last, none, none))


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
    return _if_due(due, lambda: _if_due(suspect, any_nonzero, no), no)


def _if_due(due, true_fun, otherwise):
    if due is None:
        return true_fun()
    if not isinstance(due, core.Tracer):
        # Outside of a jit, lax.cond would compile new functions in every step.
        return true_fun() if due else otherwise
    return jax.lax.cond(due, true_fun, lambda: otherwise)

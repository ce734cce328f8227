"""The interaction matrix of a step: measured when it is due, and which tasks it couldn't be for."""

import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import core

from ldro_jax.interaction import base as interaction_base
from ldro_jax.runtime import checks


class Matrix(NamedTuple):
    """The interaction as it is known after a step.

    Attributes:
      values: the matrix and the noise.
      ever: the tasks whose interactions have been measured, bool ``[N]``.
      unmeasured: those whose interactions should have been in this step, and could not be, bool
        ``[N]``; see :func:`~ldro_jax.interaction.base.refreshed`.
    """

    values: interaction_base.Measured
    ever: jax.Array
    unmeasured: jax.Array

    @classmethod
    def of(cls, state: Any) -> "Matrix":
        """That of a :class:`~ldro_jax.transform.WeightedState`, before its next step."""
        values = interaction_base.Measured(state.interaction, state.noise)
        return cls(values, state.measured, jnp.zeros_like(state.measured))


def measure(
    matrix_fn: Callable[[], jax.Array | interaction_base.Measured] | None,
    last: Matrix,
    present: jax.Array,
    due: jax.Array | None,
    *,
    from_batch: bool = True,
    needs_noise: bool = False,
) -> Matrix:
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
      The :class:`Matrix`; its noise stays as it is where the strategy doesn't measure it.

    Raises:
      ValueError: if there is no way to measure the matrix or the noise that is needed, or one of
        them has another shape.
    """
    old = last.values
    if matrix_fn is None:
        raise ValueError(
            "This weighting uses the interaction matrix, but the losses came with a pullback and "
            "no interaction_fn. Pass interaction_fn, a function without arguments that returns the "
            f"Gram matrix of the task gradients, {list(old.matrix.shape)}."
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
        found = (found, old.noise) if plain else found
        try:
            found = interaction_base.Measured(*map(jnp.asarray, found))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"interaction_fn must return the Gram matrix, {list(old.matrix.shape)}, but it "
                f"returned {checks.shown(found[0])}."
            ) from error
        for what, new, like in zip(("matrix", "noise"), found, old, strict=True):
            if new.shape != like.shape:
                raise ValueError(
                    f"The interaction {what} must have shape {like.shape}, but it has {new.shape}."
                )
        matrix, noise = (x.astype(old.noise.dtype) for x in found)
        # Without its noise a square may vanish.
        squares = jnp.diagonal(matrix) + (0 if plain else noise)
        known = present if from_batch else present | (squares != 0)
        matrix, unmeasured = interaction_base.refreshed(old.matrix, matrix, known, squares)
        taken = known & ~unmeasured & jnp.isfinite(noise)
        measured = interaction_base.Measured(matrix, jnp.where(taken, noise, old.noise))
        return measured, unmeasured, known & ~unmeasured

    none = jnp.zeros_like(present)
    values, unmeasured, taken = _if_due(due, fresh, (old, none, none))
    return Matrix(values, last.ever | taken, unmeasured)


def unless_underflow(
    new: Matrix, last: Matrix, gradient: Any, present: jax.Array, due: jax.Array | None, good: Any
) -> Matrix:
    """Keeps the last matrix if all squared norms are zero though the gradient is not.

    The matrix alone can't tell such a step from one in which all tasks have converged.

    Args:
      new: of this step.
      last: of the step before.
      gradient: of the weighted loss.
      present: the tasks that were measured, bool ``[N]``.
      due: whether they were measured in this step, bool; ``None`` if in every step.
      good: whether all losses of this step are finite, bool.
    """
    no = jnp.zeros([], bool)

    def any_nonzero():
        leaves = [(x != 0).any() for x in jax.tree.leaves(gradient)]
        return functools.reduce(operator.or_, leaves, no)

    squares = jnp.diagonal(new.values.matrix) + new.values.noise
    suspect = ~(present & (squares != 0)).any()
    # Nested, since under vmap a condition that differs between the runs costs as if always true.
    lost = _if_due(due, lambda: _if_due(suspect, any_nonzero, no), no)
    lost &= good & ~new.unmeasured.any()
    values, ever = jax.tree.map(
        functools.partial(jnp.where, lost), (last.values, last.ever), (new.values, new.ever)
    )
    return Matrix(values, ever, new.unmeasured | (lost & present))


def _if_due(due, true_fun, otherwise):
    if due is None:
        return true_fun()
    if not isinstance(due, core.Tracer):
        # Outside of a jit, lax.cond would compile new functions in every step.
        return true_fun() if due else otherwise
    return jax.lax.cond(due, true_fun, lambda: otherwise)

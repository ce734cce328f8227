"""The interaction matrix of a step: measured when it is due, as far as it can be."""

import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ldro_jax.interaction import base as interaction_base
from ldro_jax.interaction.products import Products
from ldro_jax.runtime import checks, conditions


class Matrix(NamedTuple):
    """The interaction as it is known after a step.

    Attributes:
      values: the matrix and the noise.
      ever: the tasks whose interactions have been measured in some step, bool ``[N]``.
      unmeasured: those whose interactions were due in this step and could not be measured, bool
        ``[N]``; see :func:`~ldro_jax.interaction.base.refreshed`.
      fresh: those whose interactions were measured in this step, bool ``[N]``; ``None`` of a matrix
        of the step before.
    """

    values: interaction_base.Measured
    ever: jax.Array
    unmeasured: jax.Array
    fresh: jax.Array | None = None

    @classmethod
    def of(cls, state: Any) -> "Matrix":
        """That of a :class:`~ldro_jax.transform.WeightedState`, before its next step."""
        values = interaction_base.Measured(state.interaction, state.noise)
        return cls(values, state.measured, jnp.zeros_like(state.measured))


def if_due(
    matrix_fn: Callable[[], jax.Array | interaction_base.Measured] | None,
    last: Matrix,
    present: jax.Array,
    due: jax.Array | None,
    *,
    from_batch: bool = True,
    needs_noise: bool = False,
) -> Matrix:
    """The interaction matrix of this step, measured if that is due.

    Args:
      matrix_fn: measures it, ``() -> [N, N]`` or with the noise, or ``None`` if there is no way to.
      last: what was measured last. Its noise stays where the strategy doesn't measure it.
      present: the tasks that are in the batch, bool ``[N]``.
      due: whether to measure it, bool; ``None`` in every step.
      from_batch: whether it is measured on that batch. Otherwise it may be measured for absent
        tasks too: those whose squared length isn't exactly zero.
      needs_noise: whether the weighting uses the noise.

    Raises:
      ValueError: if there is no way to measure the matrix or the noise that is needed, or one of
        them has another shape.
    """
    old = last.values
    measure = asked(matrix_fn, len(old.matrix))

    def fresh():
        given = measure()
        if isinstance(given, Products):
            raise ValueError(
                "interaction_fn gave products of the interaction, but this weighting was built to "
                "use the matrix. Build it with interaction='products' as well."
            )
        has_noise = isinstance(given, interaction_base.Measured)
        if needs_noise and not has_noise:
            raise ValueError(
                "This weighting uses the variance of the gradients, which was not measured. Use "
                "interaction='split' with loss_fn and batch, with a losses_fn that returns "
                "ldro.Rows, or with the gradients and losses of two halves of each task, one after "
                "the other [2N, ...]; or return an interaction.Measured from interaction_fn."
            )
        matrix, noise = _arrays(given if has_noise else (given, old.noise), old)
        # Without its noise a square may vanish.
        squares = jnp.diagonal(matrix) + (noise if has_noise else 0)
        known = present if from_batch else present | (squares != 0)
        matrix, unmeasured = interaction_base.refreshed(old.matrix, matrix, known, squares)
        measured = known & ~unmeasured
        noise = jnp.where(measured & jnp.isfinite(noise), noise, old.noise)
        return interaction_base.Measured(matrix, noise), unmeasured, measured

    none = jnp.zeros_like(present)
    values, unmeasured, measured = _if(due, fresh, (old, none, none))
    return Matrix(values, last.ever | measured, unmeasured, measured)


def asked(matrix_fn: Callable[[], Any] | None, num_tasks: int) -> Callable[[], Any]:
    """What measures the interaction; raises ``ValueError`` if there is nothing that does."""
    if matrix_fn is None:
        raise ValueError(
            "This weighting uses the interaction matrix, but the losses came with a pullback and "
            "no interaction_fn. Pass interaction_fn, a function without arguments that returns the "
            f"Gram matrix of the task gradients, {[num_tasks, num_tasks]}, or an "
            "interaction.Measured if the weighting uses the variance of the gradients."
        )
    return matrix_fn


def _arrays(given: tuple, old: interaction_base.Measured) -> list[jax.Array]:
    """The matrix and the noise as arrays like the old ones."""
    try:
        arrays = [jnp.asarray(each) for each in given]
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"interaction_fn must return the Gram matrix, {list(old.matrix.shape)}, but it "
            f"returned {checks.shown(given[0])}."
        ) from error
    for what, new, like in zip(("matrix", "noise"), arrays, old, strict=True):
        if new.shape != like.shape:
            raise ValueError(
                f"The interaction {what} must have shape {like.shape}, but it has {new.shape}."
            )
    return [each.astype(old.noise.dtype) for each in arrays]


def unless_underflow(
    new: Matrix, last: Matrix, gradient: Any, present: jax.Array, due: jax.Array | None, good: Any
) -> Matrix:
    """Keeps the last matrix if all squared norms are zero though the gradient is not.

    The matrix alone can't tell such a step from one in which all tasks have converged.

    Args:
      new: of this step, measured if ``due``, which is ``None`` in every step.
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
    lost = _if(due, lambda: _if(suspect, any_nonzero, no), no)
    lost &= good & ~new.unmeasured.any()
    values, ever = jax.tree.map(
        functools.partial(jnp.where, lost), (last.values, last.ever), (new.values, new.ever)
    )
    return Matrix(values, ever, new.unmeasured | (lost & present), new.fresh)


def _if(due: jax.Array | None, function: Callable[[], Any], otherwise: Any) -> Any:
    """What a function gives if that is due, always where ``due`` is ``None``."""
    return function() if due is None else conditions.cond(due, function, lambda: otherwise)

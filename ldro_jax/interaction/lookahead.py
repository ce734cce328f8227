"""What a step for one task does to the loss of another, by taking it.

To first order a step ``−η ∇ℓ_j`` makes loss i fall by ``η A_ij``. Here it is taken, and the losses
are measured after it: ``(ℓ_i(θ) − ℓ_i(θ − η ∇ℓ_j)) / η``, which is ``A_ij`` for a small η. That
takes a pass forwards over all rows for each task, and a backward pass over its own rows, or over
all where a row has labels of several tasks. The matrix isn't symmetric.

References:
  Fifty et al., *Efficiently Identifying Task Groupings for Multi-Task Learning*, NeurIPS 2021.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ldro_jax.interaction import base
from ldro_jax.runtime import checks

Losses = Callable[[Any], jax.Array]


def lookahead(step_size: float) -> base.Interaction:
    """Measures how far the losses fall by a step for each task, divided by the step size.

    Of what an optimizer does there is the step size in it, and with a preconditioner the length of
    its steps in each direction, but neither momentum nor weight decay. For those see
    :func:`ldro_jax.grouping.lookahead`.

    Args:
      step_size: η, as the optimizer's learning rate.

    Raises:
      ValueError: if it isn't a positive number.
    """
    checks.number("step_size", step_size, "(0, inf)")

    def moved(params, gradient):
        return jax.tree.map(lambda p, g: p - (step_size * g).astype(p.dtype), params, gradient)

    def of_losses(losses_fn, params):
        losses, after = losses_after(losses_fn, params, functools.partial(moved, params))
        return (losses[:, None] - after) / step_size

    def matrix(loss_fn, params, batch):
        def losses_fn(params):
            losses = jax.vmap(loss_fn, in_axes=(None, 0))(params, batch)
            return losses.astype(base.statistics_dtype(params))

        def after(examples):
            return losses_fn(moved(params, jax.grad(loss_fn)(params, examples)))

        # One after another: the parameters of all steps together would be N models.
        return (losses_fn(params)[:, None] - jax.lax.map(after, batch).T) / step_size

    return base.Interaction(matrix, of_losses=of_losses)


def losses_after(
    losses_fn: Losses, params: Any, step: Callable[[Any], Any]
) -> tuple[jax.Array, jax.Array]:
    """The losses before and after a step for each task.

    Args:
      losses_fn: ``params -> losses [N]``.
      params: where the steps begin.
      step: from the gradient of a task's loss to the parameters after the step.

    Returns:
      The losses ``[N]``, and ``[N, N]``, the loss of task i after the step for task j in row i and
      column j. At least float32.
    """
    dtype = base.statistics_dtype(params)
    losses, pullback = jax.vjp(losses_fn, params)

    def after(weights):
        return losses_fn(step(pullback(weights)[0])).astype(dtype)

    moved = jax.lax.map(after, jnp.eye(losses.size, dtype=losses.dtype))
    return losses.astype(dtype), moved.T

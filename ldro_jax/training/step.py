"""One training step on rows of any tasks, as a pure function."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ldro_jax import measuring, transform
from ldro_jax.measuring import Batch, Plan
from ldro_jax.measuring import trained as trained_lib

# (params, rows [R, ...]) -> [R].
RowLosses = Callable[[Any, Any], jax.Array]
MakeOptimizer = Callable[[Mapping[str, Any]], optax.GradientTransformationExtraArgs]


class TrainState(NamedTuple):
    """All that training carries from one step to the next.

    Attributes:
      step: number of steps taken, int32.
      params: the model's parameters.
      opt_state: the optimizer's state, with the task weights in it.
    """

    step: jax.Array
    params: Any
    opt_state: Any


def train_step(
    row_losses: RowLosses,
    make_tx: MakeOptimizer,
    plan: Plan,
    *,
    geometry: Callable[[Any], Any] | None = None,
    row_excess: Callable[[Any, Any, Any], jax.Array] | None = None,
    trained: Any = None,
) -> Callable[[Mapping[str, Any], TrainState, Batch], tuple[TrainState, jax.Array]]:
    """Makes the function that takes one step, to be jitted.

    What is trained on is the weighted sum of the tasks' mean losses, however rows are drawn: see
    :func:`ldro_jax.measuring.measure.measure`. The losses that the weights are chosen from are the
    means over the rows in the batch.

    Args:
      row_losses: ``(params, rows [R, ...]) -> losses [R]``.
      make_tx: from rates to an optimizer with a weighting in its chain.
      plan: how to measure losses, gradient and interaction.
      geometry: ``optimizer state -> preconditioner`` that the interaction is measured with, if any.
      row_excess: ``(params, reference, rows [R, ...]) -> excess [R]``, by how much each row is
        worse than a reference, if the weighting asks for it.
      trained: which parameters the optimizer moves, a tree of bools; ``None`` if all. The others
        are not differentiated.

    Returns:
      ``(rates, state, batch) -> (state, losses [N])``; NaN for a task that had no row so far.
    """

    def step(rates, state, batch):
        params = state.params
        preconditioner = None if geometry is None else geometry(state.opt_state)

        def losses_of(params, rows):
            excess = row_excess and row_excess(params, batch.reference, rows)
            return measuring.RowLosses(row_losses(params, rows), excess=excess)

        if trained is not None:
            params = trained_lib.hide(params, trained)
            preconditioner = trained_lib.hide(preconditioner, trained)
            losses_of = trained_lib.of_part(losses_of, state.params)
        measured = measuring.measure(plan, losses_of, params, batch, preconditioner)
        updates, opt_state = make_tx(rates).update(
            measured.gradients, state.opt_state, state.params, **measured.statistics
        )
        params = optax.apply_updates(state.params, updates)
        found = transform.find_state(opt_state)
        losses = jnp.where(found.seen, found.losses, jnp.nan)
        return TrainState(state.step + 1, params, opt_state), losses

    return step

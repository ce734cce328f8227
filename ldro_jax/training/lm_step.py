"""One training step of a language model on many languages, as a pure function."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ldro_jax import transform
from ldro_jax.interaction import base as interaction_base
from ldro_jax.training import rows as rows_lib
from ldro_jax.training.step import TrainState, task_means

# (params, tokens [R, L]) -> mean loss of the tokens of each row [R].
RowLosses = Callable[[Any, jax.Array], jax.Array]


class Batch(NamedTuple):
    """Rows to train on.

    Attributes:
      tokens: int32 ``[B, L]``.
      tasks: the task of each row, int32 ``[B]``.
      probabilities: with which the task of a row was drawn, ``[N]``.
      interaction_tokens: rows to measure the interaction on, int32 ``[M, L]``, row r of task ``r
        mod N``; or ``None`` if the rows of ``tokens`` serve for it.
      by_task: where the rows of each task are among them, int32 ``[N, E]``, filled up with −1; or
        ``None`` if they have as many rows of every task, row r of task ``r mod N``.
    """

    tokens: jax.Array
    tasks: jax.Array
    probabilities: jax.Array
    interaction_tokens: jax.Array | None = None
    by_task: jax.Array | None = None


def train_step(
    row_losses: RowLosses,
    make_tx: Callable[[Mapping[str, Any]], optax.GradientTransformationExtraArgs],
    num_tasks: int,
    strategy: interaction_base.Interaction,
    *,
    fused: bool = False,
    microbatches: int = 1,
    interaction_rows: int | None = None,
    multiple: int = 1,
) -> Callable[[Mapping[str, Any], TrainState, Batch], tuple[TrainState, jax.Array]]:
    """Makes the function that takes one step, to be jitted.

    The gradient is ``Σ_r w_t(r) / (B q_t(r)) ∇loss_r`` over the rows r, where t(r) is the task of
    the row and q the probabilities that tasks were drawn with. With the same number of rows of
    every task this is the weighted sum of the mean losses; with any other q it has the same
    expectation.

    Args:
      row_losses: ``(params, tokens [R, L]) -> losses [R]``.
      make_tx: from rates to an optimizer with a weighting in its chain.
      num_tasks: N.
      strategy: how to measure the interaction.
      fused: whether the weighting measures the interaction in every step, so that the gradients of
        the tasks serve for the training gradient as well, if the strategy holds them. Needs
        balanced rows and one microbatch.
      microbatches: in how many parts to take a batch. The weights are chosen from the losses of all
        of them, at the price of a second forward pass.
      interaction_rows: measure the interaction on so many rows of each task; by default on all.
      multiple: number of rows of a task is filled up to a multiple of this, so that they can be
        split over devices.

    Returns:
      ``(rates, state, batch) -> (state, losses [N])``.
    """

    def rows_by_task(batch):
        tokens = batch.tokens if batch.interaction_tokens is None else batch.interaction_tokens
        taken, is_real = rows_lib.by_task(
            tokens,
            num_tasks,
            limit=None if fused else interaction_rows,
            multiple=multiple,
            where=batch.by_task,
        )
        return {"tokens": taken, "is_real": is_real}

    def task_loss(params, rows):
        losses = row_losses(params, rows["tokens"])
        total = jnp.sum(jnp.where(rows["is_real"], losses, 0))
        return total / jnp.sum(rows["is_real"], dtype=losses.dtype)

    def coefficients(weights, batch):
        share = batch.probabilities.astype(weights.dtype)
        return (weights / share)[batch.tasks] / batch.tasks.size

    def statistics(params, batch) -> tuple[Any, dict[str, Any]]:
        """What the update of the weighting takes: ``updates``, and keyword arguments."""
        if fused and strategy.gradients is not None:
            losses, gradients = strategy.gradients(task_loss, params, rows_by_task(batch))
            return gradients, {"losses": losses}
        if fused:
            return None, {"loss_fn": task_loss, "batch": rows_by_task(batch)}
        losses, _, pullback = rows_lib.forward(
            lambda p, tokens, _: (row_losses(p, tokens), ()), params, batch.tokens, microbatches
        )
        means, present = task_means(losses, batch.tasks, num_tasks)
        return None, {
            "losses": means,
            "present": present,
            "pullback": lambda weights: pullback(coefficients(weights, batch)),
            "interaction_fn": lambda: strategy.matrix(task_loss, params, rows_by_task(batch)),
        }

    def step(rates, state, batch):
        gradients, measured = statistics(state.params, batch)
        updates, opt_state = make_tx(rates).update(
            gradients, state.opt_state, state.params, **measured
        )
        params = optax.apply_updates(state.params, updates)
        losses = transform.find_state(opt_state).losses
        return TrainState(state.step + 1, params, opt_state), losses

    return step

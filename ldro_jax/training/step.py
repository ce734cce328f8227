"""One training step on rows of any tasks, as a pure function."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ldro_jax import transform
from ldro_jax.interaction import base as interaction_base
from ldro_jax.interaction import geometry as geometry_lib
from ldro_jax.measuring import rows as rows_lib
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


class Batch(NamedTuple):
    """Rows to train on.

    Attributes:
      rows: arrays ``[B, ...]``.
      tasks: the task of each row, int32 ``[B]``.
      expected: how many rows of each task a batch has, ``[N]``: as many as this one where no chance
        decides that, and as many as random batches have on average.
      measured: rows to measure the interaction on, arrays ``[M, ...]``, row r of task ``r mod N``,
        or a function without arguments that makes them when they are needed; ``None`` if those of
        ``rows`` serve for it.
      by_task: where the rows of each task are among ``rows``, if these serve for it, int32
        ``[N, E]``, filled up with −1; ``None`` if row r is of task ``r mod N``.
      reference: parameters of the reference model, if the weighting compares rows with one.
    """

    rows: Any
    tasks: jax.Array
    expected: jax.Array
    measured: Any = None
    by_task: jax.Array | None = None
    reference: Any = None


def task_means(values: jax.Array, task: jax.Array, num_tasks: int) -> tuple[jax.Array, jax.Array]:
    """Mean over the rows of each task.

    Args:
      values: ``[B]``.
      task: the task of each, int32 ``[B]``.
      num_tasks: N.

    Returns:
      The means ``[N]``, zero for a task without rows, and which tasks have some, bool ``[N]``.
    """
    belongs = task[None, :] == jnp.arange(num_tasks, dtype=jnp.int32)[:, None]
    counts = belongs.sum(axis=1)
    sums = jnp.sum(jnp.where(belongs, values[None, :], 0), axis=1)
    means = sums / jnp.maximum(counts, 1).astype(sums.dtype)
    return means, counts > 0


def train_step(
    row_losses: RowLosses,
    make_tx: MakeOptimizer,
    num_tasks: int,
    strategy: interaction_base.Interaction,
    *,
    fused: bool = False,
    lagged: bool = False,
    microbatches: int = 1,
    interaction_rows: int | None = None,
    multiple: int = 1,
    geometry: Callable[[Any], Any] | None = None,
    row_excess: Callable[[Any, Any, Any], jax.Array] | None = None,
    trained: Any = None,
) -> Callable[[Mapping[str, Any], TrainState, Batch], tuple[TrainState, jax.Array]]:
    """Makes the function that takes one step, to be jitted.

    The gradient is ``Σ_r w_t(r) / n_t(r) ∇loss_r`` over the rows r, where t(r) is the task of the
    row and n the numbers of rows expected. Its expectation over the draws is ``Σ_i w_i ∇ℓ_i``, with
    ℓ_i the mean over all rows of task i, for any batch size: a row that comes with probability p
    counts ``1 / p``. With the numbers of a random batch in their place, a task would count for
    less the more batches have no row of it. The price is variance: a task with one row in 50 has
    one in every 13th batch of four, which then counts 12.5 times the weight of the task.

    The losses that the weights are chosen from are the means over the rows in the batch.

    Args:
      row_losses: ``(params, rows [R, ...]) -> losses [R]``.
      make_tx: from rates to an optimizer with a weighting in its chain.
      num_tasks: N.
      strategy: how to measure the interaction.
      fused: whether the weighting measures the interaction in every step, so that the gradients of
        the tasks serve for the training gradient as well, if the strategy holds them. Needs rows of
        every task and one microbatch.
      lagged: whether it takes the interaction of the step before, so that the gradients of the
        tasks needn't be held until the weights are known, if the strategy has such a way.
      microbatches: in how many parts to take a batch. The weights are chosen from the losses of all
        of them, at the price of a second forward pass.
      interaction_rows: measure the interaction on so many rows of each task; by default on all.
      geometry: ``optimizer state -> preconditioner`` that the interaction is measured with, if any.
      row_excess: ``(params, reference, rows [R, ...]) -> excess [R]``, by how much each row is
        worse than a reference, if the weighting asks for it.
      multiple: number of rows of a task is filled up to a multiple of this, so that they can be
        split over devices.
      trained: which parameters the optimizer moves, a tree of bools; ``None`` if all. The others
        are not differentiated.

    Returns:
      ``(rates, state, batch) -> (state, losses [N])``; NaN for a task that had no row so far.
    """
    lagged = fused and lagged and strategy.pullback is not None and geometry is None
    fused = lagged or (fused and strategy.gradients is not None)
    multiple = math.lcm(multiple, strategy.multiple)

    def rows_by_task(batch):
        apart = batch.measured() if callable(batch.measured) else batch.measured
        taken, is_real = rows_lib.by_task(
            batch.rows if apart is None else apart,
            num_tasks,
            limit=None if fused else interaction_rows,
            multiple=multiple,
            where=batch.by_task if apart is None else None,
        )
        return {"rows": taken, "is_real": is_real}

    def mean_excess(excess, batch):
        if row_excess is None:
            return {}
        # Microbatch m holds the rows m, m + microbatches, and so on.
        return {"excess": task_means(excess.T.reshape(-1), batch.tasks, num_tasks)[0]}

    def statistics(whole, opt_state, batch) -> tuple[Any, dict[str, Any]]:
        """What the update of the weighting takes: ``updates``, and keyword arguments."""
        preconditioner = None if geometry is None else geometry(opt_state)
        params, losses_of, excess_of = whole, row_losses, row_excess
        if trained is not None:
            params = trained_lib.hide(whole, trained)
            losses_of, excess_of = (trained_lib.of_part(f, whole) for f in (row_losses, row_excess))
            preconditioner = trained_lib.hide(preconditioner, trained)

        def task_loss(params, task_rows):
            losses = losses_of(params, task_rows["rows"])
            total = jnp.sum(jnp.where(task_rows["is_real"], losses, 0))
            return total / jnp.sum(task_rows["is_real"], dtype=losses.dtype)

        if fused:
            measured = {"preconditioner": preconditioner}
            if excess_of is not None:
                excess = excess_of(params, batch.reference, batch.rows)
                measured |= mean_excess(excess[None], batch)
            if lagged:
                assert strategy.pullback is not None
                losses, pull = strategy.pullback(task_loss, params, rows_by_task(batch))
                return None, {"losses": losses, "pullback": pull, **measured}
            assert strategy.gradients is not None
            losses, gradients = strategy.gradients(task_loss, params, rows_by_task(batch))
            return gradients, {"losses": losses, **measured}

        def losses_and_excess(params, rows, _):
            excess = () if excess_of is None else excess_of(params, batch.reference, rows)
            return losses_of(params, rows), excess

        losses, excess, pullback = rows_lib.forward(
            losses_and_excess, params, batch.rows, microbatches
        )
        means, present = task_means(losses, batch.tasks, num_tasks)

        def gradient(weights):
            share = (weights / batch.expected.astype(weights.dtype))[batch.tasks]
            return pullback(share.astype(losses.dtype))

        measuring = geometry_lib.preconditioned(strategy, preconditioner)

        def interaction():
            taken = rows_by_task(batch)
            found = measuring.matrix(task_loss, params, taken)
            if not isinstance(found, interaction_base.Measured):
                return found
            # The noise is that of the batch's gradients, whatever it was measured on.
            counts = taken["is_real"].sum(axis=1)
            share = counts.astype(found.noise.dtype) / batch.expected.astype(found.noise.dtype)
            return found._replace(noise=found.noise * share)

        return None, {
            "losses": means,
            "present": present,
            "pullback": gradient,
            "interaction_fn": interaction,
            **mean_excess(excess, batch),
        }

    def step(rates, state, batch):
        gradients, measured = statistics(state.params, state.opt_state, batch)
        updates, opt_state = make_tx(rates).update(
            gradients, state.opt_state, state.params, **measured
        )
        params = optax.apply_updates(state.params, updates)
        found = transform.find_state(opt_state)
        losses = jnp.where(found.seen, found.losses, jnp.nan)
        return TrainState(state.step + 1, params, opt_state), losses

    return step

"""One training step, and a stretch of them as one compiled program. Pure functions."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ldro_jax import transform
from ldro_jax.tasks import base

ApplyFn = Callable[[Any, jax.Array], jax.Array]


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


def classification_loss(apply_fn: ApplyFn) -> Callable[[Any, dict[str, jax.Array]], jax.Array]:
    """Mean cross-entropy of one task.

    Args:
      apply_fn: ``(params, inputs [B, ...]) -> logits [B, classes]``.

    Returns:
      ``loss_fn(params, {"inputs": [B, ...], "labels": [B]}) -> scalar``.
    """

    def loss_fn(params, task_batch):
        logits = apply_fn(params, task_batch["inputs"])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, task_batch["labels"])
        return jnp.mean(losses)

    return loss_fn


def train_steps(
    loss_fn: Callable[[Any, Any], jax.Array],
    tx: optax.GradientTransformationExtraArgs,
    num_steps: int,
    batch_size: int,
    task_sizes: Any,
) -> Callable[[TrainState, base.Split, jax.Array], tuple[TrainState, jax.Array]]:
    """Makes the function that takes a stretch of training steps, to be jitted.

    Args:
      loss_fn: ``(params, task_batch) -> scalar``.
      tx: an optimizer with one of this library's weightings in its chain.
      num_steps: length of the stretch.
      batch_size: examples of each task in a batch.
      task_sizes: training examples of each task, a NumPy array ``[N]``.

    Returns:
      ``(state, train split, key) -> (state, losses [N])``, where the losses are means over the
      stretch.
    """

    def stretch(state, train, key):
        indices = base.batch_indices(key, state.step, num_steps, task_sizes, batch_size)

        def one_step(state, step_indices):
            batch = base.take(train, step_indices)
            updates, opt_state = tx.update(
                None,  # pyright: ignore[reportArgumentType]
                state.opt_state,
                state.params,
                loss_fn=loss_fn,
                batch=batch,
            )
            params = optax.apply_updates(state.params, updates)
            losses = transform.find_state(opt_state).losses
            return TrainState(state.step + 1, params, opt_state), losses

        state, losses = jax.lax.scan(one_step, state, indices)
        return state, losses.mean(axis=0)

    return stretch

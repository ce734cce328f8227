"""One training step, and a stretch of them as one compiled program. Pure functions."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ldro_jax import checks, interaction, transform
from ldro_jax.tasks import base, sampling
from ldro_jax.training.method import Method

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


class Batches(NamedTuple):
    """How batches are drawn.

    Attributes:
      sampler: a key of :data:`ldro_jax.tasks.sampling.SAMPLERS`.
      batch_size: examples of all tasks in a batch.
      sizes: training examples of each task, a NumPy array ``[N]``.
    """

    sampler: str
    batch_size: int
    sizes: np.ndarray

    def check(self) -> None:
        """Raises ``ValueError`` if no such batches can be drawn."""
        checks.one_of("sampler", self.sampler, sorted(sampling.SAMPLERS))
        checks.integer("batch_size", self.batch_size)
        jax.eval_shape(lambda: self.draw(jax.random.key(0), jnp.int32(0), 1))

    def draw(self, key: jax.Array, start: jax.Array, num_steps: int) -> sampling.Draw:
        """Draws a stretch of batches to train on.

        Args:
          key: of the run.
          start: the first step.
          num_steps: length of the stretch.

        Returns:
          The draw, ``[step, B]``.
        """
        sampler = sampling.SAMPLERS[self.sampler]
        return sampler(key, start, num_steps, self.sizes, self.batch_size)

    def draw_for_interaction(
        self, key: jax.Array, start: jax.Array, num_steps: int, drawn: sampling.Draw
    ) -> sampling.Draw:
        """Draws a stretch of batches to measure the interaction on.

        Args:
          key: of the run.
          start: the first step.
          num_steps: length of the stretch.
          drawn: what is trained on.

        Returns:
          The same, if it is balanced; otherwise other examples, the same number of each task.
        """
        if self.sampler == "balanced":
            return drawn
        size = max(self.batch_size, self.sizes.size)
        return sampling.balanced(jax.random.fold_in(key, 2), start, num_steps, self.sizes, size)

    @property
    def capacity(self) -> int:
        """The most examples that a task has in a balanced batch."""
        return -(-max(self.batch_size, self.sizes.size) // self.sizes.size)


def example_losses(apply_fn: ApplyFn, params: Any, batch: dict[str, jax.Array]) -> jax.Array:
    """Cross-entropy of each example.

    Args:
      apply_fn: ``(params, inputs [B, ...]) -> logits [B, classes]``.
      params: the model's parameters.
      batch: ``inputs [B, ...]`` and ``labels [B]``.

    Returns:
      ``[B]``.
    """
    logits = apply_fn(params, batch["inputs"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"])


def task_means(values: jax.Array, task: jax.Array, num_tasks: int) -> tuple[jax.Array, jax.Array]:
    """Mean over the examples of each task.

    Args:
      values: ``[B]``.
      task: the task of each, int32 ``[B]``.
      num_tasks: N.

    Returns:
      The means ``[N]``, zero for a task without examples, and which tasks have some, bool ``[N]``.
    """
    belongs = task[None, :] == jnp.arange(num_tasks, dtype=jnp.int32)[:, None]
    counts = belongs.sum(axis=1)
    sums = jnp.sum(jnp.where(belongs, values[None, :], 0), axis=1)
    means = sums / jnp.maximum(counts, 1).astype(sums.dtype)
    return means, counts > 0


def train_steps(
    apply_fn: ApplyFn,
    make_tx: Callable[[Any], optax.GradientTransformationExtraArgs],
    method: Method,
    num_steps: int,
    batches: Batches,
) -> Callable[[Any, TrainState, base.Split, jax.Array], tuple[TrainState, jax.Array]]:
    """Makes the function that takes a stretch of training steps, to be jitted.

    Args:
      apply_fn: ``(params, inputs [B, ...]) -> logits [B, classes]``.
      make_tx: from the method's rates to an optimizer with its weighting in the chain.
      method: what is trained.
      num_steps: length of the stretch.
      batches: how to draw them.

    Returns:
      ``(rates, state, train split, key) -> (state, losses [N])``, where the losses are means over
      the stretch.
    """
    num_tasks = batches.sizes.size
    strategy = interaction.get(method.interaction)
    fused = method.measures_every_step and batches.sampler == "balanced"

    def task_loss(params, task_batch):
        losses = example_losses(apply_fn, params, task_batch)
        filled = task_batch["filled"]
        return jnp.sum(jnp.where(filled, losses, 0)) / jnp.sum(filled, dtype=losses.dtype)

    def stretch(rates, state, train, key):
        tx = make_tx(rates)
        drawn = batches.draw(key, state.step, num_steps)
        measured_on = batches.draw_for_interaction(key, state.step, num_steps, drawn)

        def task_major(draw):
            draw, filled = sampling.by_task(draw, num_tasks, batches.capacity)
            return {**sampling.take(train, draw), "filled": filled}

        def statistics(params, draw, draw_for_interaction):
            if fused:
                return {"loss_fn": task_loss, "batch": task_major(draw)}
            batch = sampling.take(train, draw)

            def losses_fn(params):
                losses = example_losses(apply_fn, params, batch)
                return task_means(losses, batch["task"], num_tasks)

            losses, pullback, present = jax.vjp(losses_fn, params, has_aux=True)
            return {
                "losses": losses,
                "present": present,
                "pullback": lambda weights: pullback(weights)[0],
                "interaction_fn": lambda: strategy.matrix(
                    task_loss, params, task_major(draw_for_interaction)
                ),
            }

        def one_step(state, draws):
            updates, opt_state = tx.update(
                None,  # pyright: ignore[reportArgumentType]
                state.opt_state,
                state.params,
                **statistics(state.params, *draws),
            )
            params = optax.apply_updates(state.params, updates)
            losses = transform.find_state(opt_state).losses
            return TrainState(state.step + 1, params, opt_state), losses

        state, losses = jax.lax.scan(one_step, state, (drawn, measured_on))
        return state, losses.mean(axis=0)

    return stretch

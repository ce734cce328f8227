"""Kauldron's training step with task weights: each of its losses is a task."""

import dataclasses
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax
from kauldron import kd
from kauldron.train import context as context_lib
from kauldron.train import train_step

from ldro_jax.transform import forms
from ldro_jax.transform.state import find_state


@dataclasses.dataclass(kw_only=True, eq=False, frozen=True)
class MultitaskStep(kd.train.TrainStep):
    """The step of a ``kd.train.Trainer`` that weighs its ``train_losses``, one task each.

    Give it to the trainer as ``trainstep=MultitaskStep()``, with an optimizer that begins with a
    weighting: ``optax.chain(ldro.transform(num_tasks=2), optax.adam(1e-3))``, of as many tasks as
    there are losses, in their order. A loss whose mask is empty in a batch is absent in that step.
    ``weight`` and schedules of losses stay as they are, in what the weighting sees as well. Where
    parameters are frozen by a mask, as for LoRA, the weighting needs it too: ``trainable=``.

    Raises:
      ValueError: in the first step, if the optimizer has no weighting, or not as many tasks.

    Example::

      trainer = kd.train.Trainer(
          ...,
          train_losses={"left": ..., "right": ...},
          optimizer=optax.chain(ldro.transform(num_tasks=2), optax.adam(1e-3)),
          trainstep=MultitaskStep(),
          train_metrics={"weights": TaskWeights(names=("left", "right"))},
      )
    """

    def _step(self, state: Any, batch: Any) -> tuple[Any, Any]:
        given = context_lib.Context.from_state_and_batch(state=state, batch=batch)
        rngs = self.rng_streams.train_rngs(state.step)
        names = list(self.aux.losses)
        known = find_state(state.opt_state).weights.size
        if known != len(names):
            raise ValueError(
                f"The weighting has {known} tasks, but train_losses are {len(names)}: "
                f"{', '.join(names)}."
            )

        def forward(params):
            _, context = train_step.forward_with_loss(
                given.replace(params=params),
                model=self.model,
                losses=self.aux.losses,
                rngs=rngs,
                is_training=True,
            )
            states = [context.loss_states[name] for name in names]
            return jnp.stack([loss.compute() for loss in states]), context

        first, context = forms.first_pass(forward, state.params, known)
        counts = jnp.stack([context.loss_states[name].count for name in names])
        updates, opt_state = self.optimizer.update(
            None,
            state.opt_state,
            state.params,
            losses_fn=first,
            present=counts > 0,
        )
        after = state.replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            opt_state=opt_state,
            collections=context.collections,
        )
        # Metrics see the weights of this step, and there is no gradient but the weighted one.
        context = context.replace(updates=updates, opt_state=opt_state)
        return after, self.aux.update_context(context)


@dataclasses.dataclass(kw_only=True, frozen=True, eq=True)
class TaskWeights(kd.metrics.Metric):
    """The weights of the step, one number a task, as a metric of :class:`MultitaskStep`.

    Attributes:
      names: of the tasks, in the order of the trainer's losses.
      opt_state: where the optimizer's state is in the context.
    """

    names: tuple[str, ...]
    opt_state: kd.kontext.Key = "opt_state"

    @flax.struct.dataclass
    class State(kd.metrics.State):
        """Sums over steps."""

        total: jax.Array
        count: jax.Array

        @classmethod
        def empty(cls) -> "TaskWeights.State":
            """Of no step."""
            return cls(total=jnp.zeros(()), count=jnp.zeros(()))

        def merge(self, other: "TaskWeights.State") -> "TaskWeights.State":
            """Of the steps of both."""
            return dataclasses.replace(
                self, total=self.total + other.total, count=self.count + other.count
            )

        def compute(self) -> dict[str, jax.Array]:
            """The mean weight of each task, by name."""
            mean = self.total / jnp.maximum(self.count, 1)
            return {name: mean[number] for number, name in enumerate(self.parent.names)}

    def get_state(self, opt_state: Any) -> "TaskWeights.State":
        """That of one step."""
        return self.State(total=find_state(opt_state).weights, count=jnp.ones(()))

    def __metric_names__(self) -> list[str]:
        """How the numbers are called."""
        return list(self.names)

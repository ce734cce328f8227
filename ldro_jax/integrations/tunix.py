"""Tunix's trainer with task weights, for full and LoRA fine-tuning."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from tunix.sft import peft_trainer

from ldro_jax.integrations import nnx as ldro_nnx
from ldro_jax.measuring.means import of_tasks
from ldro_jax.runtime import checks
from ldro_jax.transform.weighted import Weighted


class PeftTrainer(peft_trainer.PeftTrainer):
    """Tunix's ``PeftTrainer`` for a loss function that returns the losses of tasks.

    All else is as in Tunix: ``with_gen_model_input_fn``, ``with_loss_fn``, ``train``, checkpoints,
    which hold the weights, and LoRA. The gradient is computed once, and ``grad_norm`` in the log is
    its norm. With ``gradient_accumulation_steps`` the tasks are weighed in every micro-batch, and
    the weighted gradients averaged.

    Args:
      model: as in Tunix.
      optimizer: any of Optax, without the weighting.
      training_config: as in Tunix.
      weighting: such as ``ldro.transform(num_tasks=5)``.
      **kwargs: of Tunix's trainer.

    Raises:
      ValueError: if the weighting isn't one.

    Example::

      trainer = tunix.PeftTrainer(
          model, optax.adamw(1e-4), config, weighting=ldro.transform(num_tasks=5)
      ).with_loss_fn(lambda model, tokens, task: ldro.Rows(losses_of(model, tokens), task))
      trainer.train(batches)
    """

    def __init__(
        self,
        model: nnx.Module,
        optimizer: optax.GradientTransformation,
        training_config: peft_trainer.TrainingConfig,
        *args: Any,
        weighting: Weighted,
        **kwargs: Any,
    ):
        checks.instance("weighting", weighting, Weighted, "ldro.transform(num_tasks=5)")
        self._num_tasks = weighting.plan.num_tasks
        every = training_config.gradient_accumulation_steps
        # Tunix would put its accumulation around the weighting, which needs to be inside.
        if every is not None:
            optimizer = optax.MultiSteps(optimizer, every).gradient_transformation()
        # Noted in the trace of the step.
        self._norms: list[jax.Array] = []

        def update_fn(updates, state, params=None, **extra_args):
            updates, state = weighting.update(updates, state, params, **extra_args)
            self._norms.append(optax.tree.norm(updates))
            return updates, state

        noted = optax.GradientTransformationExtraArgs(weighting.init, update_fn)
        chained = optax.chain(noted, optimizer)
        alone = dataclasses.replace(training_config, gradient_accumulation_steps=None)
        super().__init__(model, chained, alone, *args, **kwargs)
        self.config = training_config
        self._iter_steps = self._train_steps * (every or 1)

    def with_loss_fn(self, loss_fn: Callable[..., Any], has_aux: bool = False) -> "PeftTrainer":
        """Sets the loss function, ``(model, ...) -> losses [N]`` or ``ldro.Rows``."""
        super().with_loss_fn(loss_fn, has_aux)

        def mean(*args, **kwargs):
            found = loss_fn(*args, **kwargs)
            given, aux = found if has_aux else (found, None)
            losses, present = of_tasks(given, self._num_tasks)
            average = jnp.mean(losses, where=present)
            return (average, aux) if has_aux else average

        self.eval_loss_fn = mean
        return self

    def _train_step(self, model: nnx.Module, optimizer: nnx.Optimizer, inputs: Any):
        inputs = self.gen_model_input_fn(inputs)
        found = ldro_nnx.update(optimizer, model, self.loss_fn, has_aux=self._has_aux, **inputs)
        losses, aux = found if self._has_aux else (found, None)
        return losses.mean(), aux, self._norms.pop()

    def _try_get_learning_rate(self) -> Any:
        # Tunix looks into its optimizer alone, and here that is the second of two.
        rates = optax.tree.get_all_with_path(self.optimizer.opt_state, "learning_rate")
        return rates[0][1].get_value() if rates else None

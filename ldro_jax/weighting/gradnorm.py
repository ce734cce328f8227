"""GradNorm: weights that bring the tasks' gradient lengths to what their training rates ask for.

References:
  Chen, Badrinarayanan, Lee and Rabinovich, *GradNorm: Gradient Normalization for Adaptive Loss
  Balancing in Deep Multitask Networks*, ICML 2018.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from ldro_jax.weighting import base, gram


class GradNormState(NamedTuple):
    """State of :func:`gradnorm`.

    Attributes:
      logits: the weights are N softmax(logits), ``[N]``.
      initial: the first loss of each task, ``[N]``; zeros before.
    """

    logits: jax.Array
    initial: jax.Array


def gradnorm(
    weight_lr: optax.ScalarOrSchedule, *, asymmetry: optax.ScalarOrSchedule = 1.5
) -> base.Weighting:
    r"""Gradient steps on :math:`Σ_i |w_i d_i − \mathrm{mean}(w d) \, r_i^α|`.

    d are the gradients' lengths, and r the tasks' losses over their first ones, relative to their
    mean.

    Args:
      weight_lr: learning rate of the weights. A number or an Optax schedule.
      asymmetry: α, how strongly slow tasks are pulled forward. A number or an Optax schedule.

    Returns:
      The :class:`~ldro_jax.weighting.base.Weighting`; the weights are positive and sum to N.

    Raises:
      ValueError: if a number is negative or not finite.
    """
    base.check_range("weight_lr", weight_lr)
    base.check_range("asymmetry", asymmetry)

    def init(num_tasks, dtype=jnp.float32):
        return GradNormState(jnp.zeros(num_tasks, dtype), jnp.zeros(num_tasks, dtype))

    def update(statistics, state):
        losses, lengths = statistics.losses, gram.norms(statistics.interaction)
        # A task that has had no examples yet has a loss of zero.
        initial = jnp.where(state.initial > 0, state.initial, losses)
        rates = losses * gram.inverse_or_zero(initial)
        rates = rates * gram.inverse_or_zero(jnp.mean(rates))
        power = base.value_at(asymmetry, statistics)

        def weights(logits):
            return logits.size * jax.nn.softmax(logits)

        def distance(logits):
            scaled = weights(logits) * lengths
            target = jax.lax.stop_gradient(jnp.mean(scaled)) * rates**power
            return jnp.sum(jnp.abs(scaled - target))

        step = base.value_at(weight_lr, statistics) * jax.grad(distance)(state.logits)
        return weights(state.logits), GradNormState(state.logits - step, initial)

    return base.Weighting(init, update, uses_interaction=True)

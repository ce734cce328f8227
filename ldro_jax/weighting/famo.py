"""FAMO: the task whose logarithm falls least gets more, at no cost beyond the losses.

References:
  Liu, Feng, Stone and Liu, *FAMO: Fast Adaptive Multitask Optimization*, NeurIPS 2023.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ldro_jax.weighting import base, gram


class FamoState(NamedTuple):
    """State of :func:`famo`.

    Attributes:
      logits: ξ, ``[N]``.
      optimizer: state of Adam.
    """

    logits: jax.Array
    optimizer: Any


def famo(
    weight_lr: optax.ScalarOrSchedule = 0.025,
    *,
    decay: float = 1e-3,
    learning_rate: optax.ScalarOrSchedule = 1e-3,
) -> base.Weighting:
    r""":math:`w ∝ z / ℓ`, with :math:`z = \mathrm{softmax}(ξ)`, and ξ learned by Adam.

    The paper measures how much log ℓ changes in a step by a second forward pass. Here that change
    is taken to first order from A, as :math:`α (A w) / ℓ`.

    Args:
      weight_lr: learning rate of ξ. A number or an Optax schedule.
      decay: γ, weight decay of ξ, which pulls to even weights; added to the gradient.
      learning_rate: α, that of the parameters. To Adam only its proportion to γ makes a difference.
        A number or an Optax schedule.

    Returns:
      The :class:`~ldro_jax.weighting.base.Weighting`; the weights sum to one.

    Raises:
      ValueError: if a number is negative or not finite.
    """
    base.check_range("weight_lr", weight_lr)
    base.check_range("decay", decay)
    base.check_range("learning_rate", learning_rate)
    adam = optax.scale_by_adam()

    def init(num_tasks, dtype=jnp.float32):
        logits = jnp.zeros(num_tasks, dtype)
        return FamoState(logits, adam.init(logits))

    def update(statistics, state):
        inverse = gram.inverse_or_zero(statistics.losses)
        shares, pull_back = jax.vjp(jax.nn.softmax, state.logits)
        weights = shares * inverse
        total = jnp.sum(weights)
        weights = jnp.where(total > 0, weights * gram.inverse_or_zero(total), shares)
        lengths = gram.norms(statistics.interaction)
        longest = jnp.max(lengths)
        # In units of the longest gradient, or it would overflow.
        unit = jnp.where(longest > 0, longest, 1) ** 2
        falls = gram.dot(statistics.interaction / unit, weights) * inverse
        falls = falls * unit * base.value_at(learning_rate, statistics)
        # Adam squares them.
        falls = jnp.nan_to_num(jnp.clip(falls, -1e15, 1e15))
        gradient = pull_back(falls)[0] + decay * state.logits
        step: Any
        # Optax leaves conversions to JAX.
        with jax.numpy_dtype_promotion("standard"):
            step, optimizer = adam.update(gradient, state.optimizer)
        logits = state.logits - base.value_at(weight_lr, statistics) * step
        return weights, FamoState(logits, optimizer)

    return base.Weighting(init, update, uses_interaction=True)

"""FAMO: the task whose logarithm falls least gets more, at no cost beyond the losses.

References:
  Liu, Feng, Stone and Liu, *FAMO: Fast Adaptive Multitask Optimization*, NeurIPS 2023.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ldro_jax.weighting import about, base, gram, products


class FamoState(NamedTuple):
    """State of :func:`famo`.

    Attributes:
      logits: ξ, ``[N]``.
      optimizer: state of Adam, one for each task.
      losses: those of the step before, ``[N]``; zeros where there was none.
    """

    logits: jax.Array
    optimizer: Any
    losses: jax.Array


@about.method(
    about.SCALES,
    weights="∝ softmax(ξ)/ℓ",
    paper="Liu 2023",
    state="ξ, Adam",
    usual={"weight_lr": 0.1, "learning_rate": 0.001},
    variants={"between steps": {"weight_lr": 0.1, "learning_rate": None}},
)
def famo(
    weight_lr: optax.ScalarOrSchedule = 0.025,
    *,
    learning_rate: optax.ScalarOrSchedule | None,
    decay: optax.ScalarOrSchedule = 1e-3,
) -> base.Weighting:
    r""":math:`w ∝ z / ℓ`, with :math:`z = \mathrm{softmax}(ξ)`, and ξ learned by Adam.

    ξ moves with the fall of log ℓ in a step, which the paper measures by a second forward pass on
    the same batch. Here there are two ways to it without one, and neither is always right:

    * With a ``learning_rate`` it is taken to first order from A, as :math:`α (A w) / ℓ`. That holds
      for plain gradient descent. For Adam, measure A in its geometry (``geometry="optimizer"`` of a
      ``Method``, or ``preconditioner=``), which is nearer. Momentum is left out.
    * With ``None`` it is the difference between the losses of one step and the next, at no cost and
      for any optimizer. That is the paper's where every step sees the same rows. Where rows differ,
      their noise drowns the fall, and the weights move less.

    It needs positive losses, best with zero as their lower bound.

    Args:
      weight_lr: learning rate of ξ.
      learning_rate: α, that of the parameters, which no default can know; or ``None``.
      decay: γ, weight decay of ξ, which pulls to even weights; added to the gradient.

    Raises:
      ValueError: if a number is negative or not finite.
    """
    base.check_range("weight_lr", weight_lr)
    base.check_range("decay", decay)
    if learning_rate is not None:
        base.check_range("learning_rate", learning_rate)
    rate = 0.0 if learning_rate is None else learning_rate
    adam = optax.scale_by_adam()

    def init(num_tasks, dtype=jnp.float32):
        zeros = jnp.zeros(num_tasks, dtype)
        return FamoState(zeros, jax.vmap(adam.init)(zeros), zeros)

    def learned(statistics, state, falls, measured):
        """The state after a step of Adam for the tasks whose fall of log ℓ was measured."""
        known = base.known_tasks(statistics)
        shares = jax.nn.softmax(state.logits, where=known)
        pull = base.value_at(decay, statistics) * state.logits
        gradient = shares * (falls - jnp.sum(shares * falls)) + pull
        step: Any
        # Optax leaves conversions to JAX.
        with jax.numpy_dtype_promotion("standard"):
            step, optimizer = jax.vmap(adam.update)(gradient, state.optimizer)
        logits = state.logits - base.value_at(weight_lr, statistics) * step
        logits = jnp.where(measured, logits, state.logits)
        optimizer = jax.tree.map(
            lambda new, old: jnp.where(measured, new, old), optimizer, state.optimizer
        )
        logits = jnp.where(known, logits, base.log_mean_exp(logits, known))
        return FamoState(logits, optimizer, jnp.where(known, statistics.losses, 0))

    def weights_of(statistics, logits, losses):
        known = base.known_tasks(statistics)
        # In logarithms, in which a quotient neither over- nor underflows.
        return jax.nn.softmax(logits - jnp.log(losses), where=known)

    def by_losses(statistics, state):
        known, losses = base.known_tasks(statistics), base.positive_losses(statistics)
        measured = known & (state.losses > 0) & (statistics.losses > 0)
        falls = jnp.log(jnp.where(measured, state.losses, 1) / jnp.where(measured, losses, 1))
        state = learned(statistics, state, falls, measured)
        return weights_of(statistics, state.logits, losses), state

    def by_interaction(statistics, state):
        losses = base.positive_losses(statistics)
        weights = weights_of(statistics, state.logits, losses)
        matrix = base.known_interaction(statistics)
        # In units of the longest gradient, or it would overflow.
        longest = jnp.max(gram.lengths(matrix))
        unit = jnp.where(longest > 0, longest, 1) ** 2
        falls = gram.dot(matrix / unit, weights) / losses
        falls = falls * unit * base.value_at(rate, statistics)
        # Adam squares them.
        falls = jnp.nan_to_num(jnp.clip(falls, -1e15, 1e15))
        return weights, learned(statistics, state, falls, base.known_tasks(statistics))

    if learning_rate is None:
        return base.Weighting(init, by_losses, needs_positive_losses=True)

    def by_products(statistics, state):
        held, state = state
        losses = base.positive_losses(statistics)
        weights = weights_of(statistics, state.logits, losses)
        held = statistics.products.measured(held, (lambda values: weights,))
        falls = held.filled()[0] / losses * base.value_at(rate, statistics)
        falls = jnp.nan_to_num(jnp.clip(falls, -1e15, 1e15))
        measured = base.known_tasks(statistics) & held.started()
        return weights, (held, learned(statistics, state, falls, measured))

    def init_by_products(num_tasks, dtype=jnp.float32):
        return products.Held.nothing(1, num_tasks, dtype), init(num_tasks, dtype)

    made = base.Weighting(init, by_interaction, uses_interaction=True, needs_positive_losses=True)
    return made._replace(by_products=products.form(init_by_products, by_products, made))

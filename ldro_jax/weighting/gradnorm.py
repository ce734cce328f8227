"""GradNorm: weights that bring the tasks' gradient lengths to what their training rates ask for.

References:
  Chen, Badrinarayanan, Lee and Rabinovich, *GradNorm: Gradient Normalization for Adaptive Loss
  Balancing in Deep Multitask Networks*, ICML 2018.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from ldro_jax.runtime import checks
from ldro_jax.weighting import about, base, gram, products


class GradNormState(NamedTuple):
    """State of :func:`gradnorm`.

    Attributes:
      weights: ``[N]``, or with ``softmax`` their logits.
      initial: the first loss of each task, ``[N]``; zeros while the task is unknown.
    """

    weights: jax.Array
    initial: jax.Array


@about.method(
    about.SCALES,
    weights="gradient lengths by training rates",
    paper="Chen 2018",
    state="w, first losses",
    sums_to="N",
    usual={"weight_lr": 0.1},
)
def gradnorm(
    weight_lr: optax.ScalarOrSchedule,
    *,
    asymmetry: optax.ScalarOrSchedule = 1.5,
    softmax: bool = False,
) -> base.Weighting:
    r"""Gradient steps on :math:`Σ_i |w_i d_i − \mathrm{mean}(w d) \, r_i^α|`.

    d are the gradients' lengths, and r the tasks' losses over their first ones, relative to their
    mean. As in the paper, the steps are taken on the weights, which are then made to sum to N; no
    weight goes below zero. It needs positive losses.

    Args:
      weight_lr: learning rate of the weights.
      asymmetry: α, how strongly slow tasks are pulled forward.
      softmax: take the steps on logits, of which the weights are N times the softmax, as other
        libraries do.

    Raises:
      ValueError: if a number is negative or not finite.
    """
    base.check_range("weight_lr", weight_lr)
    base.check_range("asymmetry", asymmetry)
    checks.flag("softmax", softmax)

    def init(num_tasks, dtype=jnp.float32):
        zeros = jnp.zeros(num_tasks, dtype)
        return GradNormState(zeros if softmax else jnp.ones(num_tasks, dtype), zeros)

    def update(statistics, state):
        known, losses = base.known_tasks(statistics), base.positive_losses(statistics)
        count = base.number_known(statistics)
        weights = state.weights
        if softmax:
            weights = count * jax.nn.softmax(weights, where=known)
        weights = jnp.where(known, weights, 0)
        initial = jnp.where(known, jnp.where(state.initial > 0, state.initial, losses), 0)
        rates = losses * gram.inverse_or_zero(initial)
        rates = rates * gram.inverse_or_zero(jnp.mean(rates, where=known))
        lengths = gram.lengths(base.known_interaction(statistics))
        scaled = weights * lengths
        target = jnp.mean(scaled, where=known) * rates ** base.value_at(asymmetry, statistics)
        slopes = jnp.where(known, jnp.sign(scaled - target) * lengths, 0)
        if softmax:
            slopes = weights * (slopes - jnp.sum(weights * slopes) / count)
        # Steps far longer than any weight are the same as infinite ones.
        step = jnp.clip(base.value_at(weight_lr, statistics) * slopes, -1e15, 1e15)
        moved = jnp.where(known, state.weights - jnp.nan_to_num(step), 0)
        if softmax:
            return weights, GradNormState(
                jnp.where(known, moved, base.log_mean_exp(moved, known)), initial
            )
        moved = jnp.maximum(moved, 0)
        total = jnp.sum(moved)
        moved = jnp.where(total > 0, count * moved * gram.inverse_or_zero(total), weights)
        return weights, GradNormState(jnp.where(known, moved, 1), initial)

    made = base.Weighting(init, update, uses_interaction=True, needs_positive_losses=True)
    return made._replace(by_products=products.of_lengths(made))

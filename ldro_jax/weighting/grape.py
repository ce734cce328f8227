"""GRAPE: weights that help the tasks whose losses fall slowest, relative to their size.

References:
  Fan, Glarou and Jaggi, *GRAPE: Optimize Data Mixture for Group Robust Multi-target Adaptive
  Pretraining*, NeurIPS 2025.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from ldro_jax.weighting import about, base, gram, products


class GrapeState(NamedTuple):
    """State of :func:`grape`.

    Attributes:
      log_weights: log α, ``[N]``, as in :class:`~ldro_jax.weighting.base.LogWeightsState`.
      log_adversary: log z, likewise.
    """

    log_weights: jax.Array
    log_adversary: jax.Array


@about.method(
    about.MIXTURES,
    weights="∝ w exp(ηAᵀ(z/ℓ)), z of slow tasks",
    paper="Fan 2025",
    state="w, z",
    usual={"weight_lr": 0.1, "adversary_lr": 0.5},
)
def grape(
    weight_lr: optax.ScalarOrSchedule, adversary_lr: optax.ScalarOrSchedule
) -> base.Weighting:
    r""":math:`z ∝ z \exp(−η_z (Aα) / ℓ)`, and with the new z :math:`α ∝ α \exp(η_α A^⊤ (z / ℓ))`.

    To first order :math:`(Aα)_i / ℓ_i` is the rate at which the loss of task i improves, relative
    to its size. An adversary z moves to the tasks where it is least, and the weights α to those
    whose gradients help them. In the paper z weighs target tasks and α the domains that are trained
    on; here they are the same tasks. The paper takes a step of both every 100 steps of training;
    here there is one in each. The weights given are α. The method needs positive losses.

    Args:
      weight_lr: η_α, the learning rate of the weights, γ / μ_α in the paper (1.5 there), in units
        of a loss over a squared gradient.
      adversary_lr: η_z, that of the adversary, γ / μ_z in the paper (10 there), in the same unit.

    Raises:
      ValueError: if a rate is negative or not finite.
    """
    base.check_range("weight_lr", weight_lr)
    base.check_range("adversary_lr", adversary_lr)

    def init(num_tasks, dtype=jnp.float32):
        even = base.uniform_log_state(num_tasks, dtype).log_weights
        return GrapeState(even, even)

    def answered(statistics, logits, rate, slope):
        """A player after an exponentiated-gradient step, as logarithms."""
        step = jnp.nan_to_num(base.value_at(rate, statistics) * slope)
        return jax.nn.log_softmax(logits + step, where=base.known_tasks(statistics))

    def kept(statistics, *players):
        known = base.known_tasks(statistics)
        return GrapeState(*(base.log_weights_state(p, known).log_weights for p in players))

    def update(statistics, state):
        inverse = 1 / base.positive_losses(statistics)
        # ⟨∇ log ℓ_i, ∇ℓ_j⟩, finite so that it may be multiplied by a weight of zero.
        alignment = jnp.nan_to_num(base.known_interaction(statistics) * inverse[:, None])
        last = jax.nn.softmax(state.log_weights, where=base.known_tasks(statistics))
        improvement = gram.dot(alignment, last)
        adversary = answered(statistics, state.log_adversary, adversary_lr, -improvement)
        gain = gram.dot(alignment.T, jnp.exp(adversary))
        weights = answered(statistics, state.log_weights, weight_lr, gain)
        return jnp.exp(weights), kept(statistics, weights, adversary)

    def by_products(statistics, state):
        held, state = state
        inverse = 1 / base.positive_losses(statistics)
        last = jax.nn.softmax(state.log_weights, where=base.known_tasks(statistics))

        def moved(values):
            improvement = jnp.nan_to_num(held._replace(values=values).filled()[0] * inverse)
            return answered(statistics, state.log_adversary, adversary_lr, -improvement)

        asked = (lambda values: last, lambda values: jnp.exp(moved(values)) * inverse)
        held = statistics.products.measured(held, asked)
        gain = jnp.where(held.started(), held.filled()[1], 0)
        weights = answered(statistics, state.log_weights, weight_lr, gain)
        return jnp.exp(weights), (held, kept(statistics, weights, moved(held.values)))

    def init_by_products(num_tasks, dtype=jnp.float32):
        return products.Held.nothing(2, num_tasks, dtype), init(num_tasks, dtype)

    made = base.Weighting(init, update, uses_interaction=True, needs_positive_losses=True)
    return made._replace(by_products=products.form(init_by_products, by_products, made))

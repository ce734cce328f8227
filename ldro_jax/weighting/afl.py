"""Agnostic federated learning: gradient ascent on the weights, projected onto the simplex.

References:
  Mohri, Sivek and Suresh, *Agnostic Federated Learning*, ICML 2019.
"""

import jax.numpy as jnp
import optax

from ldro_jax.weighting import about, base


@about.method(
    about.WORST,
    weights="Π(w + ηℓ) on the simplex, after the step",
    paper="Mohri 2019",
    state="w",
    usual={"weight_lr": 0.1},
)
def afl(weight_lr: optax.ScalarOrSchedule) -> base.Weighting:
    r""":math:`w ← Π(w + η ℓ)`, projected onto the simplex: weights can become zero.

    As in the paper, the step trains with the weights before this, even ones at first: the players
    move at the same time.

    Args:
      weight_lr: η, the learning rate of the weights.

    Raises:
      ValueError: if the rate is negative or not finite.
    """
    base.check_range("weight_lr", weight_lr)

    def update(statistics, state):
        known = base.known_tasks(statistics)
        weights = jnp.where(known, state.weights, 0)
        weights = weights / jnp.sum(weights)
        above = base.above_least(statistics)
        # Below the worst task's, so that a weight isn't lost in the rounding of a large step. What
        # is two below it is one below the largest sum, and gets nothing.
        step = base.value_at(weight_lr, statistics) * (above - jnp.max(above))
        moved = weights + jnp.maximum(step, -2)
        return weights, base.weights_state(base.onto_simplex(moved, known), known)

    return base.Weighting(base.uniform_state, update)

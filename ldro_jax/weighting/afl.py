"""Agnostic federated learning: gradient ascent on the weights, projected onto the simplex.

References:
  Mohri, Sivek and Suresh, *Agnostic Federated Learning*, ICML 2019.
"""

import optax

from ldro_jax.weighting import base


def afl(weight_lr: optax.ScalarOrSchedule) -> base.Weighting:
    r""":math:`w ← Π(w + η ℓ)`, projected onto the simplex: weights can become zero.

    Args:
      weight_lr: η, the learning rate of the weights. A number or an Optax schedule.

    Returns:
      The :class:`~ldro_jax.weighting.base.Weighting`; the weights sum to one.

    Raises:
      ValueError: if the rate is negative or not finite.
    """
    base.check_range("weight_lr", weight_lr)

    def update(statistics, state):
        step = base.value_at(weight_lr, statistics) * statistics.losses
        weights = base.onto_simplex(state.weights + step)
        return weights, base.WeightsState(weights)

    return base.Weighting(base.uniform_state, update)

"""DoGE: domains whose gradients agree with those of all get more.

References:
  Fan, Pagliardini and Jaggi, *DoGE: Domain Reweighting with Generalization Estimation*, ICML 2024.
"""

import jax.numpy as jnp
import optax

from ldro_jax.weighting import base, gram


def doge(
    rate: optax.ScalarOrSchedule, *, regularization: optax.ScalarOrSchedule = 0.01
) -> base.Weighting:
    r""":math:`w ∝ w \exp(\mathrm{clip}(r \, A1 / \mathrm{mean}\, d, 0, 5r) / μ)`.

    It looks ahead as L-DRO does, with an even adversary instead of one who takes the worst task.

    Args:
      rate: r, the learning rate of the parameters in the paper. A number or an Optax schedule.
      regularization: μ; the smaller, the faster the weights move. A number or an Optax schedule.

    Returns:
      The :class:`~ldro_jax.weighting.base.Weighting`; the weights sum to one.

    Raises:
      ValueError: if the rate is negative, or μ is not positive.
    """
    base.check_range("rate", rate)
    base.check_range("regularization", regularization, "(0, inf)")

    def direction(statistics, weights):
        del weights
        lengths = gram.norms(statistics.interaction)
        inverse = gram.inverse_or_zero(jnp.mean(lengths))
        gain = gram.dot(statistics.interaction * inverse, jnp.ones_like(lengths))
        size = base.value_at(rate, statistics)
        return jnp.clip(size * gain, 0, 5 * size) / base.value_at(regularization, statistics)

    return base.exponentiated_gradient(direction, uses_interaction=True)

"""PiKE: more for the tasks with long gradients, less for those with noisy ones.

References:
  Li, Deng, Zhong, Razaviyayn and Mirrokni, *PiKE: Adaptive Data Mixing for Large-Scale Multi-Task
  Learning Under Low Gradient Conflicts*, NeurIPS 2025.
"""

import jax.numpy as jnp
import optax

from ldro_jax.runtime import checks
from ldro_jax.weighting import about, base


@about.method(
    about.MIXTURES,
    weights="∝ w exp(ζ₁‖g‖² − ζ₂σ²/2b)",
    paper="Li 2025",
    state="w",
    usual={"weight_lr": 0.02, "noise_penalty": 0.5},
)
def pike(
    weight_lr: optax.ScalarOrSchedule, *, noise_penalty: optax.ScalarOrSchedule
) -> base.Weighting:
    r""":math:`w ∝ w \exp(ζ_1 \|∇ℓ_i\|^2 − ζ_2 σ_i^2 / (2b))`.

    A step of mirror descent on a bound of the average loss after the next step, where gradients
    don't conflict. σ_i² is the variance of the gradient of one example of task i, the sum over the
    parameters, and b the number of examples of all tasks in a batch. N tasks with b / N examples
    each have batch gradients of the variance :math:`N σ_i^2 / b`, which is what is measured
    (``statistics.noise``). The squared length of the gradient is taken without that variance: the
    method asks for ``interaction="split"`` by default, which measures both. The weighting's
    ``update`` raises ``ValueError`` if the variance isn't measured.

    Args:
      weight_lr: ζ_1, in units of one over a squared gradient. The paper's number, which doesn't
        adapt to the scale of the losses.
      noise_penalty: ζ_2, in the same unit; in the paper's bound it is to ζ_1 as the learning rate
        times the smoothness of the losses to one.

    Raises:
      ValueError: if a number is negative or not finite.
    """
    base.check_range("weight_lr", weight_lr)
    base.check_range("noise_penalty", noise_penalty)

    def direction(statistics, weights):
        del weights
        noise = statistics.noise
        measured = 'the variance of each task\'s gradient, as interaction="split" measures it'
        checks.require(noise is not None, "statistics.noise", measured, noise)
        # Measured without bias it can be negative.
        squared = jnp.maximum(jnp.diagonal(statistics.interaction), 0)
        variance = jnp.maximum(noise, 0) / base.number_known(statistics)
        gain = base.value_at(weight_lr, statistics) * squared
        penalty = base.value_at(noise_penalty, statistics) * variance / 2
        # The exponent of a very long gradient would not be finite.
        return jnp.nan_to_num(gain - penalty)

    made = base.exponentiated_gradient(direction, uses_interaction=True)
    return made._replace(uses_noise=True, default_interaction="split")

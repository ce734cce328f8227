"""Group DRO with a pull back to even weights, so that they can't collapse onto one task."""

import jax
import jax.numpy as jnp
import optax

from ldro_jax.runtime import checks
from ldro_jax.weighting import about, base


@about.method(
    about.WORST,
    weights="log w ← (1−ρ) log w + ρℓ/σ",
    state="w",
    usual={"temperature": 0.4},
    variants={"relative": {"temperature": 0.4, "relative": True}},
)
def regularized_dro(
    temperature: optax.ScalarOrSchedule,
    *,
    rate: optax.ScalarOrSchedule = 0.1,
    relative: bool = False,
) -> base.Weighting:
    r"""KL-regularised group DRO: :math:`\log w ← (1 − ρ) \log w + ρ ℓ / σ`, then normalised.

    One step of mirror ascent on :math:`w^⊤ ℓ − σ KL(w‖u)`. With losses that don't change, the
    weights tend to softmax(ℓ / σ), those of TERM; otherwise their logarithms follow TERM's as means
    over about 1 / ρ steps.

    Args:
      temperature: σ, in units of the losses; with ``relative``, of their mean.
      rate: ρ in [0, 1], how fast the weights move.
      relative: take σ relative to the mean loss, so that the scale of the losses makes no
        difference.

    Raises:
      ValueError: if the temperature is not positive, or ρ lies outside [0, 1].
    """
    base.check_range("temperature", temperature, "(0, inf)")
    base.check_range("rate", rate, "[0, 1]")
    checks.flag("relative", relative)

    def update(statistics, state):
        share = base.value_at(rate, statistics)
        unit = base.value_at(temperature, statistics)
        if relative:
            unit = unit * base.mean_loss(statistics)
        known = base.known_tasks(statistics)
        moved = (1 - share) * state.log_weights + share * base.above_least(statistics) / unit
        log_weights = jax.nn.log_softmax(moved, where=known)
        return jnp.exp(log_weights), base.log_weights_state(log_weights, known)

    return base.Weighting(base.uniform_log_state, update, needs_positive_losses=relative)

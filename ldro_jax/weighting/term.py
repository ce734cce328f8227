"""Tilted empirical risk: a smooth maximum of the losses.

References:
  Li, Beirami, Sanjabi and Smith, *Tilted Empirical Risk Minimization*, ICLR 2021.
"""

import jax
import optax

from ldro_jax.runtime import checks
from ldro_jax.weighting import about, base


@about.method(
    about.WORST,
    weights="softmax(tℓ)",
    paper="Li 2021",
    usual={"tilt": 2.0},
    variants={"relative": {"tilt": 2.0, "relative": True}},
)
def term(tilt: optax.ScalarOrSchedule, *, relative: bool = False) -> base.Weighting:
    r"""The gradient of :math:`\frac1t \log \frac1N Σ_i e^{t ℓ_i}`: weights softmax(t ℓ).

    Args:
      tilt: t; 0 is the average loss, large the worst task.
      relative: divide t by the mean loss, so that the scale of the losses makes no difference.

    Raises:
      ValueError: if the tilt is negative or not finite.
    """
    base.check_range("tilt", tilt)
    checks.flag("relative", relative)

    def weights(statistics):
        unit = base.mean_loss(statistics) if relative else 1
        logits = base.value_at(tilt, statistics) * base.above_least(statistics) / unit
        return jax.nn.softmax(logits, where=base.known_tasks(statistics))

    return base.stateless(weights)._replace(needs_positive_losses=relative)

"""Baselined-DRO: group DRO on the loss above a reference, so that hard tasks don't take all.

References:
  Oren, Sagawa, Hashimoto and Liang, *Distributionally Robust Language Modeling*, EMNLP 2019, for
  the baselined loss; the online step is that of :mod:`ldro_jax.weighting.group_dro`.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import optax

from ldro_jax.weighting import about, base


@about.method(
    about.WORST,
    weights="∝ w exp(η(ℓ − reference))",
    paper="Oren 2019",
    state="w",
    usual=lambda numbers: {"reference_losses": numbers / 10, "weight_lr": 0.1},
)
def baselined_dro(
    reference_losses: Sequence[float], weight_lr: optax.ScalarOrSchedule
) -> base.Weighting:
    r"""Baselined-DRO, :math:`w_i ∝ w_i \exp(η (ℓ_i − ℓ^{ref}_i))`.

    Args:
      reference_losses: loss that each task can reach, ``[N]``, usually that of a model trained on
        the task alone, in the unit of the training loss.
      weight_lr: η, the learning rate of the weights.

    Raises:
      ValueError: if the rate is negative, if a reference is not finite, or if their number isn't
        that of the tasks.
    """
    base.check_range("weight_lr", weight_lr)
    references = base.numbers_per_task("reference_losses", reference_losses)

    def direction(statistics, weights):
        del weights
        losses = base.above_least(statistics)
        base.check_per_task("reference_losses", references, losses.size)
        excess = losses - base.times_signal(statistics, jnp.asarray(references, losses.dtype))
        return base.value_at(weight_lr, statistics) * excess

    return base.exponentiated_gradient(direction)

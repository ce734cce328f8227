"""Weights that never change: the average loss and static mixing by data size.

References:
  Conneau et al., *Unsupervised Cross-lingual Representation Learning at Scale*, ACL 2020, for the
  exponent of the data size.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from ldro_jax import checks
from ldro_jax.weighting import base


def average() -> base.Weighting:
    """The average loss: every task weighs ``1 / N``.

    Returns:
      The :class:`~ldro_jax.weighting.base.Weighting`.
    """
    return base.stateless(
        lambda statistics: jnp.full_like(statistics.losses, 1 / statistics.losses.size)
    )


def static_mixing(sizes: Sequence[float], *, exponent: float = 0.3) -> base.Weighting:
    r"""Static mixing with temperature, :math:`w_i ∝ |D_i|^α`.

    Args:
      sizes: amount of data of each task, ``[N]``, in any unit.
      exponent: α, the inverse temperature. 0 weighs all tasks the same, 1 by their size.

    Returns:
      The :class:`~ldro_jax.weighting.base.Weighting`.

    Raises:
      ValueError: if a size is not positive and finite, if their number isn't that of the tasks, or
        if the exponent is negative.
    """
    amounts = base.numbers_per_task("sizes", sizes, positive=True)
    checks.number("exponent", exponent, "[0, inf)")
    # In logarithms, since |D|^α overflows float32 for sizes in bytes and α > 1.
    logits = exponent * np.log(amounts)
    weights = np.exp(logits - logits.max())
    weights /= weights.sum()

    def update(statistics):
        base.check_per_task("sizes", weights, statistics.losses.size)
        return jnp.asarray(weights, statistics.losses.dtype)

    return base.stateless(update)

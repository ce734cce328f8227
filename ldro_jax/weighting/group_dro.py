"""Online group DRO: weight moves to the tasks with the highest loss.

References:
  Sagawa, Koh, Hashimoto and Liang, *Distributionally Robust Neural Networks for Group Shifts: On
  the Importance of Regularization for Worst-Case Generalization*, ICLR 2020, Algorithm 1.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
import optax

from ldro_jax.weighting import about, base


@about.method(
    about.WORST,
    weights="∝ w exp(ηℓ)",
    paper="Sagawa 2020",
    state="w",
    usual={"weight_lr": 0.1},
    variants={
        "adjusted": lambda numbers: {"weight_lr": 0.1, "group_sizes": numbers, "adjustment": 0.5}
    },
)
def group_dro(
    weight_lr: optax.ScalarOrSchedule,
    *,
    group_sizes: Sequence[float] | None = None,
    adjustment: optax.ScalarOrSchedule = 0.0,
) -> base.Weighting:
    r"""Online group DRO, :math:`w_i ∝ w_i \exp(η (ℓ_i + C / \sqrt{n_i}))`.

    Args:
      weight_lr: η, the learning rate of the weights.
      group_sizes: :math:`n_i`, training examples of each task, ``[N]``; needed for an adjustment.
      adjustment: C, the group-size adjustment of the paper's section 3.3: small groups, which
        generalise worse, count as if their loss were higher.

    Raises:
      ValueError: if the rate is negative, if a group size is not positive, if their number isn't
        that of the tasks, or if there is an adjustment and no sizes.
    """
    base.check_range("weight_lr", weight_lr)
    base.check_range("adjustment", adjustment)
    if group_sizes is None:
        if not isinstance(adjustment, (int, float)) or adjustment != 0:
            raise ValueError("adjustment needs group_sizes, one number for each task.")
        scale = None
    else:
        scale = 1 / np.sqrt(base.numbers_per_task("group_sizes", group_sizes, positive=True))

    def direction(statistics, weights):
        del weights
        losses = base.above_least(statistics)
        if scale is not None:
            base.check_per_task("group_sizes", scale, losses.size)
            penalty = base.value_at(adjustment, statistics)
            losses = losses + penalty * jnp.asarray(scale, losses.dtype)
        return base.value_at(weight_lr, statistics) * losses

    return base.exponentiated_gradient(direction)

"""CAGrad: the best worst-case decrease, within a distance of the mean gradient.

References:
  Liu, Liu, Jin, Stone and Liu, *Conflict-Averse Gradient Descent for Multi-task Learning*, NeurIPS
  2021.
"""

import optax

from ldro_jax import solvers
from ldro_jax.weighting import about, base, gram


@about.method(
    about.GRADIENTS,
    weights="best worst decrease near the mean",
    paper="Liu 2021",
    sums_to="1 or more",
    usual={"c": 0.5},
    solver="convex",
    scale_free=True,
)
def cagrad(c: optax.ScalarOrSchedule = 0.5) -> base.Weighting:
    r"""The update d that maximises :math:`\min_i ⟨g_i, d⟩` with :math:`‖d − g_0‖ ≤ c ‖g_0‖`.

    :math:`g_0` is the mean gradient. With
    :math:`w^* = \arg\min_w w^⊤Au + c \sqrt{u^⊤Au} \sqrt{w^⊤Aw}` over the simplex, u uniform, the
    weights are :math:`u + c \sqrt{u^⊤Au / w^{*⊤}Aw^*} \, w^*`. They conflict with no task for
    c ≥ 1; c = 0 is the average loss.

    A task whose gradient is zero gains nothing whatever the update, and is left out of the minimum.
    Where no update helps all tasks, it is the one nearest to the mean gradient that harms none.

    Args:
      c: in [0, inf), usually below 1.

    Raises:
      ValueError: if c is negative or not finite.
    """
    base.check_range("c", c)

    def weights(statistics):
        radius = base.value_at(c, statistics)
        known = base.known_tasks(statistics)
        beyond, solved = solvers.steepest(base.known_interaction(statistics), radius, known)
        return gram.even(statistics) + beyond, solved

    return base.solving(weights)

"""FairGrad: α-fair shares of the decrease, as in networks.

References:
  Ban and Ji, *Fair Resource Allocation in Multi-Task Learning*, ICML 2024.
"""

import optax

from ldro_jax import solvers
from ldro_jax.weighting import about, base


@about.method(
    about.GRADIENTS,
    weights="Aw = w^(−1/α); by default α = 1, which is Nash-MTL",
    paper="Ban 2024",
    sums_to="",
    usual={"alpha": 2.0},
    solver="convex",
    scale_free=True,
)
def fairgrad(alpha: optax.ScalarOrSchedule = 1.0) -> base.Weighting:
    r"""Solves :math:`A w = w^{−1/α}`.

    The weights have the unit of a gradient's length to the power −2α / (1 + α).

    Args:
      alpha: α, positive: near 0 the total decrease counts, 1 is proportional fairness (Nash-MTL),
        and the larger, the more the task that gains least. From 0.01 to 50 it was solved for all of
        900 random matrices of gradients whose lengths were within a factor of 1e4. A step without a
        solution is counted in ``unsolved``.

    Raises:
      ValueError: if α is not positive and finite.
    """
    base.check_range("alpha", alpha, "(0, inf)")

    def weights(statistics):
        return solvers.balance(base.known_interaction(statistics), base.value_at(alpha, statistics))

    return base.solving(weights)

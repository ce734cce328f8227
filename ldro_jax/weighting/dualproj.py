"""DualProj: the mean gradient, projected so that it conflicts with no task (as GEM does).

References:
  Lopez-Paz and Ranzato, *Gradient Episodic Memory for Continual Learning*, NIPS 2017.
"""

from ldro_jax import solvers
from ldro_jax.weighting import about, base, gram


@about.method(
    about.GRADIENTS,
    weights="argmin vᵀAv, v ≥ 1/N",
    paper="Lopez-Paz 2017",
    sums_to="1 or more",
    solver="convex",
    scale_free=True,
)
def dualproj() -> base.Weighting:
    r""":math:`\arg\min_{v ≥ 1/N} v^⊤ A v`: the mean gradient, projected onto the dual cone."""

    def weights(statistics):
        return solvers.above(base.known_interaction(statistics), gram.even(statistics))

    return base.solving(weights)

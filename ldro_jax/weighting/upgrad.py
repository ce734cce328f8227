"""UPGrad: the mean of the task gradients, each projected so that it conflicts with none.

References:
  Quinton and Rey, *Jacobian Descent for Multi-Objective Optimization*, 2024.
"""

import jax
import jax.numpy as jnp

from ldro_jax import solvers
from ldro_jax.weighting import about, base, gram


@about.method(
    about.GRADIENTS,
    weights="Σᵢ argmin vᵀAv, v ≥ eᵢ/N",
    paper="Quinton 2024",
    sums_to="1 or more",
    solver="convex",
    scale_free=True,
)
def upgrad() -> base.Weighting:
    r""":math:`Σ_i \arg\min_{v ≥ e_i / N} v^⊤ A v`.

    Each gradient is projected onto the cone of directions in which no loss grows, by N quadratic
    programmes solved together. The update has no conflict with any task, and is linear in the
    length of each gradient.
    """

    def weights(statistics):
        bounds = jnp.diag(gram.even(statistics))
        matrix = base.known_interaction(statistics)
        parts, solved = jax.vmap(solvers.above, (None, 0))(matrix, bounds)
        known = base.known_tasks(statistics)
        return jnp.where(known[:, None], parts, 0).sum(axis=0), (solved | ~known).all()

    return base.solving(weights)

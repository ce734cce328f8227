"""MGDA: the shortest convex combination of the task gradients, a descent direction of all of them.

References:
  Désidéri, *Multiple-Gradient Descent Algorithm (MGDA) for Multiobjective Optimization*, Comptes
  Rendus Mathématique, 2012; Sener and Koltun, *Multi-Task Learning as Multi-Objective
  Optimization*, NeurIPS 2018.
"""

from ldro_jax import solvers
from ldro_jax.runtime import checks
from ldro_jax.weighting import about, base, gram, products

_NORMALIZATIONS = ("none", "l2", "loss", "loss+")


@about.method(
    about.GRADIENTS,
    weights="argmin wᵀAw on the simplex",
    paper="Désidéri 2012, Sener 2018",
    variants={"l2": {"normalization": "l2"}, "loss+": {"normalization": "loss+"}},
    solver="convex",
    scale_free=True,
)
def mgda(*, normalization: str = "none") -> base.Weighting:
    r""":math:`\arg\min_w w^⊤ A w` over the simplex.

    It favours tasks with small gradients, those that have nearly converged above all: one whose
    gradient is zero gets all the weight.

    By products of A (``interaction="products"``) it isn't solved anew: the weights take one step of
    Frank and Wolfe's in each step of the training.

    Args:
      normalization: what to divide each gradient by before, as Sener and Koltun's code does:
        "none", its length ("l2"), its loss ("loss"), or both ("loss+"). The weights are then those
        of the gradients as they are.

    Raises:
      ValueError: if the normalization is none of these.
    """
    checks.one_of("normalization", normalization, _NORMALIZATIONS)

    def weights(statistics):
        matrix = base.known_interaction(statistics)
        if normalization in ("l2", "loss+"):
            matrix = gram.cosines(matrix)
        if normalization in ("loss", "loss+"):
            inverse = 1 / base.positive_losses(statistics)
            matrix = matrix * inverse[:, None] * inverse[None, :]
        return solvers.min_norm(matrix, base.known_tasks(statistics))

    by_loss = normalization in ("loss", "loss+")
    made = base.solving(weights)._replace(needs_positive_losses=by_loss)
    if normalization != "none":
        return made
    return made._replace(by_products=products.frank_wolfe(0.0, made))

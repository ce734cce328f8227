"""SDMGrad: MGDA's direction, drawn towards the mean gradient.

References:
  Xiao, Ban and Ji, *Direction-oriented Multi-objective Learning: Simple and Provable Stochastic
  Algorithms*, NeurIPS 2023.
"""

import optax

from ldro_jax import solvers
from ldro_jax.weighting import about, base, gram, products


@about.method(
    about.GRADIENTS,
    weights="MGDA, drawn to the mean",
    paper="Xiao 2023",
    solver="convex",
    scale_free=True,
)
def sdmgrad(strength: optax.ScalarOrSchedule = 0.3) -> base.Weighting:
    r""":math:`(w + λu) / (1 + λ)` with :math:`w = \arg\min_w ½ w^⊤Aw + λ w^⊤Au` over the simplex.

    The quadratic programme is solved as it is; the inner gradient loops of other implementations
    oscillate at their defaults. By products of A (``interaction="products"``) the weights take one
    step of Frank and Wolfe's in each step of the training.

    Args:
      strength: λ; 0 is MGDA, large is the average loss.

    Raises:
      ValueError: if λ is negative or not finite.
    """
    base.check_range("strength", strength)

    def weights(statistics):
        pull = base.value_at(strength, statistics)
        matrix, even = base.known_interaction(statistics), gram.even(statistics)
        linear = pull * gram.dot(matrix, even)
        known = base.known_tasks(statistics)
        nearest, solved = solvers.on_simplex(matrix, linear, known)
        return (nearest + pull * even) / (1 + pull), solved

    made = base.solving(weights)
    return made._replace(by_products=products.frank_wolfe(strength, made))

"""Aioli: the mixing law's own matrix, estimated while the model trains.

References:
  Chen, Hu, Lourie, Cho and Ré, *Aioli: A Unified Optimization Framework for Language Model Data
  Mixing*, ICLR 2025.
"""

import jax.numpy as jnp
import optax

from ldro_jax.weighting import about, base, gram, products


@about.method(
    about.MIXTURES,
    weights="∝ w exp(η 1ᵀA)",
    paper="Chen 2025",
    state="w",
    usual={"weight_lr": 0.5},
    scale_free=True,
)
def aioli(weight_lr: optax.ScalarOrSchedule) -> base.Weighting:
    r""":math:`w ∝ w \exp(η \, 1^⊤ M)`, with A in units of its largest entry as M.

    The paper measures M, how much training on one task lowers the loss of another, by short runs on
    each; to first order that is A. Task j gets more the more it lowers all losses together.

    Args:
      weight_lr: η, the learning rate of the weights.

    Raises:
      ValueError: if the rate is negative or not finite.
    """
    base.check_range("weight_lr", weight_lr)

    def direction(statistics, weights):
        del weights
        matrix = base.known_interaction(statistics)
        inverse = gram.inverse_or_zero(jnp.max(jnp.abs(matrix)))
        return base.value_at(weight_lr, statistics) * jnp.sum(matrix * inverse, axis=0)

    def of_sums(statistics, sums, squares):
        # |A_ij|² ≤ A_ii A_jj, so that the largest entry is on the diagonal.
        inverse = gram.inverse_or_zero(jnp.max(squares))
        return base.value_at(weight_lr, statistics) * sums * inverse

    made = base.exponentiated_gradient(direction, uses_interaction=True)
    return made._replace(by_products=products.along_sums(of_sums, made))

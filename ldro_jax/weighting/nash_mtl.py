"""Nash-MTL: the update that the tasks would agree on in a bargaining game.

References:
  Navon, Shamsian, Achituve, Maron, Kawaguchi, Chechik and Fetaya, *Multi-Task Learning as a
  Bargaining Game*, ICML 2022.
"""

import jax.numpy as jnp
import optax

from ldro_jax import solvers
from ldro_jax.weighting import about, base


@about.method(
    about.GRADIENTS,
    weights="Aw = 1/w (`fairgrad` with α = 1)",
    paper="Navon 2022",
    sums_to="",
    solver="convex",
    scale_free=True,
)
def nash_mtl(max_norm: optax.ScalarOrSchedule = 1.0) -> base.Weighting:
    r"""Solves :math:`A w = 1 / w`, and shortens the update to ``max_norm``.

    The update of the solution has the length √N whatever the gradients are, N the number of tasks
    that have one. The weights are one over lengths of gradients.

    Args:
      max_norm: length of the update at most; inf leaves it at √N.

    Raises:
      ValueError: if the length is not positive.
    """
    base.check_range("max_norm", max_norm, "(0, inf]")

    def weights(statistics):
        one = jnp.ones((), statistics.losses.dtype)
        bargain, solved = solvers.balance(base.known_interaction(statistics), one)
        length = jnp.sqrt(jnp.maximum(jnp.sum(bargain > 0, dtype=one.dtype), 1))
        return bargain * jnp.minimum(1, base.value_at(max_norm, statistics) / length), solved

    return base.solving(weights)

"""Scalarisation: static weights, drawn at random to be searched among.

References:
  Kurin, De Palma, Kostrikov, Whiteson and Kumar, *In Defense of the Unitary Scalarization for Deep
  Multi-Task Learning*, NeurIPS 2022.
  Xin, Ghorbani, Garg, Firat and Gilmer, *Do Current Multi-Task Optimization Methods in Deep
  Learning Even Help?*, NeurIPS 2022.
"""

import jax
import jax.numpy as jnp

from ldro_jax.runtime import checks
from ldro_jax.weighting import about, base


@about.method(
    about.FIXED,
    weights="random, the same in every step",
    paper="Kurin 2022, Xin 2022",
    usual={"draw": 3},
    random=True,
    scale_free=True,
)
def scalarization(
    draw: int | jax.Array, *, concentration: float | jax.Array = 1.0
) -> base.Weighting:
    """Static weights from a Dirichlet distribution, the same in every step.

    What every method has to beat with the same number of runs: a search over static weights, such
    as a grid of ``{"draw": range(20)}``, of which validation chooses. All of them share one
    compiled program.

    Args:
      draw: the number of the draw. 0 is the even weights.
      concentration: of the distribution; the higher, the more even the weights.

    Raises:
      ValueError: if a number is out of range.
    """
    if not isinstance(draw, jax.Array):
        checks.integer("draw", draw, low=0)
    base.check_range("concentration", concentration, "(0, inf)")

    def weights(statistics):
        losses = statistics.losses
        number = jnp.asarray(draw).astype(jnp.int32)
        key = jax.random.fold_in(jax.random.key(0), number)
        alpha = jnp.broadcast_to(jnp.asarray(concentration, losses.dtype), losses.shape)
        drawn = jax.random.dirichlet(key, alpha, dtype=losses.dtype)
        return jnp.where(number == 0, 1 / losses.size, drawn)

    return base.stateless(weights)

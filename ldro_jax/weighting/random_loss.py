"""Random loss weighting, a baseline that most methods have to be compared with.

References:
  Lin, Ye, Zhang and Tsang, *Reasonable Effectiveness of Random Weighting: A Litmus Test for
  Multi-Task Learning*, TMLR 2022.
"""

import jax

from ldro_jax.runtime import checks
from ldro_jax.weighting import about, base


@about.method(
    about.FIXED,
    weights="softmax of a normal sample",
    paper="Lin 2022",
    random=True,
    scale_free=True,
)
def random_loss(*, seed: int = 0) -> base.Weighting:
    """The softmax of a sample of the normal distribution, drawn anew in every step.

    Args:
      seed: of the samples, which are a function of it and of the step.

    Raises:
      ValueError: if the seed is not an integer of 32 bits.
    """
    seed = checks.seed("seed", seed)

    def weights(statistics):
        key = jax.random.fold_in(jax.random.key(seed), statistics.count)
        losses = statistics.losses
        sample = jax.random.normal(key, losses.shape, losses.dtype)
        return jax.nn.softmax(sample, where=base.known_tasks(statistics))

    return base.stateless(weights)

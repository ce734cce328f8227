"""Krum: the gradients that are nearest to the others.

References:
  Blanchard, El Mhamdi, Guerraoui and Stainer, *Machine Learning with Adversaries: Byzantine
  Tolerant Gradient Descent*, NIPS 2017.
"""

import jax.numpy as jnp

from ldro_jax.runtime import checks
from ldro_jax.weighting import about, base, gram


@about.method(
    about.GRADIENTS,
    weights="nearest to the others",
    paper="Blanchard 2017",
    usual={"num_outliers": 1, "num_selected": 2},
    scale_free=True,
)
def krum(*, num_outliers: int = 1, num_selected: int = 1, squared: bool = True) -> base.Weighting:
    r"""The mean of the tasks with the smallest sums of distances to their nearest others.

    Of the squared distances :math:`A_{ii} + A_{jj} − 2 A_{ij}` of a task the N − f − 2 smallest are
    summed, where N tasks are known; while they are fewer than f + 3, weights are even.

    Args:
      num_outliers: f, how many tasks may be far from all others.
      num_selected: how many tasks to take; tied ones share.
      squared: whether to sum the squares of distances, as in the paper, or distances, as TorchJD
        does.

    Raises:
      ValueError: if a number is not what it must be, or there are too few tasks.
    """
    num_outliers = checks.integer("num_outliers", num_outliers, low=0)
    num_selected = checks.integer("num_selected", num_selected)
    checks.flag("squared", squared)

    def weights(statistics):
        total = statistics.losses.size
        if total < num_outliers + 3 or num_selected > total:
            raise ValueError(
                f"krum needs num_outliers + 3 tasks or more and num_selected of them, but there "
                f"are {total} with num_outliers={num_outliers} and num_selected={num_selected}."
            )
        known = base.known_tasks(statistics)
        matrix = base.known_interaction(statistics)
        scale = jnp.max(gram.lengths(matrix))
        matrix = matrix / jnp.where(scale > 0, scale, 1) ** 2
        lengths = jnp.diagonal(matrix)
        distances = jnp.maximum(lengths[:, None] + lengths[None, :] - 2 * matrix, 0)
        distances = distances if squared else jnp.sqrt(distances)
        # The task itself is nearest of all, and one that isn't known is far from all.
        distances = jnp.where(jnp.eye(total, dtype=bool), -1, distances)
        distances = jnp.sort(jnp.where(known[None, :], distances, jnp.inf), axis=1)[:, 1:]
        count = jnp.sum(known, dtype=jnp.int32)
        counted = jnp.arange(total - 1, dtype=jnp.int32) < count - num_outliers - 2
        scores = jnp.sum(jnp.where(counted, distances, 0), axis=1)
        return _smallest(jnp.where(known, scores, jnp.inf), num_selected)

    return base.stateless(weights, uses_interaction=True)


def _smallest(scores, count):
    """Even weights for the smallest, of which tied ones share; none for those at infinity."""
    rounding = 8 * jnp.finfo(scores.dtype).eps
    least, others = scores[:, None] * (1 - rounding), scores[None, :]
    better = jnp.sum(others < least, axis=1)
    tied = jnp.sum((others >= least) & (others * (1 - rounding) <= scores[:, None]), axis=1)
    places = jnp.clip(count - better, 0, tied).astype(scores.dtype) / tied.astype(scores.dtype)
    places = jnp.where(jnp.isfinite(scores), places, 0)
    return places / jnp.sum(places)

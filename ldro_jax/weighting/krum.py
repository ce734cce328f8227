"""Krum: the gradients that are nearest to the others.

References:
  Blanchard, El Mhamdi, Guerraoui and Stainer, *Machine Learning with Adversaries: Byzantine
  Tolerant Gradient Descent*, NIPS 2017.
"""

import jax.numpy as jnp

from ldro_jax import checks
from ldro_jax.weighting import base, gram


def krum(*, num_outliers: int = 1, num_selected: int = 1) -> base.Weighting:
    r"""The mean of the tasks with the smallest sums of distances to their nearest others.

    Of the distances :math:`\sqrt{A_{ii} + A_{jj} − 2 A_{ij}}` of a task the N − f − 2 smallest are
    summed.

    Args:
      num_outliers: f, how many tasks may be far from all others.
      num_selected: how many tasks to take; tied ones share.

    Returns:
      The :class:`~ldro_jax.weighting.base.Weighting`, stateless; the weights sum to one.

    Raises:
      ValueError: if a number is not what it must be, or there are too few tasks.
    """
    num_outliers = checks.integer("num_outliers", num_outliers, low=0)
    num_selected = checks.integer("num_selected", num_selected)

    def weights(statistics):
        count = statistics.losses.size
        nearest = count - num_outliers - 2
        if nearest < 1 or num_selected > count:
            raise ValueError(
                f"krum needs num_outliers + 3 tasks or more and num_selected of them, but there "
                f"are {count} with num_outliers={num_outliers} and num_selected={num_selected}."
            )
        scale = jnp.max(gram.norms(statistics.interaction))
        matrix = statistics.interaction / jnp.where(scale > 0, scale, 1) ** 2
        squared = jnp.diagonal(matrix)
        distances = jnp.sqrt(jnp.maximum(squared[:, None] + squared[None, :] - 2 * matrix, 0))
        # Not the task itself, which is nearest of all.
        scores = jnp.sum(jnp.sort(distances, axis=1)[:, 1 : nearest + 1], axis=1)
        better = jnp.sum(scores[None, :] < scores[:, None], axis=1)
        tied = jnp.sum(scores[None, :] == scores[:, None], axis=1)
        places = jnp.clip(num_selected - better, 0, tied).astype(squared.dtype)
        return places / tied.astype(squared.dtype) / num_selected

    return base.stateless(weights)._replace(uses_interaction=True)

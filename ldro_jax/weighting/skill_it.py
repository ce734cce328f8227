"""Skill-It: data for the skills that others need and that are learned worst.

References:
  Chen, Roberts, Bhatia, Wang, Zhang, Sala and Ré, *Skill-it! A Data-driven Skills Framework for
  Understanding and Training Language Models*, NeurIPS 2023.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
import optax

from ldro_jax import checks
from ldro_jax.weighting import base, gram


def skill_it(
    weight_lr: optax.ScalarOrSchedule, *, skills: Sequence[Sequence[float]]
) -> base.Weighting:
    r""":math:`w ∝ w \exp(η M ℓ)`, with a graph of skills that was measured before.

    Args:
      weight_lr: η, the learning rate of the weights. A number or an Optax schedule.
      skills: M, ``[N, N]``; M_ij is how much training on task i helps task j.

    Returns:
      The :class:`~ldro_jax.weighting.base.Weighting`; the weights sum to one.

    Raises:
      ValueError: if the rate is negative, or the graph is not a square of finite numbers or has
        another number of tasks.
    """
    base.check_range("weight_lr", weight_lr)
    graph = np.asarray(skills)
    square = graph.ndim == 2 and len(graph) == len(graph.T) and graph.dtype.kind in "iuf"
    square = square and bool(np.isfinite(graph).all())
    checks.require(square, "skills", "a square matrix of finite numbers", skills)

    def direction(statistics, weights):
        del weights
        losses = statistics.losses
        base.check_per_task("skills", graph[0], losses.size)
        gain = gram.dot(jnp.asarray(graph, losses.dtype), losses)
        return base.value_at(weight_lr, statistics) * gain

    return base.exponentiated_gradient(direction)

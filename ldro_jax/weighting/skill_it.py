"""Skill-It: data for the skills that others need and that are learned worst.

References:
  Chen, Roberts, Bhatia, Wang, Zhang, Sala and Ré, *Skill-it! A Data-driven Skills Framework for
  Understanding and Training Language Models*, NeurIPS 2023.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ldro_jax.runtime import checks
from ldro_jax.weighting import about, base, gram


class LossesState(NamedTuple):
    """State of :func:`skill_it`: the losses of the last steps, ``[window, N]``.

    The newest come first, and there is inf where there was none.
    """

    losses: jax.Array


@about.method(
    about.MIXTURES,
    weights="∝ exp(ηMℓ), ℓ summed over 3 steps",
    paper="Chen 2023",
    state="3 losses",
    usual=lambda numbers: {
        "weight_lr": 0.1,
        "skills": np.minimum.outer(numbers, numbers) / numbers,
    },
)
def skill_it(
    weight_lr: optax.ScalarOrSchedule,
    *,
    skills: Sequence[Sequence[float]],
    window: int | None = 3,
) -> base.Weighting:
    r""":math:`w ∝ \exp(η M Σ_{τ} ℓ_τ)`, the sum over a window, with a graph M of skills.

    The graph was measured before. In the paper the losses are those of rounds of many steps; here
    every step is one. Its weights before any loss is measured, :math:`∝ \exp(η M 1)`, aren't needed
    here, where losses are measured before the first step. The method needs positive losses: they
    say how much of each skill is left to learn.

    Args:
      weight_lr: η, the learning rate of the weights.
      skills: M, ``[N, N]``; M_ij is how much training on task i helps task j.
      window: over how many steps the losses are summed, 3 in the paper; ``None`` for all steps so
        far, which is :math:`w ∝ w \exp(η M ℓ)` from even weights.

    Raises:
      ValueError: if the rate is negative, the window not a positive integer, or the graph not a
        square of finite numbers or of another number of tasks.
    """
    base.check_range("weight_lr", weight_lr)
    graph = np.asarray(skills)
    square = graph.ndim == 2 and len(graph) == len(graph.T) and graph.dtype.kind in "iuf"
    square = square and bool(np.isfinite(graph).all())
    checks.require(square, "skills", "a square matrix of finite numbers", skills)

    def gains(statistics, losses):
        base.check_per_task("skills", graph[0], losses.size)
        gain = gram.dot(jnp.asarray(graph, losses.dtype), losses)
        return base.value_at(weight_lr, statistics) * gain

    def direction(statistics, weights):
        del weights
        return gains(statistics, jnp.where(base.known_tasks(statistics), statistics.losses, 0))

    if window is None:
        return base.exponentiated_gradient(direction)._replace(needs_positive_losses=True)
    window = checks.integer("window", window)

    def init(num_tasks, dtype=jnp.float32):
        return LossesState(jnp.full((window, num_tasks), jnp.inf, dtype))

    def update(statistics, state):
        known = base.known_tasks(statistics)
        newest = jnp.where(known, statistics.losses, jnp.inf)
        losses = jnp.concatenate([newest[None, :], state.losses[:-1]])
        held = jnp.isfinite(losses)
        counts = jnp.sum(held, axis=0, dtype=losses.dtype)
        means = jnp.sum(losses, axis=0, where=held) / jnp.maximum(counts, 1)
        # A task that came later counts as if it had had its mean before, too.
        logits = gains(statistics, jnp.max(counts) * means)
        return jax.nn.softmax(logits, where=known), LossesState(losses)

    return base.Weighting(init, update, needs_positive_losses=True)

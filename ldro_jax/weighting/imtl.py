"""IMTL: impartial to the tasks, in their gradients (IMTL-G) or in their losses (IMTL-L).

References:
  Liu, Li, Kuang, Xue, Chen, Yang, Liao and Zhang, *Towards Impartial Multi-Task Learning*, ICLR
  2021.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from ldro_jax.weighting import about, base, gram


@about.method(
    about.GRADIENTS,
    weights="equal projections; ConFIG where `total=1`",
    paper="Liu 2021",
    signed=True,
    solver="convex",
    scale_free=True,
)
def imtl_g() -> base.Weighting:
    r"""The update has the same projection on the direction of every gradient.

    :math:`A^+ d / 1^⊤ A^+ d`, with the gradients' lengths d; computed from the cosines, so that
    tasks of any scale take part. Weights can be negative.
    """

    def weights(statistics):
        matrix = base.known_interaction(statistics)
        lengths = gram.lengths(matrix)
        shortest = jnp.min(jnp.where(lengths > 0, lengths, jnp.inf))
        relative = jnp.where(lengths > 0, shortest / jnp.where(lengths > 0, lengths, 1), 0)
        z, solved = gram.pseudo_solve(gram.cosines(matrix), lengths)
        solution = z * relative
        total = jnp.sum(solution)
        lost = jnp.abs(total) <= 4 * jnp.finfo(total.dtype).eps * jnp.sum(jnp.abs(solution))
        weights = jnp.where(lost, gram.even(statistics), solution / jnp.where(lost, 1, total))
        return weights, solved & ~(lost & (lengths > 0).any())

    return base.solving(weights)


class ScalesState(NamedTuple):
    """State of :func:`imtl_l`: s, ``[N]``; task i has the weight exp(s_i)."""

    scales: jax.Array


def no_scales(num_tasks: int, dtype: jax.typing.DTypeLike = jnp.float32) -> ScalesState:
    """Scales of zero."""
    return ScalesState(jnp.zeros(num_tasks, dtype))


def learned_scales(
    statistics: base.Statistics, scales: jax.Array, steps: jax.Array, best: jax.Array
) -> ScalesState:
    """The scales after a gradient step that goes no further than to the minimum of its loss.

    Far from it the slope is an exponential of the distance, so that a plain step could go so far
    beyond that the weight becomes zero or infinite. A scale stays where it is while its loss isn't
    positive, when there is no minimum, and at zero while its task is unknown.

    Args:
      statistics: this step's statistics.
      scales: s, ``[N]``.
      steps: what the learning rate makes of the slopes, to be added, ``[N]``.
      best: the scales for which this step's losses have their minimum, ``[N]``.
    """
    moved = scales + steps
    moved = jnp.where(best > scales, jnp.minimum(moved, best), jnp.maximum(moved, best))
    moved = jnp.where(statistics.losses > 0, moved, scales)
    return ScalesState(jnp.where(base.known_tasks(statistics), moved, 0))


@about.method(
    about.SCALES,
    weights="exp(s), s learned",
    paper="Liu 2021",
    state="s",
    sums_to="",
    usual={"weight_lr": 0.1},
)
def imtl_l(weight_lr: optax.ScalarOrSchedule) -> base.Weighting:
    r"""Scales the losses to one: weights :math:`e^{s_i}`, with s learned on :math:`e^s ℓ − s`.

    The weights begin at one and tend to 1 / ℓ. The method needs positive losses.

    Args:
      weight_lr: learning rate of s.

    Raises:
      ValueError: if the rate is negative or not finite.
    """
    base.check_range("weight_lr", weight_lr)

    def update(statistics, state):
        weights = jnp.exp(state.scales)
        steps = -base.value_at(weight_lr, statistics) * (weights * statistics.losses - 1)
        best = -jnp.log(base.positive_losses(statistics))
        weights = jnp.where(base.known_tasks(statistics), weights, 0)
        return weights, learned_scales(statistics, state.scales, steps, best)

    return base.Weighting(no_scales, update, needs_positive_losses=True)

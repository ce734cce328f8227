"""Smooth Tchebycheff scalarisation: a smooth maximum of what each loss is above the best known.

References:
  Lin, Zhang, Yang, Liu, Wang and Zhang, *Smooth Tchebycheff Scalarization for Multi-Objective
  Optimization*, ICML 2024.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from ldro_jax.weighting import about, base


class IdealState(NamedTuple):
    """State of :func:`stch`: z*, the least loss of each task so far, ``[N]``; inf while unknown."""

    ideal: jax.Array


@about.method(
    about.WORST,
    weights="softmax((ℓ − best)/μ)",
    paper="Lin 2024",
    state="least losses",
    usual={"smoothing": 0.1},
    variants={"preferences": lambda numbers: {"smoothing": 0.1, "preferences": numbers}},
)
def stch(
    smoothing: optax.ScalarOrSchedule, *, preferences: Sequence[float] | None = None
) -> base.Weighting:
    r""":math:`p_i \, \mathrm{softmax}(p (ℓ − z^*) / μ)_i`, the gradient of a smooth maximum.

    With preferences the weights don't sum to one.

    Args:
      smoothing: μ, in units of the losses; near 0 the worst task counts alone.
      preferences: p, a positive number for each task; 1 by default.

    Raises:
      ValueError: if μ or a preference is not positive, or their number isn't that of the tasks.
    """
    base.check_range("smoothing", smoothing, "(0, inf)")
    given = None
    if preferences is not None:
        given = base.numbers_per_task("preferences", preferences, positive=True)

    def init(num_tasks, dtype=jnp.float32):
        return IdealState(jnp.full(num_tasks, jnp.inf, dtype))

    def update(statistics, state):
        known, losses = base.known_tasks(statistics), statistics.losses
        p = jnp.ones_like(losses)
        if given is not None:
            base.check_per_task("preferences", given, losses.size)
            p = jnp.asarray(given, losses.dtype)
        ideal = jnp.where(known, jnp.minimum(state.ideal, losses), jnp.inf)
        above = p * (losses - ideal) / base.value_at(smoothing, statistics)
        return p * jax.nn.softmax(above, where=known), IdealState(ideal)

    return base.Weighting(init, update)

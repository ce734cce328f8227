"""Dynamic weight average: tasks whose loss falls slowly get more.

References:
  Liu, Johns and Davison, *End-to-End Multi-Task Learning with Attention*, CVPR 2019.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from ldro_jax.runtime import checks
from ldro_jax.weighting import about, base


class WindowsState(NamedTuple):
    """State of :func:`dwa`.

    Attributes:
      total: sum of the losses in this window so far, ``[N]``.
      seen: of how many steps each, int32 ``[N]``: those in which the task was known.
      count: steps of this window so far, an int32 scalar.
      last: mean loss in the window before, ``[N]``; zeros while there is none.
      before_last: that of the one before it, ``[N]``; zeros while there is none.
    """

    total: jax.Array
    seen: jax.Array
    count: jax.Array
    last: jax.Array
    before_last: jax.Array


@about.method(
    about.SCALES,
    weights="softmax of loss ratios of windows",
    paper="Liu 2019",
    state="two means",
    sums_to="N",
    usual={"window": 1},
    scale_free=True,
)
def dwa(*, window: int, temperature: optax.ScalarOrSchedule = 2.0) -> base.Weighting:
    r""":math:`N \, \mathrm{softmax}(r / T)`, r the ratio of mean losses in the last two windows.

    A task has the weight one in its first two windows. The method needs positive losses.

    Args:
      window: steps of a window; the paper's is an epoch.
      temperature: T.

    Raises:
      ValueError: if the window is not a positive integer, or T is not positive.
    """
    window = checks.integer("window", window)
    base.check_range("temperature", temperature, "(0, inf)")

    def init(num_tasks, dtype=jnp.float32):
        zeros = jnp.zeros(num_tasks, dtype)
        steps = jnp.zeros(num_tasks, jnp.int32)
        return WindowsState(zeros, steps, jnp.zeros([], jnp.int32), zeros, zeros)

    def update(statistics, state):
        known, losses = base.known_tasks(statistics), statistics.losses
        ready = known & (state.last > 0) & (state.before_last > 0)
        ratio = state.last / jnp.where(ready, state.before_last, 1)
        shares = jax.nn.softmax(ratio / base.value_at(temperature, statistics), where=ready)
        weights = jnp.where(ready, jnp.sum(ready, dtype=losses.dtype) * shares, 1)
        total = jnp.where(known, state.total + losses, 0)
        seen = jnp.where(known, state.seen + 1, 0)
        count = state.count + 1
        mean = total / jnp.maximum(seen, 1).astype(total.dtype)
        zeros = jnp.zeros_like
        ended = WindowsState(zeros(total), zeros(seen), zeros(count), mean, state.last)
        going_on = WindowsState(total, seen, count, state.last, state.before_last)
        full = count >= window
        new = jax.tree.map(lambda a, b: jnp.where(full, a, b), ended, going_on)
        return jnp.where(known, weights, 0), new

    return base.Weighting(init, update, needs_positive_losses=True)

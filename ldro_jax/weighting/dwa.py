"""Dynamic weight average: tasks whose loss falls slowly get more.

References:
  Liu, Johns and Davison, *End-to-End Multi-Task Learning with Attention*, CVPR 2019.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from ldro_jax import checks
from ldro_jax.weighting import base, gram


class WindowsState(NamedTuple):
    """State of :func:`dwa`.

    Attributes:
      total: sum of the losses in this window so far, ``[N]``.
      count: of how many steps, an int32 scalar.
      last: mean loss in the window before, ``[N]``; zeros while there is none.
      before_last: that of the one before it, ``[N]``; zeros while there is none.
    """

    total: jax.Array
    count: jax.Array
    last: jax.Array
    before_last: jax.Array


def dwa(*, window: int, temperature: optax.ScalarOrSchedule = 2.0) -> base.Weighting:
    r""":math:`N \, \mathrm{softmax}(r / T)`, r the ratio of mean losses in the last two windows.

    Args:
      window: steps of a window; the paper's is an epoch.
      temperature: T. A number or an Optax schedule.

    Returns:
      The :class:`~ldro_jax.weighting.base.Weighting`; the weights sum to N, and are one in the
      first two windows.

    Raises:
      ValueError: if the window is not a positive integer, or T is not positive.
    """
    window = checks.integer("window", window)
    base.check_range("temperature", temperature, "(0, inf)")

    def init(num_tasks, dtype=jnp.float32):
        zeros = jnp.zeros(num_tasks, dtype)
        return WindowsState(zeros, jnp.zeros([], jnp.int32), zeros, zeros)

    def update(statistics, state):
        ratio = state.last * gram.inverse_or_zero(state.before_last)
        shares = jax.nn.softmax(ratio / base.value_at(temperature, statistics))
        total = state.total + statistics.losses
        count = state.count + 1
        ended = WindowsState(
            jnp.zeros_like(total), jnp.zeros_like(count), total / window, state.last
        )
        going_on = WindowsState(total, count, state.last, state.before_last)
        full = count >= window
        new = jax.tree.map(lambda a, b: jnp.where(full, a, b), ended, going_on)
        return ratio.size * shares, new

    return base.Weighting(init, update)

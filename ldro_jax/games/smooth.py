"""The equilibrium of a matrix game whose players both pay for leaving the even strategy."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

_MAX_STEPS = 60
# A logarithm of no weight at all that can still be subtracted.
_NONE = -200.0


class SmoothEquilibrium(NamedTuple):
    """Equilibrium of a game with entropy.

    Attributes:
      weights: w, the column player's strategy, ``[M]``, on the simplex.
      adversary: v, the row player's, ``[N]``.
      steps: Newton steps taken, int32.
      solved: whether the last step was so small that what it leaves is rounding, bool. Otherwise
        the strategies are those after the last step that could be taken.
    """

    weights: jax.Array
    adversary: jax.Array
    steps: jax.Array
    solved: jax.Array


@functools.partial(jax.jit, inline=True)
def smooth_equilibrium(
    losses: jax.Array,
    decrease: jax.Array,
    *,
    column_temperature: jax.Array,
    row_temperature: jax.Array,
    start: jax.Array | None = None,
    playing: jax.Array | None = None,
) -> SmoothEquilibrium:
    r"""Solves :math:`\min_w \max_v v^⊤ (ℓ 1^⊤ − B) w + τ \, KL(w‖u) − σ \, KL(v‖u)`, u uniform.

    The equilibrium is unique and a smooth function of the payoffs:
    :math:`v ∝ \exp((ℓ − B w) / σ)` and :math:`w ∝ \exp(B^⊤ v / τ)`. It is found by Newton's method
    on log w and log v together, from high temperatures down to those that are asked for. For τ,
    σ → 0 it is an equilibrium of the game itself.

    Args:
      losses: ℓ, ``[N]``.
      decrease: B, ``[N, M]``.
      column_temperature: τ, positive, in units of the payoffs; no less is taken than a thousandth
        of the range of the payoffs, in float64 a hundred-thousandth.
      row_temperature: σ, the same.
      start: w to begin with, ``[M]``; uniform by default.
      playing: bool ``[N]``, for N = M: the rows and columns that count, all by default. The others
        get no weight, u is uniform over those that count, and what is said of the others makes no
        difference.

    Returns:
      The equilibrium. Gradients stop at it.
    """
    losses, decrease = lax.stop_gradient((losses, decrease))
    dtype = losses.dtype
    count = decrease.shape[1]
    eps = jnp.finfo(dtype).eps
    rows = jnp.ones(losses.shape, bool) if playing is None else playing
    columns = jnp.ones(count, bool) if playing is None else playing
    losses_range = _range(losses, rows)
    decrease_range = _range(decrease, rows[:, None] & columns[None, :])
    decrease = jnp.where(rows[:, None] & columns[None, :], decrease, 0)
    losses = jnp.where(rows, losses, jnp.min(jnp.where(rows, losses, jnp.inf)))
    prior_v, prior_w = (jnp.where(x, 0, _NONE).astype(dtype) for x in (rows, columns))
    game = _Game(losses, decrease, prior_w, prior_v)
    # At lower temperatures rounding decides: the equilibrium there is as near to the game's own.
    lowest = max(2**13 * eps, 1e-5) * jnp.maximum(losses_range, decrease_range)
    tau, sigma = (
        jnp.maximum(jnp.asarray(t, dtype), lowest) for t in (column_temperature, row_temperature)
    )

    def advance(carry):
        log_w, log_v, heat, _, step = carry
        t, s = tau * heat, sigma * heat
        w, v = jnp.exp(log_w), jnp.exp(log_v)
        change_w, change_v = game.newton((w, v), (log_w, log_v), t, s)
        small = 16 * eps / count
        size = jnp.maximum(
            jnp.max(jnp.where(w > small, jnp.abs(change_w), 0)),
            jnp.max(jnp.where(v > small, jnp.abs(change_v), 0)),
        )
        length = jnp.minimum(1, 2 / jnp.maximum(size, 1))
        new_w = jax.nn.log_softmax(log_w + jnp.clip(length * change_w, -8, 8))
        new_v = jax.nn.log_softmax(log_v + jnp.clip(length * change_v, -8, 8))
        usable = jnp.isfinite(new_w).all() & jnp.isfinite(new_v).all()
        cooler = jnp.maximum(1, jnp.where(size < 1, heat / 4, heat))
        # It is done when a step at the temperatures themselves was small.
        size = jnp.where(heat > 1, jnp.ones_like(size), size)
        return (
            jnp.where(usable, new_w, log_w),
            jnp.where(usable, new_v, log_v),
            cooler,
            jnp.where(usable, size, jnp.nan),
            step + 1,
        )

    def unfinished(carry):
        _, _, _, size, step = carry
        return (size > small_enough) & (step < _MAX_STEPS)

    even = jax.nn.log_softmax(prior_w)
    log_w = even
    if start is not None:
        log_w = jnp.log(jnp.maximum(start, jnp.finfo(dtype).tiny))
        log_w = jax.nn.log_softmax(jnp.where(columns, log_w, _NONE))
    log_v = jax.nn.log_softmax((losses - _dot(decrease, jnp.exp(log_w))) / sigma + prior_v)
    # Hot players hardly move from the even strategies: from there on they are cooled, unless the
    # start is near the solution already.
    gap = _dot(decrease.T, jnp.exp(log_v)) / tau - log_w
    near = _range(gap, columns) < 1
    exponent = jnp.maximum(losses_range / sigma, decrease_range * (1 / tau + 1 / sigma))
    heat = jnp.where(near, 1, jnp.maximum(exponent / 4, 1))
    # Newton's method squares what is left, times at most what the exponents change by: the next
    # step would be the rounding of the exponents.
    rounding = 2 * eps * (32 + exponent)
    small_enough = jnp.sqrt(rounding / (1 + exponent))
    log_w = jnp.where(near, log_w, even)
    log_v = jnp.where(near, log_v, jax.nn.log_softmax(losses / (sigma * heat) + prior_v))
    carry = (log_w, log_v, heat, jnp.ones((), dtype), jnp.int32(0))
    log_w, log_v, _, size, steps = lax.while_loop(unfinished, advance, carry)
    w, v = jnp.where(columns, jnp.exp(log_w), 0), jnp.where(rows, jnp.exp(log_v), 0)
    return SmoothEquilibrium(w, v, steps, size <= small_enough)


class _Game(NamedTuple):
    """ℓ, B, and the logarithms of u for w and for v, up to a constant."""

    losses: jax.Array
    decrease: jax.Array
    prior_w: jax.Array
    prior_v: jax.Array

    def newton(self, strategies, logs, tau, sigma):
        """The Newton step of log w and log v at these temperatures."""
        losses, decrease, prior_w, prior_v = self
        (w, v), (log_w, log_v) = strategies, logs
        # What log w and log v are short of, each up to a constant.
        pull = _dot(decrease.T, v)
        short_w = pull / tau + prior_w - log_w
        short_v = (losses - _dot(decrease, w)) / sigma + prior_v - log_v
        short_w, short_v = short_w - w @ short_w, short_v - v @ short_v
        # The rows' changes eliminated, and those of w times their root as unknowns: the matrix is
        # then one plus something positive.
        root = jnp.sqrt(w)
        centred = (decrease - pull[None, :]) * root[None, :]
        curvature = _dot(centred.T, v[:, None] * centred) / (sigma * tau)
        matrix = curvature + jnp.eye(w.size, dtype=w.dtype)
        target = root * short_w + _dot(centred.T, v * short_v) / tau
        factor = jax.scipy.linalg.cho_factor(matrix)
        both = jax.scipy.linalg.cho_solve(factor, jnp.stack([target, root], axis=1))
        x = both[:, 0] - both[:, 1] * (root @ both[:, 0]) / (root @ both[:, 1])
        change_v = short_v - _dot(centred, x) / sigma
        change_v = change_v - v @ change_v
        # The same of w, from the equation that has no division by a root that may vanish.
        change_w = short_w + _dot((decrease - pull[None, :]).T, v * change_v) / tau
        return change_w - w @ change_w, change_v


def _dot(a, b):
    return jnp.dot(a, b, precision=lax.Precision.HIGHEST)


def _range(values, counted):
    """The largest minus the smallest of those that count."""
    highest = jnp.max(jnp.where(counted, values, -jnp.inf))
    return highest - jnp.min(jnp.where(counted, values, jnp.inf))

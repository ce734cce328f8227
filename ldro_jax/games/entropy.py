"""Stage 2: the point of greatest entropy on the optimal face of a game."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ldro_jax.games import newton


class _Entropic(NamedTuple):
    """A point of the face: w = softmax(-L^T u) on the used columns, L w + s = t, sum(u) = pull."""

    u: jax.Array
    s: jax.Array
    t: jax.Array
    w: jax.Array
    mu: jax.Array
    pull: jax.Array
    damping: jax.Array


def maximise_entropy(payoff, used, tight):
    """Maximum-entropy w on the `used` columns; `payoff` is shifted so that the value is zero."""
    dtype = payoff.dtype
    excess_tolerance = float(jnp.finfo(dtype).eps) ** 0.8
    entropy_tolerance = float(jnp.finfo(dtype).eps) ** 0.7

    def strategy(u):
        return jax.nn.softmax(jnp.where(used, -(payoff.T @ u), -jnp.inf))

    def unfinished(carry):
        _, _, best, stalled, step = carry
        return (best > 1) & (stalled < newton.PATIENCE) & (step < newton.MAX_STEPS)

    def advance(carry):
        point, best_w, best, stalled, step = carry
        u, s, t, w, mu, pull, damping = point
        residual = payoff @ w + s - t
        # A tight row has no slack, and its multiplier may have either sign.
        row = jnp.where(tight, 1, u)
        # In proportion to the second moment of the row under w, the size of its Hessian block: a
        # task of small payoffs must not be damped by the large payoffs of the others.
        moment = jnp.square(payoff) @ w
        eps = jnp.finfo(dtype).eps
        solve = newton.solver(payoff, w, jnp.ones_like(w), row, s, damping * (moment + eps))
        us = jnp.where(tight, 0, mu - s * u)
        zero = jnp.zeros_like(w)
        dw, du, dtheta, dt = solve(zero, -us - row * residual, jnp.sum(zero), pull - jnp.sum(u))
        ds = jnp.where(u > s, (us - s * du) / row, dt - payoff @ dw - residual)
        ds = jnp.where(tight, 0, ds)
        length = newton.longest_step(
            0.95, (row, jnp.where(tight, 0, du)), (jnp.where(tight, 1, s), ds)
        )
        # The model of the entropy holds while no weight changes by much more than a factor e^2.
        change = jnp.max(jnp.where(used, jnp.abs(dtheta - payoff.T @ du), 0))
        length = jnp.minimum(length, 2 / jnp.maximum(change, 1))

        u, s, t = u + length * du, s + length * ds, t + length * dt
        w = strategy(u)
        rows = payoff @ w
        excess = jnp.max(rows)
        # Weak duality: no w with L w <= 0 has an entropy larger than H(w) - u^T L w, for u >= 0.
        score = jnp.maximum(excess / excess_tolerance, jnp.abs(u @ rows) / entropy_tolerance)
        # Were the face exact, any pull would do: the tight rows alone fix t. If a column or a row
        # is on the wrong side, a stronger pull on t repairs it, at the price of larger u; so only
        # once the steps have become small.
        near = length > 0.5
        harder = near & (change < 0.01) & (mu < 1e-4) & (excess > excess_tolerance / 4)
        new = _Entropic(
            u, s, t, w, jnp.where(near, 0.2 * mu, mu), jnp.where(harder, 3 * pull, pull), damping
        )
        valid = jnp.isfinite(score)
        better = valid & (score < best)
        stalled = jnp.where(better, 0, stalled + 1)
        best_w, best = newton.select(better, (w, score), (best_w, best))
        point = newton.select(valid, new, point)
        # The pivot between two duplicated rows was rounding: no step at all, or one far too long.
        lost = ~valid | (length < 0.01)
        point = point._replace(damping=jnp.where(lost, jnp.minimum(64 * damping, 0.01), damping))
        return point, best_w, best, stalled, step + 1

    u = jnp.where(tight, 0, jnp.full(payoff.shape[0], 1 / payoff.shape[0], dtype))
    w = strategy(u)
    rows = payoff @ w
    t = jnp.max(rows) + 0.5
    s = jnp.where(tight, 0, t - rows)
    mu = u @ s / jnp.maximum(jnp.sum(~tight), 1).astype(dtype)
    # A few times the rounding, or the pivot between two duplicated rows would be noise.
    damping = 128 * jnp.finfo(dtype).eps * jnp.ones_like(t)
    point = _Entropic(u, s, t, w, mu, jnp.ones_like(t), damping)
    carry = (point, w, jnp.full_like(t, jnp.inf), 0, 0)
    _, best_w, _, _, _ = lax.while_loop(unfinished, advance, carry)
    return best_w

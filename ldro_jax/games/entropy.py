"""Stage 2: the point of greatest entropy on the optimal face of a game."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ldro_jax.games import newton

_PATIENCE = 12


class _Entropic(NamedTuple):
    """A point of the face: w = softmax(-L^T u) on the used columns, L w + s = t, sum(u) = pull."""

    u: jax.Array
    s: jax.Array
    t: jax.Array
    log_w: jax.Array
    mu: jax.Array
    pull: jax.Array
    damping: jax.Array


class _Best(NamedTuple):
    """The most even w found so far, its entropy, and an upper bound of every optimal w's."""

    w: jax.Array
    entropy: jax.Array
    bound: jax.Array


def entropy(w: jax.Array) -> jax.Array:
    """In nats."""
    return jnp.sum(jax.scipy.special.entr(w))


def maximise_entropy(
    payoff: jax.Array, inside: jax.Array, used: jax.Array, tight: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Maximum-entropy w on the `used` columns.

    `payoff` is shifted so that the value is zero, which `inside`, a strategy, doesn't exceed.
    Returns the weights, and by how much at most their entropy falls short.
    """
    eps = float(jnp.finfo(payoff.dtype).eps)
    excess_tolerance, entropy_tolerance = 0.7 * eps**0.8, eps**0.7

    def unfinished(carry):
        _, _, best_score, stalled, step = carry
        return (best_score > 1) & (stalled < _PATIENCE) & (step < newton.MAX_STEPS)

    def advance(carry):
        point, best, best_score, stalled, step = carry
        u, s, t, log_w, mu, pull, damping = point
        du, ds, dt, change_w, length = _direction(payoff, used, tight, point)
        # The model of the entropy holds while no weight changes by much more than a factor e^2.
        change = jnp.max(jnp.abs(change_w))
        length = jnp.minimum(length, 2 / jnp.maximum(change, 1))
        # Changes are added up, since -L^T u has few correct digits where u has become large.
        u, s, t = u + length * du, s + length * ds, t + length * dt
        log_w = _normalised(log_w + length * change_w, used)
        w = jnp.exp(log_w)
        rows = payoff @ w
        excess, slackness = jnp.max(rows), u @ rows
        score = jnp.maximum(excess / excess_tolerance, jnp.abs(slackness) / entropy_tolerance)
        # What exceeds the value by too much is mixed with what doesn't.
        share = jnp.where(excess > excess_tolerance, 1 - excess_tolerance / excess, 0)
        mixed = jnp.where(share > 0, w + share * (inside - w), w)
        # Weak duality: no w with L w <= 0 has an entropy larger than H(w) - u^T L w, for u >= 0.
        mixed_entropy, bound = entropy(mixed), entropy(w) - slackness

        # Were the face exact, any pull would do: the tight rows alone fix t. If a column or a row
        # is on the wrong side, a stronger pull on t repairs it, at the price of larger u; so only
        # once the steps have become small and don't help.
        near = length > 0.5
        slow = near & (stalled > 0)
        harder = slow & (change < 0.01) & (mu < 1e-4) & (excess > excess_tolerance / 4)
        new = _Entropic(
            *(u, s, t, log_w),
            mu=jnp.where(near, 0.2 * mu, mu),
            pull=jnp.where(harder, 3 * pull, pull),
            damping=damping,
        )
        valid = jnp.isfinite(score)
        # One that is done is right; of the others the most even one is best.
        better = valid & ((mixed_entropy > best.entropy) | (score <= 1))
        w, mixed_entropy = newton.select(better, (mixed, mixed_entropy), (best.w, best.entropy))
        bound = jnp.where(valid, jnp.minimum(best.bound, bound), best.bound)
        best = _Best(w, mixed_entropy, bound)
        progress = valid & (score < best_score)
        stalled = jnp.where(progress, 0, stalled + 1)
        best_score = jnp.where(progress, score, best_score)
        point = newton.select(valid, new, point)
        # The pivot between two duplicated rows was rounding: no step at all, or one far too long.
        # The damping of two nearly duplicated ones was more than the difference between them.
        lost = ~valid | (length < 0.01)
        damping = jnp.where(lost, jnp.minimum(64 * damping, 0.01), damping)
        damping = jnp.where(slow & ~lost & (change < 0.1), damping / 8, damping)
        return point._replace(damping=damping), best, best_score, stalled, step + 1

    point = _start(payoff, used, tight)
    infinity = jnp.full_like(point.t, jnp.inf)
    best = _Best(inside, entropy(inside), infinity)
    _, best, _, _, _ = lax.while_loop(unfinished, advance, (point, best, infinity, 0, 0))
    return best.w, best.bound - best.entropy


def _normalised(log_w, used):
    return jax.nn.log_softmax(jnp.where(used, log_w, -jnp.inf))


def _start(payoff, used, tight):
    u = jnp.where(tight, 0, jnp.full(payoff.shape[0], 1 / payoff.shape[0], payoff.dtype))
    log_w = _normalised(-(payoff.T @ u), used)
    rows = payoff @ jnp.exp(log_w)
    t = jnp.max(rows) + 0.5
    s = jnp.where(tight, 0, t - rows)
    mu = u @ s / jnp.maximum(jnp.sum(~tight), 1).astype(payoff.dtype)
    # A few times the rounding, or the pivot between two duplicated rows would be noise.
    damping = 128 * jnp.finfo(payoff.dtype).eps * jnp.ones_like(t)
    return _Entropic(u, s, t, log_w, mu, jnp.ones_like(t), damping)


def _direction(payoff, used, tight, point):
    """Newton step of u, s, t and log w, and how much of it keeps u and s positive."""
    u, s, t, log_w, mu, pull, damping = point
    w = jnp.exp(log_w)
    residual = payoff @ w + s - t
    # A tight row has no slack, and its multiplier may have either sign.
    row = jnp.where(tight, 1, u)
    # In proportion to the second moment of the row under w, the size of its Hessian block: a
    # task of small payoffs must not be damped by the large payoffs of the others.
    moment = jnp.square(payoff) @ w
    solve = newton.solver(
        payoff, w, jnp.ones_like(w), row, s, damping * (moment + jnp.finfo(w.dtype).eps)
    )
    us = jnp.where(tight, 0, mu - s * u)
    zero = jnp.zeros_like(w)
    dw, du, dtheta, dt = solve(zero, -us - row * residual, jnp.sum(zero), pull - jnp.sum(u))
    ds = jnp.where(u > s, (us - s * du) / row, dt - payoff @ dw - residual)
    ds = jnp.where(tight, 0, ds)
    length = newton.longest_step(0.95, (row, jnp.where(tight, 0, du)), (jnp.where(tight, 1, s), ds))
    return du, ds, dt, jnp.where(used, dtheta - payoff.T @ du, 0), length

"""Stage 2: the point of greatest entropy on the optimal face of a game."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ldro_jax.games import newton

_PATIENCE = 12
# In each step that goes most of its way, the barrier's weight is multiplied with this.
_COOLING = 0.1


class _Entropic(NamedTuple):
    """A point of the face: L w + s = t, sum(u) = pull.

    On the used columns log w = astray - L^T u, but for a constant: nothing is astray at the end.
    """

    u: jax.Array
    s: jax.Array
    t: jax.Array
    log_w: jax.Array
    astray: jax.Array
    mu: jax.Array
    pull: jax.Array
    damping: jax.Array


class _Best(NamedTuple):
    """The most even w found so far, its entropy, and an upper bound of every optimal w's."""

    w: jax.Array
    entropy: jax.Array
    bound: jax.Array


def entropy(w):
    """In nats."""
    return jnp.sum(jax.scipy.special.entr(w))


def maximise_entropy(payoff, inside, used, tight):
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
        u, s, t, log_w, astray, mu, pull, damping = point
        du, ds, dt, change_w, length = _direction(payoff, bordered, used, tight, point)
        # The model of the entropy holds while no weight changes by much more than a factor e^2.
        change = jnp.max(jnp.abs(change_w))
        length = jnp.minimum(length, 2 / jnp.maximum(change, 1))
        # Changes are added up, since -L^T u has few correct digits where u has become large.
        u, s, t = u + length * du, s + length * ds, t + length * dt
        log_w = _normalised(log_w + length * change_w, used)
        astray = (1 - length) * astray
        w = jnp.exp(log_w)
        rows = payoff @ w
        # Weak duality: no w with L w <= 0 has an entropy larger than log sum exp(-L^T u), u >= 0.
        excess, beyond = jnp.max(rows), _beyond(log_w, astray) - u @ rows
        score = jnp.maximum(excess / excess_tolerance, jnp.abs(beyond) / entropy_tolerance)
        # What exceeds the value by too much is mixed with what doesn't.
        share = jnp.where(excess > excess_tolerance, 1 - excess_tolerance / excess, 0)
        mixed = jnp.where(share > 0, w + share * (inside - w), w)
        mixed_entropy, bound = entropy(mixed), entropy(w) + beyond

        # Were the face exact, any pull would do: the tight rows alone fix t. If a column or a row
        # is on the wrong side, a stronger pull on t repairs it, at the price of larger u; so only
        # once the steps have become small and don't help.
        near = length > 0.5
        slow = near & (stalled > 0)
        harder = slow & (change < 0.01) & (mu < 1e-4) & (excess > excess_tolerance / 4)
        new = _Entropic(
            *(u, s, t, log_w, astray),
            mu=jnp.where(near, _COOLING * mu, mu),
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

    bordered = newton.bordered(payoff)
    point = _start(payoff, inside, used, tight)
    infinity = jnp.full_like(point.t, jnp.inf)
    best = _Best(inside, entropy(inside), infinity)
    _, best, _, _, _ = lax.while_loop(unfinished, advance, (point, best, infinity, 0, 0))
    return best.w, best.bound - best.entropy


def _normalised(log_w, used):
    return jax.nn.log_softmax(jnp.where(used, log_w, -jnp.inf))


def _beyond(log_w, astray):
    """By how much log sum exp(log w - astray) exceeds what it is to first order."""
    mean = jnp.exp(log_w) @ astray
    return jax.scipy.special.logsumexp(log_w - (astray - mean))


def _start(payoff, inside, used, tight):
    """At `inside`, which is the only point of most faces, and with a low barrier."""
    u = jnp.where(tight, 0, jnp.full(payoff.shape[0], 0.01 / payoff.shape[0], payoff.dtype))
    log_w = _normalised(jnp.log(jnp.where(used, inside, 1)), used)
    astray = jnp.where(used, log_w + payoff.T @ u, 0)
    rows = payoff @ jnp.exp(log_w)
    t = jnp.max(rows) + 0.1
    s = jnp.where(tight, 0, t - rows)
    mu = u @ s / jnp.maximum(jnp.sum(~tight), 1).astype(payoff.dtype)
    # A few times the rounding, or the pivot between two duplicated rows would be noise.
    damping = 128 * jnp.finfo(payoff.dtype).eps * jnp.ones_like(t)
    return _Entropic(u, s, t, log_w, astray, mu, jnp.ones_like(t), damping)


def _direction(payoff, bordered, used, tight, point):
    """Newton step of u, s, t and log w, and how much of it keeps u and s positive."""
    u, s, t, log_w, astray, mu, pull, damping = point
    w = jnp.exp(log_w)
    num_columns = w.size
    residual = payoff @ w + s - t
    # A tight row has no slack, and its multiplier may have either sign.
    row = jnp.where(tight, 1, u)
    # In proportion to the second moment of the row under w, the size of its Hessian block: a
    # task of small payoffs must not be damped by the large payoffs of the others.
    eps = jnp.finfo(w.dtype).eps
    moment = jnp.square(payoff) @ w + eps
    us = jnp.where(tight, 0, mu - s * u)
    d, (dtheta, minus_dt) = newton.solution(
        bordered,
        jnp.concatenate([w, row]),
        jnp.concatenate([jnp.ones_like(w), s]),
        jnp.concatenate([jnp.full_like(w, eps), damping * moment]),
        jnp.concatenate([-w * astray, us + row * residual]),
        jnp.stack([jnp.zeros_like(t), pull - jnp.sum(u)]),
    )
    du = d[num_columns:]
    # L^T du, and -L dw.
    change_w, change_row = jnp.split(bordered[:-2, :-2] @ d, [num_columns])
    ds = jnp.where(u > s, (us - s * du) / row, change_row - minus_dt - residual)
    ds = jnp.where(tight, 0, ds)
    bounds = jnp.minimum(newton.to_the_bound(u, du), newton.to_the_bound(s, ds))
    length = jnp.minimum(1, 0.95 * jnp.min(jnp.where(tight, jnp.inf, bounds)))
    return du, ds, -minus_dt, jnp.where(used, dtheta - change_w - astray, 0), length

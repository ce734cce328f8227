"""Stage 1: the optimal face of a game, by an interior-point method."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ldro_jax.games import newton


class _Interior(NamedTuple):
    """A point of the interior: L w + s = t, L^T v - z = theta, with w, s, v, z > 0."""

    w: jax.Array
    s: jax.Array
    t: jax.Array
    v: jax.Array
    z: jax.Array
    theta: jax.Array

    def centrality(self) -> jax.Array:
        return (self.w @ self.z + self.s @ self.v) / (self.w.size + self.s.size)


def optimal_face(payoff: jax.Array) -> _Interior:
    """Solves the linear programme; entries of `payoff` are at most one in size."""
    num_rows, num_columns = payoff.shape
    dtype = payoff.dtype
    # Used columns end with z ~ mu / w, unused ones with w ~ mu / z: the face is told apart at
    # sqrt(mu), so mu has to go well below the rounding of the payoffs. It can, because products
    # such as w_j z_j, unlike sums, keep their relative accuracy.
    target = 1e-5 * jnp.finfo(dtype).eps

    def unfinished(carry):
        point, _, stalled, step = carry
        return (
            (point.centrality() > target) & (stalled < newton.PATIENCE) & (step < newton.MAX_STEPS)
        )

    def advance(carry):
        point, best, stalled, step = carry
        w, s, t, v, z, theta = point
        primal = payoff @ w + s - t
        dual = payoff.T @ v - z - theta
        mu = point.centrality()
        solve = newton.solver(payoff, w, z, v, s, jnp.full_like(v, jnp.finfo(dtype).eps))

        def direction(wz, sv):
            """Newton step for which w z and s v change by `wz` and `sv` to first order."""
            dw, dv, dtheta, dt = solve(
                wz - w * dual, -sv - v * primal, 1 - jnp.sum(w), 1 - jnp.sum(v)
            )
            # The smaller of a pair is taken from the product, so that it keeps its digits.
            ds = jnp.where(v > s, (sv - s * dv) / v, dt - payoff @ dw - primal)
            dz = jnp.where(w > z, (wz - z * dw) / w, payoff.T @ dv - dtheta + dual)
            return _Interior(dw, ds, dt, dv, dz, dtheta)

        def move(d, fraction):
            a = newton.longest_step(fraction, (w, d.w), (s, d.s))
            b = newton.longest_step(fraction, (v, d.v), (z, d.z))
            return _Interior(
                w + a * d.w, s + a * d.s, t + a * d.t, v + b * d.v, z + b * d.z, theta + b * d.theta
            )

        d = direction(-w * z, -s * v)
        sigma = jnp.clip((move(d, 1.0).centrality() / mu) ** 3, 1e-4, 1)
        d = direction(sigma * mu - w * z - d.w * d.z, sigma * mu - s * v - d.s * d.v)
        new = move(d, 0.98)
        valid = jnp.isfinite(new.centrality()) & (
            jnp.min(jnp.concatenate([new.w, new.s, new.v, new.z])) > 0
        )
        new_mu = jnp.where(valid, new.centrality(), mu)
        # Since the last step that counted, so that slow progress is progress.
        halved = new_mu < 0.5 * best
        stalled = jnp.where(halved, 0, jnp.where(valid, stalled + 1, newton.PATIENCE))
        best = jnp.where(halved, new_mu, best)
        return newton.select(valid, new, point), best, stalled, step + 1

    w = jnp.full(num_columns, 1 / num_columns, dtype)
    v = jnp.full(num_rows, 1 / num_rows, dtype)
    rows, columns = payoff @ w, payoff.T @ v
    t, theta = jnp.max(rows) + 0.5, jnp.min(columns) - 0.5
    start = _Interior(w, t - rows, t, v, columns - theta, theta)
    point, _, _, _ = lax.while_loop(unfinished, advance, (start, start.centrality(), 0, 0))
    return point

"""Stage 1: the optimal face of a game, by an interior-point method."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ldro_jax.games import newton

# What a pair's smaller one is of the larger one, at most, where they are told apart for good.
_APART = 1e-4
# How much of the way to the bounds is taken: near the solution all but this share of mu goes.
_FRACTION = 0.995


class _Interior(NamedTuple):
    """A point of the interior: K x = y + E m, with x, y > 0; see :mod:`ldro_jax.games.newton`.

    Attributes:
      x: ``[w; v]``, the strategies.
      y: ``[z; s]``, by how much each of them is worse than the best.
      m: ``[theta; -t]``, what the best are worth.
    """

    x: jax.Array
    y: jax.Array
    m: jax.Array

    def centrality(self):
        return self.x @ self.y / self.x.size


def optimal_face(payoff):
    """Solves the linear programme; entries of `payoff` are at most one in size."""
    num_rows, num_columns = payoff.shape
    dtype = payoff.dtype
    eps = float(jnp.finfo(dtype).eps)
    skew, bordered = newton.skew(payoff), newton.bordered(payoff)
    columns = jnp.arange(num_rows + num_columns) < num_columns
    # Used columns end with z ~ mu / w, unused ones with w ~ mu / z: the face is told apart at
    # sqrt(mu), so mu has to go well below the rounding of the payoffs. It can, because products
    # such as w_j z_j, unlike sums, keep their relative accuracy.
    target = 1e-5 * eps

    def unfinished(carry):
        point, _, stalled, step = carry
        x, y, _ = point
        # Mostly each pair is told apart long before. What is then left out as unused is a small
        # part of what the value is promised to.
        smaller, larger = jnp.minimum(x, y), jnp.maximum(x, y)
        apart = jnp.all(smaller < jnp.minimum(_APART * larger, 0.1 * eps**0.8))
        return (
            (point.centrality() > target)
            & ~apart
            & (stalled < newton.PATIENCE)
            & (step < newton.MAX_STEPS)
        )

    def advance(carry):
        point, best, stalled, step = carry
        x, y, m = point
        residual = skew @ x - y - jnp.where(columns, m[0], m[1])
        sums = jnp.stack([jnp.sum(x, where=columns), jnp.sum(x, where=~columns)])
        mu = point.centrality()
        solve = newton.solver(bordered, x, y, eps)

        def direction(xy):
            """Newton step for which x y changes by `xy` to first order."""
            dx, dm = solve(xy - x * residual, 1 - sums)
            # The smaller of a pair is taken from the product, so that it keeps its digits.
            dy = skew @ dx - jnp.where(columns, dm[0], dm[1]) + residual
            return _Interior(dx, jnp.where(x > y, (xy - y * dx) / x, dy), dm)

        def move(d, fraction):
            # w and s go one length, v and z another.
            of_x, of_y = newton.to_the_bound(x, d.x), newton.to_the_bound(y, d.y)
            pairs = jnp.stack([jnp.where(columns, of_x, of_y), jnp.where(columns, of_y, of_x)])
            a, b = jnp.minimum(1, fraction * jnp.min(pairs, axis=1))
            return _Interior(
                x + jnp.where(columns, a, b) * d.x,
                y + jnp.where(columns, b, a) * d.y,
                m + jnp.stack([b, a]) * d.m,
            )

        d = direction(-x * y)
        sigma = jnp.clip((move(d, 1.0).centrality() / mu) ** 3, 1e-4, 1)
        d = direction(sigma * mu - x * y - d.x * d.y)
        new = move(d, _FRACTION)
        valid = jnp.isfinite(new.centrality()) & (jnp.min(jnp.minimum(new.x, new.y)) > 0)
        new_mu = jnp.where(valid, new.centrality(), mu)
        # Since the last step that counted, so that slow progress is progress.
        halved = new_mu < 0.5 * best
        stalled = jnp.where(halved, 0, jnp.where(valid, stalled + 1, newton.PATIENCE))
        best = jnp.where(halved, new_mu, best)
        return newton.select(valid, new, point), best, stalled, step + 1

    x = jnp.where(columns, 1 / num_columns, 1 / num_rows).astype(dtype)
    values = skew @ x
    lowest = [jnp.min(values, where=whose, initial=jnp.inf) for whose in (columns, ~columns)]
    m = jnp.stack(lowest) - 0.5
    start = _Interior(x, values - jnp.where(columns, m[0], m[1]), m)
    point, _, _, _ = lax.while_loop(unfinished, advance, (start, start.centrality(), 0, 0))
    return point

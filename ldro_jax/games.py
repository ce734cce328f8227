"""Maximum-entropy equilibrium of a zero-sum matrix game.

A game usually has a whole face of optimal strategies; entropy picks one of them that does not
depend on the order of the tasks, splits evenly between twins, and stays uniform where the game
leaves the choice open. It is found in two stages by one Newton system:

1. *Which face?* Mehrotra's predictor-corrector solves the linear programme
   `min t, L w <= t, w in simplex`. An interior-point method ends near the analytic centre of the
   optimal face, where every column is either used (w_j > 0) or priced out (z_j > 0) and every row
   is either tight (v_i > 0) or slack (s_i > 0) (Goldman and Tucker), so comparing w with z and v
   with s reads off the face.
2. *Which point of the face?* On the used columns, `max H(w)` with the tight rows as equalities and
   the others as inequalities. Its solution is `w = softmax(-L^T u)`, so entropy needs no barrier,
   and because the face is known the multipliers u stay moderate.

The second stage is what makes float32 enough. A single problem `min_w max_v v^T L w - tau H(w)`
needs a tau so small that `L^T v / tau` has no correct digit left.

References:
  Michel, Ruder and Yogatama, *Balancing Average and Worst-case Accuracy in Multitask Learning*,
  2021 (Lookahead-DRO, Algorithm 1).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

_MAX_STEPS = 50
_PATIENCE = 8


class Equilibrium(NamedTuple):
    """Maximum-entropy equilibrium of the column player.

    Attributes:
      weights: [M] the column player's strategy w, on the simplex.
      value: [] `max_i (L w)_i`, what the row player can get against `weights`, in payoff units.
      gap: [] `max_i (L w)_i - min_j (L^T v)_j` for the row strategy v that was found, in payoff
        units. Up to rounding, `value` exceeds the value of the game by at most this much.
    """

    weights: jax.Array
    value: jax.Array
    gap: jax.Array


def _newton_solver(payoff, w, curvature, v, slack, proximal):
    """Factorises the Newton system shared by both stages and returns its solver.

    The solver returns (dw, dv, dtheta, dt) such that

      curvature_j dw_j + w_j ((L^T dv)_j - dtheta) = a_j,
      v_i ((L dw)_i - dt) - slack_i dv_i = b_i,     sum(dw) = c,     sum(dv) = d,

    up to the [N] `proximal` terms, relative to v, that keep the system regular when the optimal v
    is not unique (duplicated tasks). They damp the steps and leave the solution where it is.
    """
    num_rows, num_columns = payoff.shape
    # The usual reduction to a Cholesky factorisation squares the condition number, which float32
    # cannot afford. Rows scaled to one and partial pivoting keep the conditioning of the game.
    column_scale, row_scale = 1 / (curvature + w), 1 / (slack + v)
    to_columns, to_rows = (w * column_scale)[:, None], (v * row_scale)[:, None]

    def zeros(*shape):
        return jnp.zeros(shape, payoff.dtype)

    def ones(*shape):
        return jnp.ones(shape, payoff.dtype)

    diagonal_w = jnp.diag((curvature + jnp.finfo(payoff.dtype).eps * w) * column_scale)
    diagonal_v = jnp.diag((slack + proximal * v) * row_scale)
    matrix = jnp.block(
        [
            [diagonal_w, to_columns * payoff.T, -to_columns, zeros(num_columns, 1)],
            [to_rows * payoff, -diagonal_v, zeros(num_rows, 1), -to_rows],
            [ones(1, num_columns), zeros(1, num_rows + 2)],
            [zeros(1, num_columns), ones(1, num_rows), zeros(1, 2)],
        ]
    )
    factors = jax.scipy.linalg.lu_factor(matrix)

    def solve(a, b, c, d):
        rhs = jnp.concatenate([a * column_scale, b * row_scale, jnp.stack([c, d])])
        x = jax.scipy.linalg.lu_solve(factors, rhs)
        return x[:num_columns], x[num_columns:-2], x[-2], x[-1]

    return solve


def _longest_step(fraction, *pairs):
    """The longest step in [0, 1] that keeps every x of the pairs (x, dx) positive."""
    ratios = [
        jnp.min(jnp.where(dx < 0, -x / jnp.where(dx < 0, dx, -1), jnp.inf)) for x, dx in pairs
    ]
    return jnp.minimum(1, fraction * jnp.min(jnp.stack(ratios)))


def _select(condition, new, old):
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)


class _Interior(NamedTuple):
    """Stage 1: L w + s = t, L^T v - z = theta, with w, s, v, z > 0."""

    w: jax.Array
    s: jax.Array
    t: jax.Array
    v: jax.Array
    z: jax.Array
    theta: jax.Array

    def centrality(self):
        return (self.w @ self.z + self.s @ self.v) / (self.w.size + self.s.size)


def _optimal_face(payoff):
    """Solves the linear programme; entries of `payoff` are at most one in size."""
    num_rows, num_columns = payoff.shape
    dtype = payoff.dtype
    # Used columns end with z ~ mu / w, unused ones with w ~ mu / z: the face is told apart at
    # sqrt(mu), so mu has to go well below the rounding of the payoffs. It can, because products
    # such as w_j z_j, unlike sums, keep their relative accuracy.
    target = 1e-5 * jnp.finfo(dtype).eps

    def unfinished(carry):
        point, _, stalled, step = carry
        return (point.centrality() > target) & (stalled < _PATIENCE) & (step < _MAX_STEPS)

    def advance(carry):
        point, best, stalled, step = carry
        w, s, t, v, z, theta = point
        primal = payoff @ w + s - t
        dual = payoff.T @ v - z - theta
        mu = point.centrality()
        solve = _newton_solver(payoff, w, z, v, s, jnp.full_like(v, jnp.finfo(dtype).eps))

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
            a = _longest_step(fraction, (w, d.w), (s, d.s))
            b = _longest_step(fraction, (v, d.v), (z, d.z))
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
        stalled = jnp.where(new_mu < 0.5 * best, 0, jnp.where(valid, stalled + 1, _PATIENCE))
        return _select(valid, new, point), jnp.minimum(best, new_mu), stalled, step + 1

    w = jnp.full(num_columns, 1 / num_columns, dtype)
    v = jnp.full(num_rows, 1 / num_rows, dtype)
    rows, columns = payoff @ w, payoff.T @ v
    t, theta = jnp.max(rows) + 0.5, jnp.min(columns) - 0.5
    start = _Interior(w, t - rows, t, v, columns - theta, theta)
    point, _, _, _ = lax.while_loop(unfinished, advance, (start, start.centrality(), 0, 0))
    return point


class _Entropic(NamedTuple):
    """Stage 2: w = softmax(-L^T u) on the used columns, L w + s = t, sum(u) = pull."""

    u: jax.Array
    s: jax.Array
    t: jax.Array
    w: jax.Array
    mu: jax.Array
    pull: jax.Array
    damping: jax.Array


def _maximise_entropy(payoff, used, tight):
    """Maximum-entropy w on the `used` columns; `payoff` is shifted so that the value is zero."""
    dtype = payoff.dtype
    excess_tolerance = float(jnp.finfo(dtype).eps) ** 0.8
    entropy_tolerance = float(jnp.finfo(dtype).eps) ** 0.7

    def strategy(u):
        return jax.nn.softmax(jnp.where(used, -(payoff.T @ u), -jnp.inf))

    def unfinished(carry):
        _, _, best, stalled, step = carry
        return (best > 1) & (stalled < _PATIENCE) & (step < _MAX_STEPS)

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
        solve = _newton_solver(payoff, w, jnp.ones_like(w), row, s, damping * (moment + eps))
        us = jnp.where(tight, 0, mu - s * u)
        zero = jnp.zeros_like(w)
        dw, du, dtheta, dt = solve(zero, -us - row * residual, jnp.sum(zero), pull - jnp.sum(u))
        ds = jnp.where(u > s, (us - s * du) / row, dt - payoff @ dw - residual)
        ds = jnp.where(tight, 0, ds)
        length = _longest_step(0.95, (row, jnp.where(tight, 0, du)), (jnp.where(tight, 1, s), ds))
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
        best_w, best = _select(better, (w, score), (best_w, best))
        point = _select(valid, new, point)
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


@jax.jit
def max_entropy_nash(payoff: jax.Array) -> Equilibrium:
    r"""Finds the maximum-entropy optimal strategy of the column player of a zero-sum game.

    The row player v maximises :math:`v^\top L w`, the column player w minimises it:

    .. math::
      t^* = \min_{w \in \Delta} \max_i (L w)_i, \qquad
      w^* = \arg\max_{w \in \Delta} \Big\{ -\sum_j w_j \log w_j : (L w)_i \le t^* \;\forall i \Big\}

    It is invariant to adding a constant to all payoffs and to scaling them, and equivariant to
    permutations. It works under `jit` and `vmap`; gradients stop at it.

    The payoffs are taken as exact. Where the set of optimal w changes by much when they change by
    their own rounding (many nearly equal tasks, say), so does the entropy, and w is optimal only
    to rounding: the excess of `value` stays within about 3e-6 of the payoff range in float32.

    Args:
      payoff: [N, M] finite payoffs L to the row player, in any unit. float32 and float64 are
        computed as they are, other types in float32.

    Returns:
      An `Equilibrium` in the dtype of the computation. All NaN if a payoff is not finite.

    Raises:
      ValueError: if `payoff` is not a real matrix with at least one row and one column.

    Example:
      >>> import jax.numpy as jnp
      >>> from ldro_jax import games
      >>> rock_paper_scissors = jnp.array([[0., 1., -1.], [-1., 0., 1.], [1., -1., 0.]])
      >>> print(games.max_entropy_nash(rock_paper_scissors).weights.round(3))
      [0.333 0.333 0.333]

    References:
      Michel, Ruder and Yogatama, 2021, Algorithm 1 (see the module);
      Jaynes, `Information Theory and Statistical Mechanics
      <https://doi.org/10.1103/PhysRev.106.620>`_, 1957;
      Goldman and Tucker, `Theory of Linear Programming`, 1956;
      Mehrotra, `On the Implementation of a Primal-Dual Interior Point Method
      <https://doi.org/10.1137/0802028>`_, 1992.
    """
    payoff = jnp.asarray(payoff)
    if payoff.ndim != 2 or 0 in payoff.shape or jnp.iscomplexobj(payoff):
        raise ValueError(
            "max_entropy_nash expects a real payoff matrix of shape [rows, columns] with at least "
            f"one of each, but found shape {payoff.shape} and dtype {payoff.dtype}. "
            "For a batch of games use jax.vmap(max_entropy_nash)."
        )
    if payoff.dtype not in (jnp.float32, jnp.float64):
        payoff = payoff.astype(jnp.float32)
    payoff = lax.stop_gradient(payoff)
    with jax.default_matmul_precision("highest"):
        # The row player can be sure of `floor`. A row which never exceeds it constrains nothing;
        # its size must not set the scale, or a loss of 3 would drown differences of 1e-4.
        floor = jnp.max(jnp.min(payoff, axis=1))
        shifted = payoff - floor
        relevant = jnp.max(shifted, axis=1, keepdims=True) > 0
        scale = jnp.max(jnp.where(relevant, jnp.abs(shifted), 0))
        scaled = shifted / jnp.where(scale > 0, scale, 1)
        scaled = jnp.where(relevant, scaled, jnp.maximum(scaled, -1))

        face = _optimal_face(scaled)
        used, tight = face.w > face.z, face.v > face.s
        value = jnp.max(scaled @ face.w) / jnp.sum(face.w)
        weights = _maximise_entropy(scaled - value, used, tight)
        best_row = jnp.max(shifted @ weights)
        gap = best_row - jnp.min(shifted.T @ (face.v / jnp.sum(face.v)))
    result = Equilibrium(weights, floor + best_row, gap)
    finite = jnp.all(jnp.isfinite(payoff))
    return jax.tree.map(lambda x: jnp.where(finite, x, jnp.nan), result)

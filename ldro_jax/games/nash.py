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

from ldro_jax.games import entropy, face

# In nats: less than Lookahead-DRO could tell apart.
_ENTROPY_TOLERANCE = 1e-3


class Equilibrium(NamedTuple):
    """Maximum-entropy equilibrium of the column player.

    Attributes:
      weights: [M] the column player's strategy w, on the simplex.
      value: [] `max_i (L w)_i`, what the row player can get against `weights`, in payoff units.
      gap: [] `max_i (L w)_i - min_j (L^T v)_j` for the row strategy v that was found, in payoff
        units. Up to rounding, `value` exceeds the value of the game by at most this much.
      shortfall: [] by how much at most the entropy of `weights` is less than that of any optimal
        strategy, in nats; an upper bound that may be far too large where the payoffs of two tasks
        are nearly the same.
      solved: [] bool, whether `gap` is within 3e-6 of the payoff range (3e-13 in float64) and
        `shortfall` within 1e-3. Otherwise `weights` are the best that were found.
    """

    weights: jax.Array
    value: jax.Array
    gap: jax.Array
    shortfall: jax.Array
    solved: jax.Array


@jax.jit
def max_entropy_nash(payoff: jax.Array, playing: jax.Array | None = None) -> Equilibrium:
    r"""Finds the maximum-entropy optimal strategy of the column player of a zero-sum game.

    The row player v maximises :math:`v^\top L w`, the column player w minimises it:

    .. math::
      t^* = \min_{w \in \Delta} \max_i (L w)_i, \qquad
      w^* = \arg\max_{w \in \Delta} \left\{ -\sum_j w_j \log w_j : (L w)_i \le t^* \;\forall i
      \right\}

    It is invariant to adding a constant to all payoffs and to scaling them, and equivariant to
    permutations. It works under `jit` and `vmap`; gradients stop at it.

    The payoffs are taken as exact. Where the set of optimal w changes by much when they change by
    their own rounding (many nearly equal tasks, say), so does the entropy, and w is optimal only
    to rounding: the excess of `value` stays within 3e-6 of the payoff range in float32, and w is
    no less even than the optimal w of the exact payoffs.

    Args:
      payoff: [N, M] finite payoffs L to the row player, in any unit. float32 and float64 are
        computed as they are, other types in float32.
      playing: bool [N], for a square game: the rows and columns that count, all by default. The
        others get no weight, and what `payoff` says of them makes no difference.

    Returns:
      An `Equilibrium` in the dtype of the computation. All NaN if a payoff is not finite.

    Raises:
      ValueError: if `payoff` is not a real matrix with at least one row and one column, or
        `playing` is not a mask of its rows and columns.

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
    if playing is not None:
        payoff = _among(payoff, playing)
    with jax.default_matmul_precision("highest"):
        # The row player can be sure of `floor`. A row which never exceeds it constrains nothing;
        # its size must not set the scale, or a loss of 3 would drown differences of 1e-4.
        floor = jnp.max(jnp.min(payoff, axis=1))
        shifted = payoff - floor
        relevant = jnp.max(shifted, axis=1, keepdims=True) > 0
        scale = jnp.max(jnp.where(relevant, jnp.abs(shifted), 0))
        scaled = shifted / jnp.where(scale > 0, scale, 1)
        scaled = jnp.where(relevant, scaled, jnp.maximum(scaled, -1))

        point = face.optimal_face(scaled)
        used, tight = point.w > point.z, point.v > 10 * point.s
        inside = point.w / jnp.sum(point.w)
        value = jnp.max(scaled @ inside)
        weights, shortfall = entropy.maximise_entropy(scaled - value, inside, used, tight)
        if playing is not None:
            weights = jnp.where(playing, weights, 0)
            weights = weights / jnp.sum(weights)
        best_row = jnp.max(shifted @ weights)
        gap = best_row - jnp.min(shifted.T @ (point.v / jnp.sum(point.v)))
        tolerance = float(jnp.finfo(payoff.dtype).eps) ** 0.8 * jnp.ptp(payoff)
        solved = (gap <= tolerance) & (shortfall <= _ENTROPY_TOLERANCE)
    finite = jnp.all(jnp.isfinite(payoff))
    weights, value, gap, shortfall = (
        jnp.where(finite, x, jnp.nan) for x in (weights, floor + best_row, gap, shortfall)
    )
    return Equilibrium(weights, value, gap, shortfall, solved & finite)


def _among(payoff, playing):
    """The game with the other rows never the worst, and the other columns never worth it."""
    if playing.shape * 2 != payoff.shape or playing.dtype != bool:
        raise ValueError(
            "max_entropy_nash expects playing to be one bool for each row and column of a square "
            f"payoff, but found shape {playing.shape} and dtype {playing.dtype} for a payoff of "
            f"shape {payoff.shape}."
        )
    both = playing[:, None] & playing[None, :]
    highest = jnp.max(jnp.where(both, payoff, -jnp.inf), axis=1, keepdims=True)
    lowest = jnp.min(jnp.where(both, payoff, jnp.inf))
    # Enough to be told from rounding, and little enough not to set the scale.
    dear = highest + (jnp.max(highest) - lowest) / 8
    payoff = jnp.where(playing[None, :], payoff, dear)
    return jnp.where(playing[:, None], payoff, lowest)

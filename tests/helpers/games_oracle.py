"""NumPy/SciPy references for `ldro_jax.games`, in float64.

Nothing here shares code or formulation with the implementation: the value comes from HiGHS's
simplex, the optimal face from a second linear programme, and the entropy from the Lagrangian dual
on that face, whose every point is an upper bound. `Reference` carries what proves it right.
"""

from typing import NamedTuple

import numpy as np
from scipy import optimize, special

_HIGHS = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}


class Reference(NamedTuple):
    """Attributes:
    value: `max_i (L w)_i` of HiGHS's w, an upper bound of the value of the game.
    value_gap: `value` minus the lower bound proved by HiGHS's dual solution.
    entropy: upper bound of the entropy of every optimal w.
    weights: [M] a w with that entropy.
    excess: `max_i (L weights)_i - value`; near zero, it proves that `entropy` is attained.
    """

    value: float
    value_gap: float
    entropy: float
    weights: np.ndarray
    excess: float


def entropy(w):
    """Entropy in nats along the last axis."""
    return special.entr(w).sum(-1)


def solve(payoff, slack=0.0):
    """Reference solution of the game; `slack`, in payoff units, loosens `L w <= value`."""
    payoff = np.asarray(payoff, np.float64)
    floor = payoff.min(1).max()
    scale = np.abs(payoff - floor).max() or 1.0
    scaled = (payoff - floor) / scale
    high, low = value(scaled)
    weights, bound = _max_entropy(scaled - high - slack / scale, exact=slack == 0)
    excess = (scaled @ weights).max() - high - slack / scale
    return Reference(floor + scale * high, scale * (high - low), bound, weights, scale * excess)


def value(payoff):
    rows, columns = payoff.shape
    result = optimize.linprog(
        np.append(np.zeros(columns), 1),
        A_ub=np.c_[payoff, -np.ones(rows)],
        b_ub=np.zeros(rows),
        A_eq=np.append(np.ones(columns), 0)[None],
        b_eq=[1],
        bounds=[(0, None)] * columns + [(None, None)],
        method="highs",
        options=_HIGHS,
    )
    w = result.x[:columns].clip(0)
    v = -result.ineqlin.marginals.clip(max=0)
    return (payoff @ w).max() / w.sum(), (payoff.T @ v).min() / v.sum()


def _relative_interior(payoff, cap=1e-5):
    """Capped w and row slacks of a point in the relative interior of {L w <= 0}."""
    rows, columns = payoff.shape
    inequalities = np.block(
        [
            [payoff, np.zeros((rows, columns)), np.eye(rows)],
            [-np.eye(columns), np.eye(columns), np.zeros((columns, rows))],
        ]
    )
    for tolerance in (1e-11, 1e-10, 1e-9):  # the value is known to rounding only
        result = optimize.linprog(
            -np.r_[np.zeros(columns), np.ones(columns + rows)],
            A_ub=inequalities,
            b_ub=np.r_[np.full(rows, tolerance), np.zeros(columns)],
            A_eq=np.r_[np.ones(columns), np.zeros(columns + rows)][None],
            b_eq=[1],
            bounds=[(0, None)] * columns + [(0, cap)] * (columns + rows),
            method="highs",
            options=_HIGHS,
        )
        if result.x is not None:
            return result.x[columns : 2 * columns], result.x[2 * columns :]
    raise RuntimeError(result.message)


def _max_entropy(payoff, exact):
    """Maximises the entropy over {L w <= 0} through its dual: min logsumexp(-L^T u), u >= 0.

    With `exact` the set may be a lower-dimensional face. Complementarity then tells the columns
    which are zero on all of it, and the rows which are equalities and have a free multiplier; the
    dual minimum is attained only once both are known.
    """
    used, tight = np.ones(payoff.shape[1], bool), np.zeros(payoff.shape[0], bool)
    if exact:
        (w, s), (v, z) = _relative_interior(payoff), _relative_interior(-payoff.T)
        used, tight = w > z, v >= s
    payoff = np.r_[payoff[~tight], payoff[tight]][:, used]
    rows, free = len(payoff), int((~tight).sum())
    u = np.r_[np.full(free, 1 / rows), np.zeros(rows - free)]

    def strategy(u):
        return special.softmax(-payoff.T @ u)

    bound = np.inf
    for mu in 0.2 ** np.arange(13):  # log-barrier Newton, to mu = 4e-9

        def objective(u, mu=mu):
            return special.logsumexp(-payoff.T @ u) - mu * np.log(u[:free]).sum()

        for _ in range(60):
            w = strategy(u)
            gradient = -payoff @ w
            gradient[:free] -= mu / u[:free]
            unit = np.r_[u[:free], np.ones(rows - free)]
            centred = (payoff - (payoff @ w)[:, None]) * unit[:, None]
            # An SVD of the square root of the Hessian: duplicated rows make it singular.
            root = np.r_[(centred * np.sqrt(w)).T, np.sqrt(mu) * np.eye(free, rows)]
            _, singular, basis = np.linalg.svd(root, full_matrices=False)
            keep = singular > 1e-12 * max(singular[0], 1e-300)
            step = -unit * (
                basis[keep].T @ ((basis[keep] @ (unit * gradient)) / singular[keep] ** 2)
            )
            decrement = -gradient @ step
            if decrement < 1e-9 * mu + 1e-18:
                break
            length = min(1.0, 3 / max(np.ptp(payoff.T @ step), 1e-30))
            shrinking = step[:free] < 0
            if shrinking.any():
                length = min(length, 0.95 * np.min(-u[:free][shrinking] / step[:free][shrinking]))
            while (
                not objective(u + length * step) <= objective(u) - 1e-4 * length * decrement + 1e-14
            ):
                length /= 2
                if length < 1e-8:
                    break
            if length < 1e-8:
                break
            u = u + length * step
        bound = min(bound, special.logsumexp(-payoff.T @ u))
    weights = np.zeros(used.size)
    weights[used] = strategy(u)
    return weights, bound

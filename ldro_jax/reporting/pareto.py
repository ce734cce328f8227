"""Trade-offs between two metrics: which points nothing beats, and how much area they dominate.

Michel et al. 2021, section 5.1, compare methods by the frontier of all their checkpoints in the
plane of average and worst accuracy. The hypervolume (Zitzler and Thiele 1999) is one number for a
frontier: it grows where the frontier moves out anywhere, and never falls when a point is added.
"""

import numpy as np
from numpy.typing import ArrayLike

from ldro_jax.runtime import checks


def non_dominated(points: ArrayLike, higher_is_better: bool) -> np.ndarray:
    """The points no other point beats in one coordinate without losing in the other.

    Args:
      points: average and worst value, shape [P, 2]; rows with NaN are dropped.
      higher_is_better: the direction of both.

    Returns:
      The frontier, shape [F, 2], sorted by the average; equal points are kept once.
    """
    checks.flag("higher_is_better", higher_is_better)
    sign = 1.0 if higher_is_better else -1.0
    signed = sign * np.asarray(points, dtype=float).reshape(-1, 2)
    # From the best average down, a point is on the frontier if its worst value is the best so far.
    ordered = np.unique(signed[np.isfinite(signed).all(axis=1)], axis=0)[::-1]
    best = np.maximum.accumulate(ordered[:, 1])
    kept = np.append(True, ordered[1:, 1] > best[:-1])[: len(ordered)]
    frontier = sign * ordered[kept]
    return frontier[np.argsort(frontier[:, 0])]


def hypervolume(points: ArrayLike, reference: ArrayLike, higher_is_better: bool = True) -> float:
    """The area of all that is better than a reference and no better than some point.

    Args:
      points: shape [P, 2]; rows with NaN are dropped, and so are points that don't beat the
        reference in both coordinates, as they have no such area.
      reference: a point that is just not worth having, shape [2].
      higher_is_better: the direction of both coordinates.

    Returns:
      The exact area, in the product of the coordinates' units; 0 without points.

    Raises:
      ValueError: if the reference isn't two finite numbers.

    Example:
      >>> hypervolume([[2.0, 1.0], [1.0, 3.0]], reference=(0.0, 0.0))
      4.0

    References:
      Zitzler and Thiele, "Multiobjective Evolutionary Algorithms: A Comparative Case Study and the
      Strength Pareto Approach", 1999.
    """
    corner = np.asarray(reference, dtype=float)
    if corner.shape != (2,) or not np.isfinite(corner).all():
        raise ValueError(f"Expected a reference of two finite numbers; found {reference!r}.")
    sign = 1.0 if higher_is_better else -1.0
    gains = sign * (np.asarray(points, dtype=float).reshape(-1, 2) - corner)
    gains = non_dominated(gains[(gains > 0).all(axis=1)], higher_is_better=True)
    # Along a frontier the second gain falls, so each point adds a column right of the last one.
    widths = np.diff(gains[:, 0], prepend=0.0)
    return float(np.sum(widths * gains[:, 1]))

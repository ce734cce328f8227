"""Paths in the plane, for the toy problem in which every task is a point."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from numpy.typing import ArrayLike

from ldro_jax.reporting.figures import style

_RED = "#d40000"


@style.applied
def trajectories(
    panels: Sequence[tuple[str, Mapping[str, ArrayLike]]],
    task_points: ArrayLike,
    outlier: ArrayLike,
    radius: float,
) -> Figure:
    """Draws where each method's prediction goes, with tasks as points to be near.

    Args:
      panels: pairs of a title and `{method: path}`, each path of shape [T, 2].
      task_points: the tasks' points, shape [N, 2].
      outlier: the outlier task's point, shape [2], the centre of the disc that cannot be entered.
      radius: of that disc.

    Returns:
      A figure with one panel per title, all with the same axes.
    """
    panels = [
        (title, {m: np.asarray(p, dtype=float) for m, p in paths.items()})
        for title, paths in panels
    ]
    methods = dict.fromkeys(m for _, paths in panels for m in paths)
    drawn_as = style.looks(methods, without=[style.COLOURS[2]])
    task_points, outlier = np.reshape(task_points, (-1, 2)), np.asarray(outlier, dtype=float)
    corners = [task_points, outlier[None], *(p for _, paths in panels for p in paths.values())]
    corners = np.concatenate([*corners, [outlier - radius, outlier + radius]])
    corners = corners[np.isfinite(corners).all(axis=1)]
    low, high = corners.min(axis=0), corners.max(axis=0)
    pad = 0.06 * (high - low).max()
    width = style.WIDTH / max(len(panels), 2)
    height = width * (high - low + 2 * pad)[1] / (high - low + 2 * pad)[0]
    figure = style.new_figure(width * len(panels), min(height, 5.0) + 1.2)
    grid = figure.subplots(1, len(panels), sharex=True, sharey=True, squeeze=False)
    for axes, (title, paths) in zip(grid.flat, panels, strict=True):
        axes.add_patch(Circle(outlier.tolist(), radius, color="#dcdcdc", zorder=0, linewidth=0))
        axes.plot(*task_points.T, "o", color="#F0C000", mec="#806600", markersize=6, zorder=3)
        axes.plot(*outlier, "*", color=_RED, mec="#7a2c00", markersize=13, zorder=3)
        for i, (method, path) in enumerate(paths.items()):
            look = drawn_as[method]
            axes.plot(*path.T, color=look.color, linestyle=look.linestyle, linewidth=1.4, zorder=4)
            axes.plot(*path[0], "o", color="white", mec=look.color, mew=1.5, ms=7, zorder=5)
            # Methods that end in the same place stay visible, each on top of a larger one.
            size = max(12.0 - 2.5 * i, 6.0)
            axes.plot(*path[-1], look.marker, color=look.color, mec="white", ms=size, zorder=6 + i)
        axes.set_title(style.short(title, 44))
        axes.set_xlim(low[0] - pad, high[0] + pad)
        axes.set_ylim(low[1] - pad, high[1] + pad)
        axes.set_aspect("equal")
        axes.set_xlabel("first coordinate")
    grid[0, 0].set_ylabel("second coordinate")
    style.legend_above(figure, _keys(drawn_as))
    return figure


def _keys(drawn_as):
    points = [
        ("task", "o", "#F0C000", "#806600"),
        ("outlier task", "*", _RED, "#7a2c00"),
        ("cannot be reached", "s", "#dcdcdc", "#dcdcdc"),
        ("start", "o", "white", "black"),
    ]
    return [style.key(method, **look.options) for method, look in drawn_as.items()] + [
        style.key(label, linestyle="", marker=marker, color=colour, mec=edge, ms=8)
        for label, marker, colour, edge in points
    ]

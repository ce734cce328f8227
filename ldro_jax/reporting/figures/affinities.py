"""The figure of how tasks affect each other, by several measures side by side."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from ldro_jax.reporting.figures import style
from ldro_jax.reporting.figures.interaction import name_cells, similarity_order

_IN_A_ROW = 2


@style.applied
def affinities(measured: Sequence[tuple[str, np.ndarray]], task_names: Sequence[str]) -> Figure:
    """Draws affinities ``[N, N]``, each row relative to its mean and in its standard deviations.

    Args:
      measured: pairs of a name and a matrix, the affected task in the row.
      task_names: of the tasks.
    """
    shown = [(name, _standardised(matrix)) for name, matrix in measured]
    together = np.nan_to_num(np.mean([matrix for _, matrix in shown], axis=0))
    similar = together + together.T
    np.fill_diagonal(similar, np.abs(similar).max(initial=0.0) or 1.0)
    order = similarity_order(similar / np.abs(similar).max())
    columns = min(_IN_A_ROW, len(shown))
    rows = math.ceil(len(shown) / columns)
    side = style.WIDTH / _IN_A_ROW
    figure = style.new_figure(side * columns + (1.5 if columns < _IN_A_ROW else 0.4), side * rows)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    labels = list(style.task_labels(task_names).values())
    image = None
    for axes, (name, matrix) in zip(grid.flat, shown, strict=False):
        image = axes.imshow(matrix[np.ix_(order, order)], cmap="PuOr_r", vmin=-2, vmax=2)
        axes.set_title(style.short(name, 40))
        name_cells(axes, [style.short(labels[i], 16) for i in order])
    for axes in grid.flat[len(shown) :]:
        axes.set_visible(False)
        # What is above it is the last of its column.
        above = grid[-2, list(grid[-1]).index(axes)]
        above.tick_params(labelbottom=True)
    if image is not None:
        label = "standard deviations of the row"
        figure.colorbar(image, ax=grid, location="right", label=label, extend="both", shrink=0.7)
    return figure


def _standardised(matrix: np.ndarray) -> np.ndarray:
    """Each row without its diagonal, relative to its mean, in its standard deviations."""
    others = np.where(np.eye(len(matrix), dtype=bool), np.nan, matrix)
    deviation = np.nanstd(others, axis=1, keepdims=True)
    return (others - np.nanmean(others, axis=1, keepdims=True)) / np.where(
        deviation > 0, deviation, 1
    )

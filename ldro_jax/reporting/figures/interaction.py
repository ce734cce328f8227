"""The figure of the interaction of tasks, and the matrix arithmetic behind it."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.cluster import hierarchy
from scipy.spatial import distance

from ldro_jax.reporting.comparison import Comparison
from ldro_jax.reporting.figures import style

_WITH_VALUES = 12
_NAMED = 45  # there is room for at each side


@dataclasses.dataclass(frozen=True)
class Interaction:
    """The last interaction of a method, mean over the seeds that measured it.

    Attributes:
      label: the method's.
      step: the last step it was measured at.
      seeds: how many measured it.
      cosines: between the tasks' gradients, [N, N].
      norms: the lengths of the gradients, [N].
    """

    label: str
    step: int
    seeds: int
    cosines: np.ndarray
    norms: np.ndarray


def cosine_similarity(gram: np.ndarray) -> np.ndarray:
    """Cosines [N, N] between gradients from their inner products `A_ij = <grad_i, grad_j>`.

    They are 1 on the diagonal, but 0 in the row and column of a task without a gradient.
    """
    gram = np.asarray(gram, dtype=float)
    norms = gradient_norms(gram)
    scale = np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0)
    cosines = gram * scale[:, None] * scale[None, :]
    # Rounding of saved numbers can carry a cosine just past one.
    return np.clip(cosines, -1.0, 1.0)


def gradient_norms(gram: np.ndarray) -> np.ndarray:
    """The length of each task's gradient, shape [N], from the diagonal of the Gram matrix."""
    return np.sqrt(np.clip(np.diagonal(np.asarray(gram, dtype=float)), 0.0, None))


def similarity_order(similarity: np.ndarray) -> np.ndarray:
    """An order of tasks, given their similarity [N, N], in which similar ones are side by side."""
    if len(similarity) < 2:
        return np.arange(len(similarity))
    distances = distance.squareform(np.max(similarity) - similarity, checks=False)
    tree = hierarchy.linkage(distances, "average", optimal_ordering=True)
    return hierarchy.leaves_list(tree)


def last_interaction(comparison: Comparison) -> Interaction | None:
    """The last interaction of the first method that has one, None if there is none."""
    for setting in comparison.shown:
        logged = [run.interaction for run in setting.runs if run.interaction is not None]
        grams = [series.values[-1] for series in logged]
        grams = [gram for gram in grams if np.isfinite(gram).all()]
        if grams:
            cosines = np.mean([cosine_similarity(gram) for gram in grams], axis=0)
            norms = np.mean([gradient_norms(gram) for gram in grams], axis=0)
            step = max(int(series.steps[-1]) for series in logged)
            return Interaction(setting.label, step, len(grams), cosines, norms)
    return None


@style.applied
def interaction_matrix(measured: Interaction, task_names: Sequence[str]) -> Figure:
    """Cosine similarity between the tasks' gradients, similar tasks side by side.

    The bars at the right are the lengths of the gradients.
    """
    order = similarity_order(measured.cosines)
    shown, size = measured.cosines[np.ix_(order, order)], len(order)
    off_diagonal = np.abs(shown[~np.eye(size, dtype=bool)])
    # The scale follows the pairs: a diagonal of ones would wash out small cosines.
    limit = float(np.clip(off_diagonal.max(initial=0.0), 0.05, 1.0))
    figure = style.new_figure(style.WIDTH, min(max(3.6, 2.2 + 0.42 * size), 9.0))
    axes, side = figure.subplots(1, 2, width_ratios=[6, 1])
    image = axes.imshow(shown, cmap="PuOr_r", vmin=-limit, vmax=limit, aspect="auto")
    labels = list(style.task_labels(task_names).values())
    name_cells(axes, [style.short(labels[i], 20) for i in order])
    if size <= _WITH_VALUES:
        for (i, j), cosine in np.ndenumerate(shown):
            colour = "white" if abs(cosine) > 0.6 * limit else "black"
            text = f"{cosine:.2f}".replace("-", "−")
            axes.text(j, i, text, ha="center", va="center", fontsize=9, color=colour)
    side.barh(range(size), measured.norms[order], style.thickness(size), color="#777777")
    side.set_ylim(size - 0.5, -0.5)
    side.set_yticks([])
    side.grid(False, axis="y")
    side.locator_params(axis="x", nbins=3)
    side.set_xlabel("gradient\nnorm")
    plural = "s" if measured.seeds > 1 else ""
    label = style.short(measured.label, 40)
    axes.set_title(f"{label}, step {measured.step}, mean over {measured.seeds} seed{plural}")
    figure.colorbar(
        image, ax=side, location="right", label="cosine similarity", extend="max", shrink=0.8
    )
    return figure


def name_cells(axes: Axes, names: Sequence[str]) -> None:
    """Writes the names of the tasks at the rows and columns of a matrix, as far as they fit."""
    many = len(names) > _WITH_VALUES
    fontsize = 9.5 if len(names) <= 20 else 7.5
    places, names = style.sampled(names, _NAMED)
    axes.set_xticks(places, names, rotation=90 if many else 45, fontsize=fontsize)
    for tick in axes.get_xticklabels():
        tick.set_horizontalalignment("center" if many else "right")
        tick.set_rotation_mode("default" if many else "anchor")
    axes.set_yticks(places, names, fontsize=fontsize)
    axes.grid(False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)

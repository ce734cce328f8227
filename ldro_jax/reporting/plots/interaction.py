"""The figure of the interaction of tasks, and the matrix arithmetic behind it."""

import numpy as np

from ldro_jax.reporting.plots.style import WIDTH, empty_figure, new_figure, short, with_style
from ldro_jax.reporting.summary import group_runs

_WITH_VALUES = 12


def cosine_similarity(gram: np.ndarray) -> np.ndarray:
    """Cosines between gradients from their inner products.

    Args:
      gram: `A_ij = <grad_i, grad_j>`, shape [N, N].

    Returns:
      The cosines [N, N], 1 on the diagonal; 0 in the row and column of a task without a gradient.
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
    """An order in which similar tasks stand side by side.

    Clusters are merged by average linkage; at each merge the two are turned so that their most
    similar ends meet.

    Args:
      similarity: symmetric, shape [N, N].

    Returns:
      A permutation of 0 … N − 1.
    """
    similarity = np.asarray(similarity, dtype=float)
    clusters = [[i] for i in range(len(similarity))]
    while len(clusters) > 1:
        links = np.array([[similarity[np.ix_(a, b)].mean() for b in clusters] for a in clusters])
        np.fill_diagonal(links, -np.inf)
        i, j = sorted(int(k) for k in np.unravel_index(np.argmax(links), links.shape))
        second = clusters.pop(j)
        first = clusters[i]
        turns = [(a, b) for a in (first, first[::-1]) for b in (second, second[::-1])]
        a, b = max(turns, key=lambda turn: similarity[turn[0][-1], turn[1][0]])
        clusters[i] = a + b
    return np.array(clusters[0] if clusters else [], dtype=int)


def last_interaction(results, method: str | None = None):
    """The last measured interaction, mean over the seeds that measured it.

    Args:
      results: the record.
      method: a label; by default the first method with an interaction.

    Returns:
      Label, last step, number of seeds, mean cosines [N, N] and mean gradient norms [N]; or None.
    """
    for group in group_runs(results.runs):
        if method not in (None, group.label, group.method):
            continue
        logged = [run.interaction for run in group.runs if run.interaction is not None]
        grams = [series.values[-1] for series in logged]
        grams = [gram for gram in grams if np.isfinite(gram).all()]
        if grams:
            cosines = np.mean([cosine_similarity(gram) for gram in grams], axis=0)
            norms = np.mean([gradient_norms(gram) for gram in grams], axis=0)
            step = max(int(series.steps[-1]) for series in logged)
            return group.label, step, len(grams), cosines, norms
    return None


@with_style
def interaction_matrix(results, *, method: str | None = None):
    """Cosine similarity between the tasks' gradients, similar tasks side by side.

    The bars at the right are the lengths of the gradients.

    Args:
      results: the record.
      method: a label; by default the first method with an interaction.

    Returns:
      A figure.
    """
    found = last_interaction(results, method)
    if found is None:
        return empty_figure("no interaction was recorded")
    label, step, seeds, cosines, norms = found
    order = similarity_order(cosines)
    names = [short(results.task_names[i], 20) for i in order]
    shown = cosines[np.ix_(order, order)]
    size = len(order)
    off_diagonal = np.abs(shown[~np.eye(size, dtype=bool)])
    # The scale follows the pairs: a diagonal of ones would wash out small cosines.
    limit = float(np.clip(off_diagonal.max(initial=0.0), 0.05, 1.0))
    figure = new_figure(WIDTH, min(max(3.6, 2.2 + 0.42 * size), 9.0))
    axes, side = figure.subplots(1, 2, width_ratios=[6, 1])
    image = axes.imshow(shown, cmap="PuOr_r", vmin=-limit, vmax=limit, aspect="auto")
    fontsize = 9.5 if size <= 20 else 7.5
    axes.set_xticks(range(size), names, rotation=90 if size > 12 else 45, fontsize=fontsize)
    for tick in axes.get_xticklabels():
        tick.set_horizontalalignment("center" if size > 12 else "right")
        tick.set_rotation_mode("default" if size > 12 else "anchor")
    axes.set_yticks(range(size), names, fontsize=fontsize)
    axes.grid(False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if size <= _WITH_VALUES:
        for i in range(size):
            for j in range(size):
                colour = "white" if abs(shown[i, j]) > 0.7 * limit else "black"
                text = f"{shown[i, j]:.2f}".replace("-", "−")
                axes.text(j, i, text, ha="center", va="center", fontsize=9, color=colour)
    side.barh(range(size), norms[order], 0.7, color="#777777")
    side.set_ylim(size - 0.5, -0.5)
    side.set_yticks([])
    side.grid(False, axis="y")
    side.locator_params(axis="x", nbins=3)
    side.set_xlabel("gradient\nnorm")
    plural = "s" if seeds > 1 else ""
    axes.set_title(f"{short(label, 40)}, step {step}, mean over {seeds} seed{plural}")
    figure.colorbar(
        image, ax=side, location="right", label="cosine similarity", extend="max", shrink=0.8
    )
    return figure

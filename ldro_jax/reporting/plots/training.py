"""Figures of what happens during training: the metric and the weights over the steps."""

import math

import numpy as np

from ldro_jax.reporting.plots.style import (
    COLOURS,
    LINES,
    WIDTH,
    axis_name,
    empty_figure,
    legend_columns,
    log_if_wide,
    looks,
    new_figure,
    quiet_means,
    short,
    with_style,
)
from ldro_jax.reporting.summary import group_runs, progress_split

_HIGHLIGHTED = 6


def mean_series(group, name: str):
    """A logged series of a group, mean over the seeds.

    Args:
      group: the runs.
      name: "weights", "losses" or "interaction".

    Returns:
      Steps [S] and values [S, ...] over the steps that all logging seeds share, missing numbers
      left out; or None if no seed logged it.
    """
    logged = [s for s in (getattr(run, name) for run in group.runs) if s is not None]
    if not logged:
        return None
    steps = logged[0].steps
    for series in logged[1:]:
        steps = np.intersect1d(steps, series.steps)
    if not len(steps):
        return None
    values = np.stack([s.values[np.searchsorted(s.steps, steps)] for s in logged])
    with quiet_means():
        return steps, np.nanmean(values, axis=0)


def moving_weights(results) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Steps and mean weights of the methods whose weights change in training, by label."""
    found = {g.label: mean_series(g, "weights") for g in group_runs(results.runs)}
    return {
        label: series
        for label, series in found.items()
        if series is not None and np.nanmax(np.ptp(series[1], axis=0), initial=0.0) > 1e-6
    }


@with_style
def weights_over_time(results):
    """The weight of each task over training, one panel per method whose weights move.

    The tasks with the largest weights, over all panels, are coloured; the others are grey.

    Args:
      results: the record.

    Returns:
      A figure.
    """
    panels = moving_weights(results)
    if not panels:
        return empty_figure("no method with weights that change was recorded")
    num_tasks = len(results.task_names)
    peaks = np.max([np.nanmax(values, axis=0) for _, values in panels.values()], axis=0)
    chosen = [int(i) for i in np.argsort(-peaks, kind="stable")[:_HIGHLIGHTED]]
    columns = 3 if len(panels) == 3 or len(panels) > 4 else min(len(panels), 2)
    rows = math.ceil(len(panels) / columns)
    figure = new_figure(WIDTH, 0.8 + 2.5 * rows)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes, (label, (steps, values)) in zip(grid.flat, panels.items(), strict=False):
        for task in (i for i in range(num_tasks) if i not in chosen):
            axes.plot(steps, values[:, task], color="#c4c4c4", linewidth=0.7)
        for rank, task in enumerate(chosen):
            axes.plot(
                steps,
                values[:, task],
                color=COLOURS[rank + 1],
                linestyle=LINES[rank],
                linewidth=1.5,
            )
        axes.axhline(1 / num_tasks, color="black", linestyle=(0, (4, 3)), linewidth=0.9)
        axes.set_title(short(label, 44))
    for axes in grid.flat[len(panels) :]:
        axes.axis("off")
    # Shared axes hide the tick labels of a panel that has an empty one below it.
    for column in range(columns):
        last = max(i for i in range(len(panels)) if i % columns == column)
        grid.flat[last].tick_params(labelbottom=True)
        grid.flat[last].set_xlabel("training step")
    grid[0, 0].locator_params(axis="x", nbins=6 if columns < 3 else 4)
    for axes in grid[:, 0]:
        axes.set_ylabel("task weight")
    keys = _weight_keys(results.task_names, chosen)
    columns = legend_columns([str(key.get_label()) for key in keys])
    figure.legend(handles=keys, loc="outside upper center", ncols=columns)
    return figure


def _weight_keys(names, chosen):
    from matplotlib.lines import Line2D

    keys = [
        Line2D([], [], color=COLOURS[rank + 1], linestyle=LINES[rank], label=short(names[task]))
        for rank, task in enumerate(chosen)
    ]
    rest = len(names) - len(chosen)
    if rest:
        text = f"other {rest} task{'s' if rest > 1 else ''}"
        keys.append(Line2D([], [], color="#c4c4c4", label=text))
    uniform = f"uniform, 1/{len(names)}"
    return [*keys, Line2D([], [], color="black", linestyle=(0, (4, 3)), lw=0.9, label=uniform)]


@with_style
def metric_over_steps(results, *, split: str | None = None):
    """Average and worst-task value over training: mean over seeds, band of one standard deviation.

    Args:
      results: the record.
      split: by default the split with most evaluations, `progress_split(results)`.

    Returns:
      A figure with two panels.
    """
    split = split or progress_split(results)
    groups = group_runs(results.runs)
    style = looks([g.label for g in groups])
    figure = new_figure(WIDTH, 4.2 + 0.2 * (len(groups) // 4))
    panels = figure.subplots(1, 2, sharex=True)
    drawn: dict[str, list[np.ndarray]] = {"average": [], "worst": []}
    for group in groups:
        look = style[group.label]
        for axes, which in zip(panels, ("average", "worst"), strict=True):
            steps, mean, std = _progress(group, split, results.metric, which)
            if not len(steps):
                continue
            drawn[which].append(mean)
            axes.plot(
                steps,
                mean,
                color=look.colour,
                linestyle=look.line,
                marker=look.marker,
                markersize=5,
                markevery=max(len(steps) // 8, 1),
                linewidth=1.5,
                label=short(group.label, 40) if which == "average" else None,
            )
            axes.fill_between(steps, mean - std, mean + std, color=look.colour, alpha=0.15, lw=0)
    if not drawn["average"]:
        return empty_figure("no evaluations were recorded")
    panels[0].set_title("average over tasks")
    panels[1].set_title("worst task")
    panels[0].set_ylabel(axis_name(results, f"{split} "))
    for axes, means in zip(panels, drawn.values(), strict=True):
        log_if_wide(axes.yaxis, results, np.concatenate(means))
        axes.set_xlabel("training step")
        axes.locator_params(axis="x", nbins=5)
    columns = legend_columns([short(g.label, 40) for g in groups])
    figure.legend(loc="outside upper center", ncols=columns)
    return figure


def _progress(group, split, metric, which):
    """Steps, mean and standard deviation over the seeds evaluated at each step."""
    at: dict[int, list[float]] = {}
    for run in group.runs:
        for entry in run.evaluations:
            if (entry.split, entry.metric) == (split, metric):
                at.setdefault(entry.step, []).append(getattr(entry, which))
    steps = sorted(at)
    with quiet_means():
        mean = np.array([np.nanmean(at[s]) for s in steps])
        std = np.array([np.nanstd(at[s], ddof=1) if len(at[s]) > 1 else 0.0 for s in steps])
    return np.array(steps), mean, std

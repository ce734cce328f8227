"""Figures of a sweep: the frontier of each method's checkpoints, and each setting's worst task.

Like figures 6 and 5 of Michel et al. 2021.
"""

import math

import numpy as np

from ldro_jax.evaluation.pareto import non_dominated
from ldro_jax.reporting.plots.style import (
    LINES,
    WIDTH,
    axis_name,
    empty_figure,
    is_wide,
    legend_columns,
    log_if_wide,
    looks,
    new_figure,
    quiet_means,
    short,
    with_style,
)
from ldro_jax.reporting.summary import progress_split
from ldro_jax.reporting.sweeps import checkpoints, for_metric, frontier_split, settings

SMOOTHING = 0.6
_KEYS_PER_COLUMN = 16


def smoothed(values: np.ndarray, factor: float = SMOOTHING) -> np.ndarray:
    """A running exponential average: `factor` of the last average, the rest of the new value.

    Args:
      values: shape [S].
      factor: between 0 and 1.

    Returns:
      Shape [S]; it starts with the first number, and stays where a value is NaN.
    """
    found = np.full(len(values), np.nan)
    last = math.nan
    for i, value in enumerate(values):
        if math.isfinite(value):
            last = value if math.isnan(last) else factor * last + (1 - factor) * value
        found[i] = last
    return found


@with_style
def pareto_frontiers(results, metric: str | None = None, split: str | None = None):
    """Average against worst-task value of all checkpoints of all settings, a panel per seed.

    A line joins what no other checkpoint of the method and seed beats; the others are faint dots.

    Args:
      results: the record.
      metric: by default `results.metric`.
      split: by default see `frontier_split`.

    Returns:
      A figure whose axes show where the frontiers are; some checkpoints are outside.
    """
    results = for_metric(results, metric)
    split = split or frontier_split(results)
    methods = settings(results)
    clouds = {
        seed: {
            method: _cloud(groups, seed, split, results.metric)
            for method, groups in methods.items()
        }
        for seed in sorted({run.seed for run in results.runs})
    }
    clouds = {seed: found for seed, found in clouds.items() if any(map(len, found.values()))}
    if not clouds:
        return empty_figure("no evaluations were recorded")
    style = looks(list(methods))
    columns = min(len(clouds), 3)
    rows = math.ceil(len(clouds) / columns)
    figure = new_figure(WIDTH, 0.7 + {1: 4.6, 2: 3.9, 3: 3.1}[columns] * rows)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    frontiers = []
    for axes, (seed, found) in zip(grid.flat, clouds.items(), strict=False):
        for method, points in found.items():
            look = style[method]
            axes.plot(*points.T, ".", color=look.colour, markersize=4, alpha=0.25, mew=0)
            frontier = non_dominated(points, results.higher_is_better)
            frontiers.append(frontier)
            axes.plot(
                *frontier.T,
                color=look.colour,
                linestyle=look.line,
                marker=look.marker,
                markersize=5.5,
                markeredgecolor="white",
                markeredgewidth=0.6,
                linewidth=1.5,
                zorder=3,
                label=short(method, 40),
            )
        if len(clouds) > 1:
            axes.set_title(f"seed {seed}")
    _label_panels(grid, len(clouds), "average over tasks", "worst task")
    shown = np.concatenate(frontiers)
    grid[0, 0].set_xlim(*_limits(shown[:, 0]))
    grid[0, 0].set_ylim(*_limits(shown[:, 1]))
    grid[0, 0].locator_params(axis="x", nbins=5)
    figure.supxlabel(axis_name(results, f"{split} "), fontsize=10)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=legend_columns(labels))
    return figure


@with_style
def worst_over_time(results, metric: str | None = None, split: str | None = None):
    """The worst task over training for each setting: a panel per method with several settings.

    The strong line is a running exponential average of the mean over seeds, which is faint; on a
    logarithmic axis, of its logarithm. Methods with one setting share the first panel.

    Args:
      results: the record.
      metric: by default `results.metric`.
      split: by default the split with most evaluations, `progress_split(results)`.

    Returns:
      A figure; each panel has its own legend beside it.
    """
    results = for_metric(results, metric)
    split = split or progress_split(results)
    methods = settings(results)
    style = looks(list(methods))
    alone = [groups[0] for groups in methods.values() if len(groups) == 1]
    panels = {
        "one setting each": [
            (g, g.method, style[g.method].colour, style[g.method].line) for g in alone
        ]
    }
    for method, groups in methods.items():
        if len(groups) > 1:
            panels[method] = [
                (group, _setting_name(group), colour, LINES[i % len(LINES)])
                for i, (group, colour) in enumerate(zip(groups, _ramp(len(groups)), strict=True))
            ]
    curves = {
        title: [(*_mean_worst(group, split, results.metric), *look) for group, *look in lines]
        for title, lines in panels.items()
    }
    curves = {title: lines for title, lines in curves.items() if any(len(c[0]) for c in lines)}
    if not curves:
        return empty_figure("no evaluations were recorded")
    heights = [
        max(2.1, 0.4 + 0.165 * min(len(lines), _KEYS_PER_COLUMN)) for lines in curves.values()
    ]
    figure = new_figure(WIDTH, 0.5 + sum(heights) + 0.3 * len(heights))
    grid = figure.subplots(
        len(curves), 1, sharex=True, sharey=True, squeeze=False, height_ratios=heights
    )
    shown = np.concatenate([values for lines in curves.values() for _, values, *_ in lines])
    wide = is_wide(results, shown)
    for axes, (title, lines) in zip(grid.flat, curves.items(), strict=True):
        log_if_wide(axes.yaxis, results, shown)
        for steps, values, name, colour, line in lines:
            axes.plot(steps, values, color=colour, linewidth=0.7, alpha=0.25)
            axes.plot(
                steps,
                # The first perplexities are so large that an average would keep them for long.
                np.exp(smoothed(np.log(values))) if wide else smoothed(values),
                color=colour,
                linestyle=line,
                linewidth=1.5,
                # Settings differ at the end of their names, so those are hardly cut.
                label=short(name, 60),
            )
        axes.set_title(short(title, 60), loc="left")
        axes.legend(
            loc="center left",
            bbox_to_anchor=(1.01, 0.5),
            fontsize=8,
            labelspacing=0.25,
            handlelength=3,
            ncols=math.ceil(len(lines) / _KEYS_PER_COLUMN),
        )
    grid[-1, 0].set_xlabel("training step")
    figure.supylabel(axis_name(results, f"{split}, worst task: "), fontsize=10)
    return figure


def _cloud(groups, seed: int, split: str, metric: str) -> np.ndarray:
    """Average and worst value of all checkpoints of a method with a seed, [C, 2]."""
    runs = [run for group in groups for run in group.runs if run.seed == seed]
    return np.concatenate([np.zeros((0, 2)), *(checkpoints(r, split, metric)[:, 1:] for r in runs)])


def _mean_worst(group, split: str, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps, and the worst value at each: the mean over the seeds evaluated there."""
    rows = np.concatenate([np.zeros((0, 3)), *(checkpoints(r, split, metric) for r in group.runs)])
    steps = np.unique(rows[:, 0])
    with quiet_means():
        return steps, np.array([np.nanmean(rows[rows[:, 0] == step, 2]) for step in steps])


def _setting_name(group) -> str:
    """What differs between the settings of a method, without the method's name."""
    return group.label.removeprefix(f"{group.method} (").removesuffix(")")


def _ramp(count: int):
    """Colours from dark to light that also differ in grey; the lightest of the map are left out."""
    import matplotlib

    return matplotlib.colormaps["viridis"](np.linspace(0.0, 0.88, count))


def _limits(values: np.ndarray) -> tuple[float, float]:
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    margin = 0.08 * (high - low) or 0.01 * abs(high) or 0.01
    return low - margin, high + margin


def _label_panels(grid, used: int, xlabel: str, ylabel: str) -> None:
    """Names the axes once per column and row, and clears the panels without content."""
    columns = grid.shape[1]
    for axes in grid.flat[used:]:
        axes.axis("off")
    for column in range(columns):
        last = max(i for i in range(used) if i % columns == column)
        # Shared axes hide the tick labels of a panel that has an empty one below it.
        grid.flat[last].tick_params(labelbottom=True)
        grid.flat[last].set_xlabel(xlabel)
    for axes in grid[:, 0]:
        axes.set_ylabel(ylabel)

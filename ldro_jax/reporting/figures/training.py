"""Figures of what happens during training: the metric and the weights over the steps."""

import math
import warnings

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ldro_jax.reporting.comparison import Comparison
from ldro_jax.reporting.figures import style
from ldro_jax.reporting.frame import Setting
from ldro_jax.runtime import checks

_HIGHLIGHTED = 6
_REST = "#c4c4c4"
_UNIFORM = (0, (4, 3))


def by_task(setting: Setting, series: str = "weights") -> tuple[np.ndarray, np.ndarray] | None:
    """Steps [S] and the weights or signal [S, N] of a setting, mean over the seeds that logged it.

    Only steps that all of these share count, and missing numbers are left out.
    """
    logged = [s for run in setting.runs if (s := getattr(run, series)) is not None]
    if not logged:
        return None
    steps = logged[0].steps
    for other in logged[1:]:
        steps = np.intersect1d(steps, other.steps)
    values = np.stack([s.values[np.searchsorted(s.steps, steps)] for s in logged])
    with warnings.catch_warnings(action="ignore", category=RuntimeWarning):
        return (steps, np.nanmean(values, axis=0)) if len(steps) else None


def moving_weights(comparison: Comparison) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Steps and mean weights of the methods whose weights change in training, by label."""
    by_label = {s.label: by_task(s) for s in comparison.shown}
    return {
        label: series
        for label, series in by_label.items()
        if series is not None and np.nanmax(np.ptp(series[1], axis=0), initial=0.0) > 1e-6
    }


def signal(comparison: Comparison) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Steps and mean shares that are signal of the methods that measure them, by label.

    Steps before all tasks were measured are left out.
    """
    by_label = {}
    for setting in comparison.shown:
        if (found := by_task(setting, "signal")) is not None:
            told = np.isfinite(found[1]).all(axis=1)
            if told.any():
                by_label[setting.label] = (found[0][told], found[1][told])
    return by_label


@style.applied
def weights_over_time(comparison: Comparison) -> Figure:
    """The weight of each task over training, one panel per method whose weights move.

    The tasks with the largest weights, over all panels, are coloured; the others are grey. Where
    there are many of these, they are a band from the smallest to the largest, with the middle 80 %
    darker.
    """
    panels = moving_weights(comparison)
    peaks = np.max([np.nanmax(values, axis=0) for _, values in panels.values()], axis=0)
    uniform = 1 / len(comparison.record.tasks)
    return _tasks_over_time(comparison, panels, -peaks, "task weight", uniform)


@style.applied
def signal_over_time(comparison: Comparison) -> Figure:
    """The share of each task's gradient that is signal; the tasks that end with least coloured."""
    panels = signal(comparison)
    last = np.mean([values[-1] for _, values in panels.values()], axis=0)
    return _tasks_over_time(comparison, panels, last, "share that is signal")


def _tasks_over_time(comparison: Comparison, panels, rank, what: str, level: float | None = None):
    """A panel each, the tasks of lowest rank coloured, and a dashed line at a level."""
    names = list(style.task_labels(comparison.record.tasks).values())
    chosen = [int(i) for i in np.argsort(rank, kind="stable")[:_HIGHLIGHTED]]
    columns = 3 if len(panels) == 3 or len(panels) > 4 else min(len(panels), 2)
    rows = math.ceil(len(panels) / columns)
    figure = style.new_figure(style.WIDTH, 0.8 + 2.5 * rows)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    styles = [
        {"color": style.COLOURS[rank + 1], "linestyle": style.LINES[rank], "linewidth": 1.5}
        for rank in range(len(chosen))
    ]
    uniform = {"color": "black", "linewidth": 0.9}
    for axes, (label, (steps, values)) in zip(grid.flat, panels.items(), strict=False):
        _draw_rest(axes, steps, np.delete(values, chosen, axis=1))
        for task, options in zip(chosen, styles, strict=True):
            axes.plot(steps, values[:, task], **options)
        if level is not None:
            axes.axhline(level, linestyle=_UNIFORM, **uniform)
        axes.set_title(style.short(label, 44))
    style.name_panels(grid, len(panels), "training step", what)
    grid[0, 0].locator_params(axis="x", nbins=6 if columns < 3 else 4)
    keys = [style.key(names[t], width=24, **k) for t, k in zip(chosen, styles, strict=True)]
    if others := len(names) - len(chosen):
        keys.append(style.key(f"other {others} task{'s' if others > 1 else ''}", color=_REST))
    if level is not None:
        keys.append(style.key(f"uniform, 1/{len(names)}", linestyle=_UNIFORM, **uniform))
    style.legend_above(figure, keys)
    return figure


def _draw_rest(axes, steps, values) -> None:
    if values.shape[1] <= style.MANY:
        axes.plot(steps, values, color=_REST, linewidth=0.7)
        return
    for quantiles, alpha in (((0, 1), 0.4), ((0.1, 0.9), 0.6)):
        low, high = np.nanquantile(values, quantiles, axis=1)
        axes.fill_between(steps, low, high, color=_REST, alpha=alpha, linewidth=0)


@style.on_axes
def metric_over_steps(
    comparison: Comparison, ax: Axes | None = None, *, which: str = "worst"
) -> Axes:
    """Worst-task or average value over training: mean over seeds and one standard deviation."""
    checks.one_of("which", which, ("average", "worst"))
    axes = style.axes_of(ax, 4.2)
    keys, means = _draw_curves(axes, comparison, which)
    axes.set_ylabel(style.axis_name(comparison.values, f"{comparison.progress_split} "))
    style.log_if_wide(axes.yaxis, comparison.values, means)
    style.legend_of(axes, keys, above=ax is None)
    return axes


@style.applied
def both_over_steps(comparison: Comparison) -> Figure:
    """:func:`metric_over_steps` of the average and of the worst task, side by side."""
    values = comparison.values
    figure = style.new_figure(style.WIDTH, 4.2 + 0.2 * (len(comparison.notable) // 4))
    panels, keys = figure.subplots(1, 2, sharex=True), []
    panels[0].set_ylabel(style.axis_name(values, f"{comparison.progress_split} "))
    for axes, which in zip(panels, ("average", "worst"), strict=True):
        keys, means = _draw_curves(axes, comparison, which)
        style.log_if_wide(axes.yaxis, values, means)
    style.legend_above(figure, keys)
    return figure


def _draw_curves(axes, comparison: Comparison, which: str) -> tuple[list, list[float]]:
    """Draws a line for each setting; gives the entries of a legend, and all means."""
    keys, means = [], []
    for setting, look in style.looks(comparison.notable).items():
        by_step = comparison.rows(setting, comparison.progress_split).groupby("step")[which]
        mean, std = by_step.mean(), by_step.std().fillna(0.0)
        options = {"markevery": max(len(mean) // 8, 1), **look.options}
        axes.plot(mean.index, mean, markersize=5, linewidth=1.5, **options)
        band = (mean.index, mean - std, mean + std)
        axes.fill_between(*band, color=look.color, alpha=0.15, linewidth=0)
        means += list(mean)
        if len(by_step):
            keys.append(style.key(setting.label, **look.options))
    axes.set_title("average over tasks" if which == "average" else "worst task")
    axes.set_xlabel("training step")
    axes.locator_params(axis="x", nbins=5)
    return keys, means

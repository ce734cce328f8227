"""Figures of a sweep: the frontier of each method's checkpoints, and each setting's worst task.

Like figures 6 and 5 of Michel et al. 2021.
"""

import math

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from ldro_jax.reporting.comparison import Comparison
from ldro_jax.reporting.figures import style
from ldro_jax.reporting.frame import Series
from ldro_jax.reporting.pareto import non_dominated
from ldro_jax.reporting.sweeps import Frontiers

_KEYS_PER_COLUMN = 16


def smoothed(values: Series, *, logarithms: bool = False) -> Series:
    """A running exponential average: 0.6 of the last average, 0.4 of the new value, if any."""
    if logarithms:
        # The first perplexities are so large that an average would keep them for long.
        return np.exp(smoothed(np.log(values)))
    return values.ewm(alpha=0.4, adjust=False, ignore_na=True).mean()


@style.applied
def pareto_frontiers(frontiers: Frontiers) -> Figure:
    """Average against worst-task value of all checkpoints of all settings, a panel per seed.

    A line joins what no other checkpoint of the method and seed beats; the others are faint dots,
    some of them outside: the axes show where the frontiers are.
    """
    looks = style.looks(frontiers.clouds)
    seeds = sorted(
        {s for by_seed in frontiers.clouds.values() for s, c in by_seed.items() if len(c)}
    )
    columns = min(len(seeds), 3)
    rows = math.ceil(len(seeds) / columns)
    figure = style.new_figure(style.WIDTH, 0.7 + {1: 4.6, 2: 3.9, 3: 3.1}[columns] * rows)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    shown, markers = [], {"markersize": 5.5, "mec": "white", "mew": 0.6}
    for axes, seed in zip(grid.flat, seeds, strict=False):
        for method, by_seed in frontiers.clouds.items():
            points, look = by_seed.get(seed, np.zeros((0, 2))), looks[method]
            axes.plot(*points.T, ".", color=look.color, markersize=4, alpha=0.25, mew=0)
            shown.append(non_dominated(points, frontiers.higher_is_better))
            axes.plot(*shown[-1].T, linewidth=1.5, zorder=3, **look.options, **markers)
        if len(seeds) > 1:
            axes.set_title(f"seed {seed}")
    style.name_panels(grid, len(seeds), "average over tasks", "worst task")
    limits = np.concatenate(shown)
    grid[0, 0].set_xlim(*_limits(limits[:, 0]))
    grid[0, 0].set_ylim(*_limits(limits[:, 1]))
    grid[0, 0].locator_params(axis="x", nbins=5)
    figure.supxlabel(style.axis_name(frontiers, f"{frontiers.split} "), fontsize=10)
    style.legend_above(figure, [style.key(m, **k.options, **markers) for m, k in looks.items()])
    return figure


@style.applied
def worst_over_time(comparison: Comparison) -> Figure:
    """The worst task over training for each setting: a panel per method with several settings.

    The strong line is a running exponential average of the mean over seeds, which is faint; on a
    logarithmic axis, of its logarithm. Methods with one setting share the first panel.
    """
    panels = {title: lines for title, lines in _panels(comparison).items() if lines}
    keys = [min(len(lines), _KEYS_PER_COLUMN) for lines in panels.values()]
    heights = [max(2.1, 0.4 + 0.165 * count) for count in keys]
    figure = style.new_figure(style.WIDTH, 0.5 + sum(heights) + 0.3 * len(heights))
    grid = figure.subplots(
        len(panels), 1, sharex=True, sharey=True, squeeze=False, height_ratios=heights
    )
    shown = np.concatenate([means for lines in panels.values() for means, *_ in lines])
    for axes, (title, lines) in zip(grid.flat, panels.items(), strict=True):
        style.log_if_wide(axes.yaxis, comparison.values, shown)
        for means, name, colour, line in lines:
            axes.plot(means.index, means, color=colour, linewidth=0.7, alpha=0.25)
            strong = smoothed(means, logarithms=style.is_wide(comparison.values, shown))
            # Settings differ at the end of their names, so those are hardly cut.
            label = style.short(name, 60)
            axes.plot(means.index, strong, color=colour, linestyle=line, lw=1.5, label=label)
        axes.set_title(style.short(title, 60), loc="left")
        beside = {"loc": "center left", "bbox_to_anchor": (1.01, 0.5)}
        ncols = math.ceil(len(lines) / _KEYS_PER_COLUMN)
        axes.legend(fontsize=8, labelspacing=0.25, handlelength=3, ncols=ncols, **beside)
    grid[-1, 0].set_xlabel("training step")
    prefix = f"{comparison.progress_split}, worst task: "
    figure.supylabel(style.axis_name(comparison.values, prefix), fontsize=10)
    return figure


def _panels(comparison: Comparison) -> dict[str, list[tuple]]:
    """By title, the lines of a panel: mean worst value by step, name, colour and line style."""
    panels: dict[str, list[tuple]] = {"one setting each": []}
    for method, look in style.looks(comparison.methods).items():
        settings = comparison.methods[method]
        # From dark to light, and also apart in grey; the lightest of the map are left out.
        ramp = matplotlib.colormaps["viridis"](np.linspace(0.0, 0.88, len(settings)))
        for i, setting in enumerate(settings):
            rows = comparison.rows(setting, comparison.progress_split)
            means = rows.groupby("step").worst.mean()
            if not len(means):
                continue
            if len(settings) == 1:
                panels["one setting each"].append((means, method, look.color, look.linestyle))
            else:
                line = style.LINES[i % len(style.LINES)]
                panels.setdefault(method, []).append((means, setting.differing, ramp[i], line))
    return panels


def _limits(values: np.ndarray) -> tuple[float, float]:
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    margin = 0.08 * (high - low) or 0.01 * abs(high) or 0.01
    return low - margin, high + margin

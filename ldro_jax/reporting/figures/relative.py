"""The figure of every task next to a model of its own, in the order of their training data."""

import math
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ldro_jax.reporting.comparison import Comparison
from ldro_jax.reporting.figures import style

_LETTERS = 80  # there is room for in a line


@style.applied
def relative_by_task(comparison: Comparison) -> Figure:
    """Each task's final value relative to a model of its own, by method; below, its training data.

    Tasks stand in the order of their sizes, the largest left; without sizes in the order of the
    record, with no panel below.
    """
    relative = comparison.relative
    assert relative is not None
    known = [name for name, value in comparison.own.items() if math.isfinite(value)]
    sizes = np.array([comparison.record.task_sizes.get(n, math.nan) for n in known], dtype=float)
    # NaN sorts last, so a task of unknown size stands at the right.
    order = np.argsort(-sizes, kind="stable")
    names, has_sizes = [known[int(i)] for i in order], bool((sizes > 0).any())
    figure = style.new_figure(style.WIDTH, 5.2 if has_sizes else 4.2)
    panels = figure.subplots(
        1 + has_sizes, 1, sharex=True, squeeze=False, height_ratios=[4, 1][: 1 + has_sizes]
    )[:, 0]
    _draw_values(panels[0], comparison, relative, names)
    name = style.axis_name(relative, f"{relative.split} ")
    panels[0].set_ylabel(name.replace(" (", ", %\n("))
    if has_sizes:
        panels[1].bar(range(len(names)), sizes[order], style.thickness(len(names)), color="#9a9a9a")
        panels[1].set_yscale("log")
        # A bar has no zero to start from here; the smallest task's should still be one.
        panels[1].set_ylim(bottom=sizes[sizes > 0].min() / 3)
        panels[1].set_ylabel("training\ndata")
    for axes in panels:
        axes.grid(False, axis="x")
        axes.tick_params(axis="x", length=0)
    labels = style.task_labels(comparison.record.task_names)
    ticks, named = style.sampled(names, 45)
    shown = [style.short(labels[n], 20) for n in named]
    rotation = 0 if max(map(len, shown)) * len(shown) <= _LETTERS else 90
    panels[-1].set_xticks(ticks, shown, rotation=rotation)
    panels[-1].set_xlim(-0.6, len(names) - 0.4)
    return figure


def _draw_values(axes, comparison, relative, names) -> None:
    places, keys, is_many = np.arange(len(names)), [], len(names) > style.MANY
    for place in () if is_many else places[::2]:
        axes.axvspan(place - 0.5, place + 0.5, color="#f5f5f5", linewidth=0, zorder=0)
    looks = style.looks(comparison.shown)
    for shift, (setting, look) in zip(style.shifts(len(looks), 0.25), looks.items(), strict=True):
        means = [relative.task_spread(setting, name).mean for name in names]
        # Between tasks there is nothing: the line is faint, and only helps to follow a method.
        if not is_many:
            axes.plot(places + shift, means, color=look.color, linewidth=0.8, alpha=0.35)
        points: dict[str, Any] = look.options | {"linestyle": "", "mec": "white"}
        size = 3 if is_many else 5
        axes.plot(places + shift, means, markersize=size, mew=0.08 * size, zorder=3, **points)
        keys.append(style.key(setting.label, **points))
    axes.axhline(0.0, color=style.GREY, linestyle="--", linewidth=1)
    style.legend_above(axes.figure, keys)

"""The figure of every task next to a model of its own, in the order of their training data."""

import math

import numpy as np

from ldro_jax.reporting.plots.style import (
    GREY,
    WIDTH,
    axis_name,
    empty_figure,
    legend_columns,
    log_if_wide,
    looks,
    new_figure,
    short,
    with_style,
)
from ldro_jax.reporting.relative import relative_record
from ldro_jax.reporting.summary import (
    final_values,
    group_runs,
    mean_spread,
    report_split,
    select_best,
)

_UPRIGHT = 10


@with_style
def relative_by_task(results):
    """Each task's final value relative to a model of its own, by method; below, its training data.

    Without references it shows the values themselves. Tasks stand in the order of their sizes, the
    largest left; without sizes in the order of the record, with no panel below.

    Args:
      results: the record; each method is shown with the setting `select_best` chooses.

    Returns:
      A figure.
    """
    relative = relative_record(results)
    shown = relative or select_best(results, by=results.select_by)
    split = report_split(shown)
    sizes = np.array([shown.task_sizes.get(n, math.nan) for n in shown.task_names], dtype=float)
    # NaN sorts last, so a task of unknown size stands at the right.
    order = np.argsort(-sizes, kind="stable")
    names = [shown.task_names[int(i)] for i in order]
    groups = group_runs(shown.runs)
    curves = {g.label: _means(g, split, shown.metric, names) for g in groups}
    curves = {label: values for label, values in curves.items() if np.isfinite(values).any()}
    if not curves:
        return empty_figure("no finished run with an evaluation")
    has_sizes = bool((sizes > 0).any())
    figure = new_figure(WIDTH, 5.2 if has_sizes else 4.2)
    panels = figure.subplots(
        1 + has_sizes, 1, sharex=True, squeeze=False, height_ratios=[4, 1][: 1 + has_sizes]
    )[:, 0]
    style = looks([g.label for g in groups])
    axes, places = panels[0], np.arange(len(names))
    for place in places[::2]:
        axes.axvspan(place - 0.5, place + 0.5, color="#f5f5f5", linewidth=0, zorder=0)
    # Side by side, so that equal values don't hide each other.
    shifts = np.linspace(-0.25, 0.25, len(curves)) if len(curves) > 1 else [0.0]
    for shift, (label, values) in zip(shifts, curves.items(), strict=True):
        look = style[label]
        # Between tasks there is nothing: the line is faint, and only helps to follow a method.
        axes.plot(places + shift, values, color=look.colour, linewidth=0.8, alpha=0.35)
        axes.plot(
            places + shift,
            values,
            look.marker,
            color=look.colour,
            markersize=5,
            markeredgecolor="white",
            markeredgewidth=0.4,
            zorder=3,
            label=short(label, 40),
        )
    if relative:
        axes.axhline(0.0, color=GREY, linestyle="--", linewidth=1)
        axes.set_ylabel(axis_name(shown, f"{split} ").replace(" (", ", %\n("))
    else:
        log_if_wide(axes.yaxis, shown, np.concatenate(list(curves.values())))
        axes.set_ylabel(axis_name(shown, f"{split} "))
    axes.grid(False, axis="x")
    axes.tick_params(axis="x", length=0)
    if has_sizes:
        panels[1].bar(places, sizes[order], 0.7, color="#9a9a9a")
        panels[1].set_yscale("log")
        # A bar has no zero to start from here; the smallest task's should still be one.
        panels[1].set_ylim(bottom=sizes[sizes > 0].min() / 3)
        panels[1].set_ylabel("training\ndata")
        panels[1].grid(False, axis="x")
    bottom = panels[-1]
    upright = len(names) <= _UPRIGHT
    bottom.set_xticks(places, [short(n, 20) for n in names], rotation=0 if upright else 90)
    bottom.tick_params(axis="x", length=0)
    bottom.set_xlim(-0.6, len(names) - 0.4)
    figure.legend(
        loc="outside upper center", ncols=legend_columns([short(label, 40) for label in curves])
    )
    return figure


def _means(group, split: str, metric: str, names) -> np.ndarray:
    values = [final_values(group, split, metric, f"task:{name}").values() for name in names]
    return np.array([mean_spread(v).mean for v in values])

"""Figures of the final state: average against worst task, every task, and what a step costs."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ldro_jax.reporting.comparison import Comparison
from ldro_jax.reporting.figures import style
from ldro_jax.reporting.frame import Setting
from ldro_jax.reporting.pareto import non_dominated
from ldro_jax.reporting.statistics import spread
from ldro_jax.reporting.tables import step_seconds
from ldro_jax.runtime import checks


@style.on_axes
def average_vs_worst(comparison: Comparison, ax: Axes | None = None) -> Axes:
    """Average against worst-task value: small points are seeds, large ones their mean.

    A thin line joins the non-dominated checkpoints of each method on the same split.
    """
    values = comparison.values
    axes, keys = style.axes_of(ax, 5.4), []
    for setting, look in style.looks(comparison.notable).items():
        seeds = values.overall[setting][["average", "worst"]].to_numpy(float)
        seeds = seeds[np.isfinite(seeds).all(axis=1)]
        frontier = non_dominated(comparison.checkpoints(setting), values.higher_is_better)
        if len(frontier) > 1:
            line = {"color": look.color, "linestyle": look.linestyle}
            axes.plot(*frontier.T, linewidth=1, alpha=0.7, **line)
        if not len(seeds):
            continue
        axes.plot(*seeds.T, look.marker, color=look.color, markersize=4, alpha=0.45, mew=0)
        x, y = spread(seeds[:, 0]), spread(seeds[:, 1])
        bars = {"xerr": x.std, "yerr": y.std, "elinewidth": 1.2, "capsize": 3} if x.n > 1 else {}
        marker = {"fmt": look.marker, "color": look.color, "markersize": 10, "mec": "white"}
        axes.errorbar(x.mean, y.mean, zorder=4, **bars, **marker)
        keys.append(style.key(setting.label, **look.options))
    axes.set_xlabel(style.axis_name(values, f"{values.split}, average over tasks: "))
    axes.set_ylabel(style.axis_name(values, f"{values.split}, worst task: "))
    style.legend_of(axes, keys, above=ax is None)
    return axes


@style.on_axes
def ranking(comparison: Comparison, ax: Axes | None = None, *, which: str = "worst") -> Axes:
    """Every method's worst task, or its average, the best worst task on top; strokes are seeds."""
    checks.one_of("which", which, ("average", "worst"))
    ranked = _ranked(comparison)
    axes = style.axes_of(ax, _ranking_height(ranked))
    _draw_ranking(axes, comparison, ranked, which)
    _name_rows(axes, ranked)
    return axes


@style.applied
def rankings(comparison: Comparison) -> Figure:
    """:func:`ranking` by the average and the worst task, side by side in the same order."""
    ranked = _ranked(comparison)
    figure = style.new_figure(style.WIDTH, _ranking_height(ranked))
    panels = figure.subplots(1, 2, sharey=True)
    for axes, which in zip(panels, ("average", "worst"), strict=True):
        _draw_ranking(axes, comparison, ranked, which)
    _name_rows(panels[0], ranked)
    return figure


def _ranked(comparison: Comparison) -> list[Setting]:
    """The settings with a worst task that is a number, the best first."""
    values = comparison.values
    spreads = {s: spread(values.overall[s]["worst"]) for s in comparison.shown}
    drawn = [s for s in comparison.shown if math.isfinite(spreads[s].mean)]
    return sorted(drawn, key=lambda s: -values.sign * spreads[s].mean)


def _ranking_height(settings: Sequence[Setting]) -> float:
    return 1.0 + 0.22 * len(settings)


def _name_rows(axes, settings: Sequence[Setting]) -> None:
    axes.set_yticks(range(len(settings)), [style.short(s.label, 32) for s in settings])
    axes.set_ylim(len(settings) - 0.5, -0.5)


def _draw_ranking(axes, comparison: Comparison, ranked: Sequence[Setting], which: str) -> None:
    values = comparison.values
    for row, setting in enumerate(ranked):
        seeds, color = values.overall[setting][which].to_numpy(float), "#0072b2"
        if setting is comparison.baseline:
            color = "black"
            axes.axvline(np.nanmean(seeds), color=style.GREY, linestyle="--", linewidth=1)
        value = spread(seeds)
        axes.plot(seeds, np.full(len(seeds), row), "|", color=color, alpha=0.35, markersize=7)
        error = value.std if math.isfinite(value.std) else 0.0
        axes.errorbar(value.mean, row, xerr=error, fmt="o", color=color, markersize=5)
    axes.set_title("average over tasks" if which == "average" else "worst task")
    axes.set_xlabel(style.axis_name(values, f"{values.split} "))
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0)


@style.on_axes
def task_values(comparison: Comparison, ax: Axes | None = None) -> Axes:
    """The final value of each task and method, tasks ordered by the baseline's value.

    Of many tasks only some are named, and spreads are left out.
    """
    values, order = comparison.values, comparison.task_order
    is_many = len(order) > style.MANY
    drawn_as = style.looks(comparison.notable)
    drawn = [s for s in comparison.notable if np.isfinite(values.tasks[s].to_numpy()).any()]
    row_height = 12 / len(order) if is_many else max(0.24, 0.075 * len(drawn) + 0.05)
    axes = style.axes_of(ax, 1.4 + row_height * len(order))
    for row in () if is_many else range(0, len(order), 2):
        axes.axhspan(row - 0.5, row + 0.5, color="#f3f3f3", linewidth=0, zorder=0)
    means, keys = [], []
    for shift, setting in zip(style.shifts(len(drawn), 0.32), drawn, strict=False):
        look = drawn_as[setting]
        spreads = [values.task_spread(setting, name) for name in order]
        means += [s.mean for s in spreads]
        axes.errorbar(
            [s.mean for s in spreads],
            np.arange(len(order)) + shift,
            xerr=None if is_many else [s.std if math.isfinite(s.std) else 0.0 for s in spreads],
            fmt=look.marker,
            color=look.color,
            markersize=3 if is_many else 5,
            alpha=0.7 if is_many else 1.0,
            markeredgewidth=0,
            elinewidth=1,
        )
        keys.append(style.key(setting.label, color=look.color, marker=look.marker, linestyle=""))
    labels = style.task_labels(comparison.record.task_names)
    places, named = style.sampled(order, style.MANY)
    axes.set_yticks(places, [values.named(n, style.short(labels[n], 26)) for n in named])
    style.log_if_wide(axes.xaxis, values, means)
    # The worst task on top, where one looks first.
    axes.set_ylim(len(order) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
    name = style.axis_name(values, f"{values.split} ")
    if values.lower_tasks:
        name = f"{values.split} {style.short(values.metric, 40)} (↑ higher, ↓ lower is better)"
    axes.set_xlabel(name)
    style.legend_of(axes, keys, above=ax is None)
    return axes


@style.on_axes
def step_time(comparison: Comparison, ax: Axes | None = None) -> Axes:
    """The time of one training step as a ratio to the baseline's."""
    reference = step_seconds(comparison.baseline).mean
    drawn_as = style.looks(comparison.shown)
    times = {s: step_seconds(s) for s in comparison.shown}
    times = {s: t for s, t in times.items() if math.isfinite(t.mean)}
    axes = style.axes_of(ax, 0.9 + 0.36 * len(times))
    for row, (setting, t) in enumerate(times.items()):
        error = t.std / reference if math.isfinite(t.std) else 0.0
        axes.barh(row, t.mean / reference, 0.62, color=drawn_as[setting].color, alpha=0.6)
        axes.errorbar(t.mean / reference, row, xerr=error, color="black", elinewidth=1, capsize=2)
    axes.axvline(1.0, color=style.GREY, linestyle="--", linewidth=1)
    axes.set_yticks(range(len(times)), [style.short(s.label, 32) for s in times])
    axes.set_ylim(len(times) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.grid(False, axis="y")
    numbers = axes.secondary_yaxis("right")
    texts = [f"{t.mean / reference:.2f}×  ({t.mean * 1e3:.3g} ms)" for t in times.values()]
    numbers.set_yticks(range(len(times)), texts)
    numbers.spines["right"].set_visible(False)
    for side in (axes, numbers):
        side.tick_params(axis="y", length=0)
    base = style.short(comparison.baseline.label, 32)
    axes.set_xlabel(f"time of one training step, as a ratio to {base}")
    return axes

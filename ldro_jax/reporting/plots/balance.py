"""Figures of the final state: average against worst task, every task, and what a step costs."""

import itertools
import math

import numpy as np

from ldro_jax.evaluation.pareto import non_dominated
from ldro_jax.reporting.comparison import step_seconds, task_order
from ldro_jax.reporting.plots.style import (
    GREY,
    WIDTH,
    axis_name,
    empty_figure,
    legend_columns,
    log_if_wide,
    looks,
    new_figure,
    place_labels,
    short,
    with_style,
)
from ldro_jax.reporting.summary import (
    default_baseline,
    final_values,
    group_runs,
    mean_spread,
    report_split,
)


def checkpoint_means(group, split: str, metric: str) -> np.ndarray:
    """Average and worst value at each step all seeds evaluated, mean over seeds.

    Args:
      group: the runs.
      split: the split.
      metric: the metric's name.

    Returns:
      Columns step, average, worst; shape [S, 3].
    """
    tables = [
        {
            e.step: (e.average, e.worst)
            for e in r.evaluations
            if (e.split, e.metric) == (split, metric)
        }
        for r in group.runs
        if r.stopped is None
    ]
    steps = sorted(set.intersection(*map(set, tables))) if tables else []
    rows = [(step, *np.mean([table[step] for table in tables], axis=0)) for step in steps]
    return np.array(rows, dtype=float).reshape(-1, 3)


@with_style
def average_vs_worst(results, *, split: str | None = None):
    """Average against worst-task value: small points are seeds, large ones their mean.

    A thin line joins the non-dominated checkpoints of each method on the same split.

    Args:
      results: the record.
      split: by default `report_split(results)`.

    Returns:
      A figure.
    """
    split = split or report_split(results)
    groups = group_runs(results.runs)
    style = looks([g.label for g in groups])
    figure = new_figure(WIDTH, 5.4)
    axes = figure.subplots()
    means, names, avoid = [], [], []
    for group in groups:
        look = style[group.label]
        average = final_values(group, split, results.metric, "average")
        worst = final_values(group, split, results.metric, "worst")
        seeds = np.array([(average[s], worst[s]) for s in average], dtype=float).reshape(-1, 2)
        seeds = seeds[np.isfinite(seeds).all(axis=1)]
        frontier = non_dominated(
            checkpoint_means(group, split, results.metric)[:, 1:], results.higher_is_better
        )
        if len(frontier) > 1:
            axes.plot(*frontier.T, color=look.colour, linestyle=look.line, linewidth=1, alpha=0.7)
            avoid.extend(_along(frontier))
        if not len(seeds):
            continue
        axes.plot(*seeds.T, look.marker, color=look.colour, markersize=4, alpha=0.45, mew=0)
        x, y = mean_spread(seeds[:, 0]), mean_spread(seeds[:, 1])
        several = len(seeds) > 1
        axes.errorbar(
            x.mean,
            y.mean,
            xerr=x.std if several else None,
            yerr=y.std if several else None,
            fmt=look.marker,
            color=look.colour,
            markersize=10,
            markeredgecolor="white",
            elinewidth=1.2,
            capsize=3,
            zorder=4,
        )
        means.append((x.mean, y.mean))
        names.append(group.label)
        avoid.extend(seeds)
        for end in [(x.std, 0.0), (0.0, y.std)] if several else []:
            avoid.extend(_along([np.subtract(means[-1], end), np.add(means[-1], end)]))
    if not means:
        return empty_figure("no finished run with an evaluation")
    axes.set_xlabel(axis_name(results, f"{split}, average over tasks: "))
    axes.set_ylabel(axis_name(results, f"{split}, worst task: "))
    axes.margins(0.12)
    place_labels(
        axes,
        np.array(means),
        [short(n, 32) for n in names],
        [style[n].colour for n in names],
        np.array(avoid),
    )
    return figure


def _along(corners) -> np.ndarray:
    """Points close together on a polyline, so that a label can be kept off it."""
    corners = np.asarray(corners, dtype=float)
    pieces = [np.linspace(a, b, 12) for a, b in itertools.pairwise(corners)]
    return np.concatenate(pieces)


@with_style
def task_values(results, *, split: str | None = None, baseline: str | None = None):
    """The final value of each task and method, tasks ordered by the baseline's value.

    Args:
      results: the record.
      split: by default `report_split(results)`.
      baseline: by default see `default_baseline`.

    Returns:
      A figure whose height grows with the number of tasks.
    """
    split = split or report_split(results)
    groups = group_runs(results.runs)
    order = task_order(results, split=split, baseline=baseline)
    spreads = {
        g.label: [
            mean_spread(final_values(g, split, results.metric, f"task:{name}").values())
            for name in order
        ]
        for g in groups
    }
    spreads = {k: row for k, row in spreads.items() if any(math.isfinite(s.mean) for s in row)}
    if not spreads:
        return empty_figure("no finished run with an evaluation")
    style = looks([g.label for g in groups])
    row_height = max(0.24, 0.075 * len(spreads) + 0.05)
    figure = new_figure(WIDTH, 1.4 + row_height * len(order))
    axes = figure.subplots()
    for row in range(0, len(order), 2):
        axes.axhspan(row - 0.5, row + 0.5, color="#f3f3f3", linewidth=0, zorder=0)
    shifts = np.linspace(-0.32, 0.32, len(spreads)) if len(spreads) > 1 else [0.0]
    for shift, (label, row) in zip(shifts, spreads.items(), strict=True):
        look = style[label]
        axes.errorbar(
            [s.mean for s in row],
            np.arange(len(order)) + shift,
            xerr=[s.std if math.isfinite(s.std) else 0.0 for s in row],
            fmt=look.marker,
            color=look.colour,
            markersize=5,
            elinewidth=1,
            label=short(label, 40),
        )
    axes.set_yticks(range(len(order)), [short(name, 26) for name in order])
    log_if_wide(axes.xaxis, results, [s.mean for row in spreads.values() for s in row])
    # The worst task on top, where one looks first.
    axes.set_ylim(len(order) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
    axes.set_xlabel(axis_name(results, f"{split} "))
    figure.legend(loc="outside upper center", ncols=legend_columns([short(n, 40) for n in spreads]))
    return figure


@with_style
def step_time(results, *, baseline: str | None = None):
    """The time of one training step as a ratio to the baseline's.

    Args:
      results: the record.
      baseline: by default see `default_baseline`.

    Returns:
      A figure with one bar per method that measured its time.
    """
    groups = group_runs(results.runs)
    times = {g.label: step_seconds(g) for g in groups}
    times = {label: t for label, t in times.items() if math.isfinite(t.mean)}
    reference = step_seconds(default_baseline(groups, baseline)).mean if groups else math.nan
    if not times or not math.isfinite(reference):
        return empty_figure("no time per step was recorded for the baseline")
    style = looks([g.label for g in groups])
    figure = new_figure(WIDTH, 0.9 + 0.36 * len(times))
    axes = figure.subplots()
    longest = max(t.mean / reference for t in times.values())
    for row, (label, t) in enumerate(times.items()):
        ratio = t.mean / reference
        error = t.std / reference if math.isfinite(t.std) else 0.0
        axes.barh(row, ratio, 0.62, color=style[label].colour, alpha=0.8)
        axes.errorbar(ratio, row, xerr=error, color="black", elinewidth=1, capsize=2)
        text = f"{ratio:.2f}×  ({t.mean * 1e3:.3g} ms)"
        axes.text(ratio + error + 0.015 * longest, row, text, va="center")
    axes.axvline(1.0, color=GREY, linestyle="--", linewidth=1)
    axes.set_yticks(range(len(times)), [short(label, 32) for label in times])
    axes.set_ylim(len(times) - 0.5, -0.5)
    axes.set_xlim(0, longest * 1.25)
    axes.grid(False, axis="y")
    base = short(default_baseline(groups, baseline).label, 32)
    axes.set_xlabel(f"time of one training step, as a ratio to {base}")
    return figure

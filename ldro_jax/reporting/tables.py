"""The tables of a report, as text for the terminal and as HTML."""

import math

from ldro_jax.records.results import Results
from ldro_jax.reporting.comparison import Row, headline_rows, task_order, verdict
from ldro_jax.reporting.layout import Table, best_rows
from ldro_jax.reporting.numbers import MISSING, decimals_for, mean_and_std, number, with_interval
from ldro_jax.reporting.summary import (
    default_baseline,
    final_values,
    group_runs,
    mean_spread,
    paired_difference,
    report_split,
)


def headline_text(
    results: Results, *, split: str | None = None, baseline: str | None = None
) -> str:
    """The headline table for a terminal, the best of each column marked with `*`.

    Args:
      results: the record.
      split: as in `headline_rows`.
      baseline: as in `headline_rows`.

    Returns:
      Aligned lines, at most 100 columns wide: long names are cut.
    """
    table = _headline(results, split, baseline)
    return table.text() if table.rows else "no runs"


def headline_html(
    results: Results, *, split: str | None = None, baseline: str | None = None
) -> str:
    """The headline table as HTML, the best of each column in bold.

    Args:
      results: the record.
      split: as in `headline_rows`.
      baseline: as in `headline_rows`.

    Returns:
      A `<table>` element.
    """
    return _headline(results, split, baseline).html()


def comparison_html(
    results: Results, *, split: str | None = None, baseline: str | None = None
) -> str:
    """Every method's paired difference to the baseline, and whether it is clear.

    Args:
      results: the record.
      split: as in `headline_rows`.
      baseline: as in `headline_rows`.

    Returns:
      A `<table>` element, or "" if there is nothing to compare.
    """
    groups = group_runs(results.runs)
    if len(groups) < 2:
        return ""
    split = split or report_split(results)
    base = default_baseline(groups, baseline)
    body = []
    for group in (g for g in groups if g is not base):
        row = [group.label]
        for which in ("worst", "average"):
            found = paired_difference(group, base, split=split, metric=results.metric, which=which)
            decimals = decimals_for(final_values(base, split, results.metric, which).values())
            row += [with_interval(found, decimals), verdict(found, results.higher_is_better)]
        body.append([*row, str(found.n)])
    header = [
        "method",
        f"worst, minus {base.label}",
        "",
        f"average, minus {base.label}",
        "",
        "pairs",
    ]
    return Table("", header, body, (), (0, 2, 4)).html()


def task_table_html(
    results: Results, *, split: str | None = None, baseline: str | None = None
) -> str:
    """Tasks by methods, the best of each task in bold, tasks from the baseline's worst to best.

    Args:
      results: the record.
      split: as in `headline_rows`.
      baseline: as in `headline_rows`.

    Returns:
      A `<table>` element, or "" without a finished run.
    """
    groups = group_runs(results.runs)
    split = split or report_split(results)
    order = task_order(results, split=split, baseline=baseline)
    spreads = [
        [
            mean_spread(final_values(g, split, results.metric, f"task:{name}").values())
            for g in groups
        ]
        for name in order
    ]
    if not any(s.n for row in spreads for s in row):
        return ""
    decimals = decimals_for(s.mean for row in spreads for s in row)
    body = [
        [name, *(mean_and_std(s, decimals) for s in row)]
        for name, row in zip(order, spreads, strict=True)
    ]
    best = {
        (i, j + 1)
        for i, row in enumerate(spreads)
        for j in best_rows([s.mean for s in row], results.higher_is_better, decimals)
    }
    return Table("", ["task", *(g.label for g in groups)], body, best, (0,)).html()


def seeds_text(row: Row) -> str:
    """How many seeds finished, and of how many if not all did."""
    return str(row.seeds) if row.finished == row.seeds else f"{row.finished} of {row.seeds}"


def _headline(results, split, baseline) -> Table:
    rows = headline_rows(results, split=split, baseline=baseline)
    split = split or report_split(results)
    header = [
        "method",
        "average",
        "worst task",
        "which task",
        "step time",
        "ms",
        "seeds",
    ]
    quality = decimals_for(v for r in rows for v in (r.average.mean, r.worst.mean))
    milliseconds = decimals_for(r.seconds.mean * 1e3 for r in rows)
    body = [
        [
            r.label,
            mean_and_std(r.average, quality),
            mean_and_std(r.worst, quality),
            r.worst_task or MISSING,
            number(r.time_ratio, 2) + ("×" if math.isfinite(r.time_ratio) else ""),
            number(r.seconds.mean * 1e3, milliseconds),
            seeds_text(r),
        ]
        for r in rows
    ]
    columns = {
        1: best_rows([r.average.mean for r in rows], results.higher_is_better, quality),
        2: best_rows([r.worst.mean for r in rows], results.higher_is_better, quality),
        4: best_rows([r.time_ratio for r in rows], False, 2),
        5: best_rows([r.seconds.mean * 1e3 for r in rows], False, milliseconds),
    }
    direction = "higher" if results.higher_is_better else "lower"
    title = f"{split} {results.metric} ({direction} is better)"
    best = {(i, j) for j, rows in columns.items() for i in rows}
    return Table(title, header, body, best, (0, 3))

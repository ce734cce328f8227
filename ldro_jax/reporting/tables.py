"""The tables of a report, as text for the terminal and as HTML."""

import math
from collections.abc import Collection, Sequence
from html import escape

from ldro_jax.reporting.comparison import headline_rows, task_order, verdict
from ldro_jax.reporting.numbers import MISSING, decimals_for, mean_and_std, number, with_interval
from ldro_jax.reporting.results import Results
from ldro_jax.reporting.summary import (
    default_baseline,
    final_values,
    group_runs,
    mean_spread,
    paired_difference,
    report_split,
)

_WIDTH = 100
_MIN_NAME = 18


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
    title, header, body, best = _headline_cells(results, split, baseline)
    if not body:
        return "no runs"
    marked = [
        [cell + ("*" if (i, j) in best else " ") for j, cell in enumerate(row)]
        for i, row in enumerate(body)
    ]
    lines = [[cell + " " for cell in header], *marked]
    limits = _limits(lines)
    lines = [[_cut(cell, limits.get(j, _WIDTH)) for j, cell in enumerate(line)] for line in lines]
    widths = [max(len(line[j]) for line in lines) for j in range(len(header))]

    def join(line):
        cells = zip(line, widths, range(len(line)), strict=True)
        return " ".join(c.ljust(w) if j in (0, 3) else c.rjust(w) for c, w, j in cells).rstrip()

    rule = "-" * max(len(join(line)) for line in lines)
    note = ["* best of its column"] if best else []
    return "\n".join([title, join(lines[0]), rule, *map(join, lines[1:]), *note])


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
    title, header, body, best = _headline_cells(results, split, baseline)
    return html_table(header, body, best, text_columns=(0, 3), title=title)


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
    return html_table(header, body, set(), text_columns=(0, 2, 4))


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
    return html_table(["task", *(g.label for g in groups)], body, best, text_columns=(0,))


def _headline_cells(results, split, baseline):
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
            str(r.seeds) if r.finished == r.seeds else f"{r.finished} of {r.seeds}",
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
    return title, header, body, {(i, j) for j, best in columns.items() for i in best}


def best_rows(values: Sequence[float], higher_is_better: bool, decimals: int) -> list[int]:
    """Where the best value of a column is, as it is shown.

    Args:
      values: of the rows.
      higher_is_better: the direction.
      decimals: how many are shown.

    Returns:
      Indices of the rows; none where only one has a value.
    """
    values = [round(v, decimals) if math.isfinite(v) else v for v in values]
    finite = [v for v in values if math.isfinite(v)]
    if len(finite) < 2:
        return []
    best = max(finite) if higher_is_better else min(finite)
    return [i for i, value in enumerate(values) if value == best]


def html_table(
    header: Sequence[str],
    body: Sequence[Sequence[str]],
    best: Collection[tuple[int, int]],
    *,
    text_columns: Collection[int],
    title: str = "",
) -> str:
    """A table as HTML.

    Args:
      header: names of the columns.
      body: the cells of each row.
      best: row and column of the cells in bold.
      text_columns: which columns aren't numbers.
      title: the caption.

    Returns:
      A `<table>` element, everything in it escaped.
    """

    def cell(tag, text, j, strong=False):
        text = f"<strong>{escape(text)}</strong>" if strong else escape(text)
        kind = "" if j in text_columns else ' class="n"'
        return f"<{tag}{kind}>{text}</{tag}>"

    head = "".join(cell("th", text, j) for j, text in enumerate(header))
    rows = (
        "".join(cell("td", text, j, (i, j) in best) for j, text in enumerate(row))
        for i, row in enumerate(body)
    )
    lines = "\n".join(f"<tr>{row}</tr>" for row in rows)
    caption = f"<caption>{escape(title)}</caption>\n" if title else ""
    return f"<table>\n{caption}<thead><tr>{head}</tr></thead>\n<tbody>\n{lines}\n</tbody>\n</table>"


def _limits(lines) -> dict[int, int]:
    """How wide the two columns of names may be, so that a line has 100 characters if it can."""
    widths = [max(len(line[j]) for line in lines) for j in range(len(lines[0]))]
    room = max(_WIDTH - sum(widths) - len(widths) + widths[0] + widths[3], 2 * _MIN_NAME)
    task = min(widths[3], max(room - widths[0], _MIN_NAME))
    return {0: room - task, 3: task}


def _cut(text: str, width: int) -> str:
    """Cuts the middle: settings of one method differ at the end of their names."""
    if len(text) <= width:
        return text
    head = (width - 1) // 2
    return text[:head] + "…" + text[len(text) - (width - 1 - head) :]

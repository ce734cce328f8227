"""How a record shows itself: a line in a terminal, a table of methods where it is printed."""

import html
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ldro_jax.records.json_types import plain

if TYPE_CHECKING:
    from ldro_jax.records.record import Evaluation, Results, Run

_SPLITS = ("test", "validation", "train")
# Of a sweep the report has all.
_MOST = 20


class Table(NamedTuple):
    """The methods of a record.

    Attributes:
      title: what the numbers are.
      head: the names of the columns.
      rows: a line for each method and setting, at most 20.
      left_out: how many lines there are besides.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    left_out: int


def line(results: "Results") -> str:
    """A record in one line.

    Args:
      results: the record.

    Returns:
      The text.
    """
    methods = len({run.method for run in results.runs})
    return (
        f"<Results {results.experiment!r}: {_count(methods, 'method')}, "
        f"{_count(len(results.runs), 'run')}, {_count(len(results.task_names), 'task')}, "
        f"{results.metric}>"
    )


def table(results: "Results") -> Table:
    """Average and worst value of each method, means over the runs that reached their end.

    Args:
      results: the record.

    Returns:
      The table, of each run's last evaluation on test if there is one, else on validation.
    """
    finished = [run for run in results.runs if run.stopped is None]
    splits = {e.split for run in finished for e in run.evaluations if e.metric == results.metric}
    split = next((name for name in _SPLITS if name in splits), "test")
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in results.runs:
        settings = json.dumps(plain(run.hyperparameters), sort_keys=True)
        groups.setdefault((run.method, settings), []).append(run)
    methods = [method for method, _ in groups]
    rows = []
    for (method, settings), runs in groups.items():
        label = f"{method} {settings}" if methods.count(method) > 1 else method
        last = [_last(run, split, results.metric) for run in runs]
        ends = [evaluation for evaluation in last if evaluation is not None]
        means = [_mean([getattr(e, name) for e in ends]) for name in ("average", "worst")]
        rows.append((label, *means, f"{len(ends)} of {len(runs)}"))
    title = f"{results.experiment}: {results.metric} on {split}"
    head = ("method", "average", "worst task", "finished runs")
    return Table(title, head, rows[:_MOST], max(0, len(rows) - _MOST))


def text(results: "Results") -> str:
    """The table for a terminal."""
    found = table(results)
    lines = [found.head, *found.rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = [
        "  ".join(
            cell.ljust(width) if number == 0 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        for cells in lines
    ]
    return "\n".join([found.title, *aligned, *_rest(found)])


def as_html(results: "Results") -> str:
    """The table for a notebook."""
    found = table(results)

    def row(cells, tag):
        return "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells) + "</tr>"

    rows = [row(found.head, "th"), *(row(cells, "td") for cells in found.rows)]
    rest = "".join(f"<p>{html.escape(sentence)}</p>" for sentence in _rest(found))
    return f"<table><caption>{html.escape(found.title)}</caption>{''.join(rows)}</table>{rest}"


def _rest(found: Table) -> list[str]:
    return [f"and {found.left_out} more settings"] if found.left_out else []


def _last(run: "Run", split: str, metric: str) -> "Evaluation | None":
    if run.stopped is not None:
        return None
    found = [e for e in run.evaluations if (e.split, e.metric) == (split, metric)]
    return max(found, key=lambda e: e.step, default=None)


def _mean(values: Sequence[float]) -> str:
    return f"{np.mean(values):.4g}" if values else "–"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"

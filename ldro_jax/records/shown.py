"""How a record shows itself: a line in a terminal, a table of methods where it is printed."""

import dataclasses
import html
import textwrap
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ldro_jax.records import relative

if TYPE_CHECKING:
    from ldro_jax.records.results import Results

# Settings in the table of a sweep; its report has all.
_MOST = 20
# Characters of a line, and those that a name in it keeps at least.
_WIDTH, _MIN_NAME = 100, 12


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of texts.

    Attributes:
      title: what it shows.
      header: names of the columns.
      rows: the cells of each row.
      best: row and column of the cells to mark.
      text_columns: which columns aren't numbers.
      note: a line below it, if anything is to be said.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    best: Collection[tuple[int, int]] = ()
    text_columns: Collection[int] = (0,)
    note: str = ""

    def text(self) -> str:
        """Aligned lines, the best of a column marked with `*`; long names are cut to fit 100."""
        marked = [
            [cell + ("*" if (i, j) in self.best else " ") for j, cell in enumerate(row)]
            for i, row in enumerate(self.rows)
        ]
        lines = [[cell + " " for cell in self.header], *marked]
        limits = self._limits(lines)
        lines = [[_cut(cell, limits[j]) for j, cell in enumerate(line)] for line in lines]

        def join(line):
            cells = zip(line, limits, range(len(line)), strict=True)
            padded = (c.ljust(w) if j in self.text_columns else c.rjust(w) for c, w, j in cells)
            return " ".join(padded).rstrip()

        rule = "-" * max(len(join(line)) for line in lines)
        notes = ["* best of its column"] if self.best else []
        notes += [part for line in self.note.splitlines() for part in textwrap.wrap(line, _WIDTH)]
        return "\n".join([self.title, join(lines[0]), rule, *map(join, lines[1:]), *notes])

    def _limits(self, lines) -> list[int]:
        """How wide each column is, names only so wide that a line has 100 characters if it can."""
        widths = [max(len(line[j]) for line in lines) for j in range(len(self.header))]
        while sum(widths) + len(widths) - 1 > _WIDTH:
            longest = max(self.text_columns, key=lambda j: widths[j])
            if widths[longest] <= _MIN_NAME:
                break
            widths[longest] -= 1
        return widths

    def latex(self) -> str:
        r"""A ``tabular`` with the rules of booktabs, the best of a column in bold."""

        def row(i, cells):
            texts = map(_escaped, cells)
            marked = (
                rf"\textbf{{{text}}}" if (i, j) in self.best else text
                for j, text in enumerate(texts)
            )
            return " & ".join(marked) + r" \\"

        columns = "".join("l" if j in self.text_columns else "r" for j in range(len(self.header)))
        rows = [row(i, cells) for i, cells in enumerate(self.rows)]
        lines = [r"\toprule", row(-1, self.header), r"\midrule", *rows, r"\bottomrule"]
        return "\n".join([rf"\begin{{tabular}}{{{columns}}}", *lines, r"\end{tabular}", ""])

    def html(self) -> str:
        """A table for a notebook, the best of a column in bold."""

        def row(i, cells, tag):
            texts = (
                f"<b>{html.escape(c)}</b>" if (i, j) in self.best else html.escape(c)
                for j, c in enumerate(cells)
            )
            return "<tr>" + "".join(f"<{tag}>{text}</{tag}>" for text in texts) + "</tr>"

        rows = [row(-1, self.header, "th")]
        rows += [row(i, cells, "td") for i, cells in enumerate(self.rows)]
        note = f"<p>{html.escape(self.note)}</p>" if self.note else ""
        title = html.escape(self.title)
        return f"<table><caption>{title}</caption>{''.join(rows)}</table>{note}"


# What LaTeX reads as commands, and what tables have that not every font of it has.
_LATEX = {
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"±": r"$\pm$", "×": r"$\times$", "−": "$-$", "Δ": r"$\Delta$", "–": "--", "…": r"\dots{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}"},
}


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text)


def _cut(text: str, width: int) -> str:
    """Cuts the middle: settings of one method differ at the end of their names."""
    if len(text) <= width:
        return text
    head = (width - 1) // 2
    return text[:head] + "…" + text[len(text) - (width - 1 - head) :]


def line(results: "Results") -> str:
    """A record in one line."""
    methods = len({run.method for run in results.runs})
    return (
        f"<Results {results.experiment!r}: {count(methods, 'method')}, "
        f"{count(len(results.runs), 'run')}, {count(len(results.task_names), 'task')}, "
        f"{results.metric}>"
    )


def table(results: "Results") -> Table:
    """Average and worst value of each method, and Δp: means over the runs that reached their end.

    They are of each run's last evaluation on test if there is one, else on validation.
    """
    split, groups = relative.split_of(results), relative.groups(results.runs)
    compared = relative.delta_p(results)
    rows = []
    for label, runs in groups.items():
        ends = [e for e in (relative.last(r, split, results.metric) for r in runs) if e is not None]
        means = [_mean([getattr(e, name) for e in ends]) for name in ("average", "worst")]
        rows.append([label, *means, f"{len(ends)} of {len(runs)}"])
        if compared is not None:
            gain = compared.means[label]
            rows[-1].insert(3, f"{round(gain, 1) + 0.0:.1f}" if np.isfinite(gain) else "–")
    left_out = len(rows) - _MOST
    notes = [f"and {left_out} more settings"] if left_out > 0 else []
    notes += [compared.note] if compared is not None else []
    delta = ["Δp %"] if compared is not None else []
    return Table(
        f"{results.experiment}: {results.metric} on {split}",
        ("method", "average", "worst task", *delta, "finished runs"),
        rows[:_MOST],
        note="\n".join(notes),
    )


def _mean(values: Sequence[float]) -> str:
    return f"{np.mean(values):.4g}" if values else "–"


def count(number: int, what: str) -> str:
    """A number of things, such as "1 seed" or "2 seeds"."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"

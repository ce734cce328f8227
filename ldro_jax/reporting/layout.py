"""A table of texts, written for a page, a terminal or a Markdown file."""

import dataclasses
import math
from collections.abc import Collection, Sequence
from html import escape

_WIDTH = 100
_MIN_NAME = 12


@dataclasses.dataclass(frozen=True)
class Table:
    """A table as text, to be written in one of three forms.

    Attributes:
      title: what it shows.
      header: names of the columns.
      rows: the cells of each row.
      best: row and column of the cells to mark.
      text_columns: which columns aren't numbers.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    best: Collection[tuple[int, int]]
    text_columns: Collection[int]

    def html(self) -> str:
        """A `<table>` element, everything in it escaped, the best of a column in bold."""

        def cell(tag, text, j, strong=False):
            text = f"<strong>{escape(text)}</strong>" if strong else escape(text)
            kind = "" if j in self.text_columns else ' class="n"'
            return f"<{tag}{kind}>{text}</{tag}>"

        head = "".join(cell("th", text, j) for j, text in enumerate(self.header))
        rows = (
            "".join(cell("td", text, j, (i, j) in self.best) for j, text in enumerate(row))
            for i, row in enumerate(self.rows)
        )
        body = "\n".join(f"<tr>{row}</tr>" for row in rows)
        caption = f"<caption>{escape(self.title)}</caption>\n" if self.title else ""
        return (
            f"<table>\n{caption}<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"
        )

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
        note = ["* best of its column"] if self.best else []
        return "\n".join([self.title, join(lines[0]), rule, *map(join, lines[1:]), *note])

    def markdown(self) -> str:
        """Lines of a Markdown table, the best of a column in bold; the title is not in it."""
        rows = [
            [f"**{cell}**" if (i, j) in self.best else cell for j, cell in enumerate(row)]
            for i, row in enumerate(self.rows)
        ]
        rule = ["---" if j in self.text_columns else "---:" for j in range(len(self.header))]
        lines = [[cell.replace("|", r"\|") for cell in row] for row in [self.header, rule, *rows]]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def _limits(self, lines) -> list[int]:
        """How wide each column is, names only so wide that a line has 100 characters if it can."""
        widths = [max(len(line[j]) for line in lines) for j in range(len(self.header))]
        while sum(widths) + len(widths) - 1 > _WIDTH:
            longest = max(self.text_columns, key=lambda j: widths[j])
            if widths[longest] <= _MIN_NAME:
                break
            widths[longest] -= 1
        return widths


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


def _cut(text: str, width: int) -> str:
    """Cuts the middle: settings of one method differ at the end of their names."""
    if len(text) <= width:
        return text
    head = (width - 1) // 2
    return text[:head] + "…" + text[len(text) - (width - 1 - head) :]

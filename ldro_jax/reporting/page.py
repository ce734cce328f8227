"""The building blocks of a report: a page of sections, its figures, and pieces of HTML."""

import base64
import io
import re
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from ldro_jax import paths

_CSS = """
:root { color-scheme: light; }
body { max-width: 1000px; margin: 0 auto; padding: 1.5rem; background: #fff; color: #1a1a1a;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.8rem; line-height: 1.2; margin: 0 0 .5rem; }
h2 { font-size: 1.25rem; margin: 2.4rem 0 .5rem; border-bottom: 1px solid #ddd; }
nav { font-size: .9rem; margin: 1rem 0; }
nav a { margin-right: 1rem; white-space: nowrap; }
a { color: #0060a0; }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: #555; padding: .2rem .7rem; }
th, td { padding: .3rem .7rem; text-align: left; border-bottom: 1px solid #e2e2e2;
  vertical-align: top; }
thead th { border-bottom: 2px solid #888; vertical-align: bottom; }
.n { text-align: right; }
td.n { white-space: nowrap; }
figure { margin: 1rem 0; }
img { max-width: 100%; height: auto; display: block; margin: 0 auto; }
figcaption, .note { color: #555; font-size: .9rem; }
.warn { border-left: 4px solid #D55E00; padding: .2rem 1rem; background: #fdf3ec; }
pre { overflow-x: auto; background: #f6f6f6; padding: .8rem; font-size: .85rem; }
@media print { body { padding: 0; } figure, tr { break-inside: avoid; }
  h2 { break-after: avoid; } nav { display: none; } pre { white-space: pre-wrap; } }
"""


class Page:
    """The sections so far; figures are written as they come.

    Attributes:
      figures: the folder of the figures, made with the first one.
      sections: identifier, title and HTML of each.
    """

    def __init__(self, figures: Path):
        self.figures = figures
        self.sections: list[tuple[str, str, str]] = []

    def section(self, title: str, *parts: str) -> None:
        """Adds a section: a title, escaped here, and HTML; empty parts are left out."""
        taken = {name for name, _, _ in self.sections}
        name = base = slug(title)
        # Two extra sections may share a title; an id may not.
        while name in taken:
            name = f"{base}-{len(taken)}"
        self.sections.append((name, title, "\n".join(part for part in parts if part)))

    def figure(self, name: str, figure, caption: str, alt: str) -> str:
        """Writes a matplotlib figure as `name`.png, and returns it as an HTML element."""
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", facecolor="white")
        data = buffer.getvalue()
        paths.write(self.figures / f"{name}.png", data)
        width, height = (int.from_bytes(data[i : i + 4], "big") for i in (16, 20))
        source = f"data:image/png;base64,{base64.b64encode(data).decode('ascii')}"
        return (
            f'<figure><img src="{source}" width="{width}" height="{height}" '
            f'alt="{escape(alt)}"><figcaption>{escape(caption)}</figcaption></figure>'
        )

    def html(self, title: str, introduction: str) -> str:
        """The whole document; title and introduction are escaped."""
        links = "\n".join(
            f'<a href="#{name}">{escape(text)}</a>' for name, text, _ in self.sections
        )
        body = "\n".join(
            f'<section id="{name}">\n<h2>{escape(text)}</h2>\n{content}\n</section>'
            for name, text, content in self.sections
        )
        return (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{escape(title)}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n"
            f"<h1>{escape(title)}</h1>\n<p>{escape(introduction)}</p>\n"
            f"<nav>{links}</nav>\n{body}\n</body>\n</html>\n"
        )


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table of texts, which are escaped; without a head if all of `header` is empty."""
    head = "".join(f"<th>{escape(text)}</th>" for text in header)
    head = f"<thead><tr>{head}</tr></thead>" if any(header) else ""
    lines = ("".join(f"<td>{escape(text)}</td>" for text in row) for row in rows)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table>{head}<tbody>{body}</tbody></table>"


def wide(content: str) -> str:
    """HTML that may be broader than the page, in a box that scrolls; "" stays ""."""
    return f'<div class="wide">{content}</div>' if content else ""


def note(text: str) -> str:
    """A paragraph of small print, escaped; "" stays ""."""
    return f'<p class="note">{escape(text)}</p>' if text else ""


def paragraph(sentences: Sequence[str]) -> str:
    """A paragraph, escaped; "" if there are no sentences."""
    return f"<p>{escape(' '.join(sentences))}</p>" if sentences else ""


def slug(text: str) -> str:
    """A text as an identifier or file name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "section"

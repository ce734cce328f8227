"""The page that a report is: sections, rendered with the templates, and figures as PNG files."""

import base64
import dataclasses
import io
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jinja2

from ldro_jax.runtime import paths


@dataclasses.dataclass(frozen=True)
class Picture:
    """A matplotlib figure that becomes `figures/NAME.png`, and what is said of it."""

    name: str
    figure: Any
    caption: str


@dataclasses.dataclass(frozen=True)
class Block:
    """A piece of a section.

    Attributes:
      kind: "text", "verdict", "note", "warnings", "table", "more" (a table that is folded), "code",
        "picture" or "trusted" (HTML); see `templates/blocks.html.j2`.
      content: of that kind; it is escaped unless it is trusted.
    """

    kind: str
    content: Any


@dataclasses.dataclass(frozen=True)
class Section:
    """A title and what stands below it."""

    title: str
    blocks: Sequence[Block]


def write(folder: Path, title: str, introduction: str, sections: Iterable[Section]) -> Path:
    """Writes `report.html`, and the figures in it as `figures/*.png`, and returns its path."""
    html = render(title, introduction, sections, lambda name, data: _write(folder, name, data))
    paths.write(folder / "report.html", html)
    return folder / "report.html"


def render(
    title: str,
    introduction: str,
    sections: Iterable[Section],
    keep: Callable[[str, bytes], None] = lambda name, data: None,
    *,
    reload: int | None = None,
) -> str:
    """The page, which holds its figures.

    Args:
      title: of the page.
      introduction: a paragraph.
      sections: what follows.
      keep: called with the name of each figure and its PNG file.
      reload: after how many seconds a browser loads the page again.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ldro_jax.reporting"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["picture"] = lambda picture: _drawn(picture, keep)
    return environment.get_template("report.html.j2").render(
        title=title, introduction=introduction, sections=_identified(sections), reload=reload
    )


def _identified(sections: Iterable[Section]) -> list[tuple[str, Section]]:
    """Sections with identifiers; two may share a title, but not these."""
    by_name: dict[str, Section] = {}
    for section in sections:
        name = base = slug(section.title)
        while name in by_name:
            name = f"{base}-{len(by_name)}"
        by_name[name] = section
    return list(by_name.items())


def _write(folder: Path, name: str, data: bytes) -> None:
    paths.write(folder / "figures" / f"{name}.png", data)


def _drawn(picture: Picture, keep: Callable[[str, bytes], None]) -> dict[str, Any]:
    picture.figure.savefig(buffer := io.BytesIO(), format="png", facecolor="white")
    data = buffer.getvalue()
    keep(picture.name, data)
    # A PNG file begins with its size.
    width, height = (int.from_bytes(data[i : i + 4], "big") for i in (16, 20))
    source = f"data:image/png;base64,{base64.b64encode(data).decode('ascii')}"
    return {"source": source, "width": width, "height": height}


def slug(text: str) -> str:
    """A text as an identifier or file name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "section"

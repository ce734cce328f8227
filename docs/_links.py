"""Links of Markdown pages, which are relative to the repository, made those of the site.

A link to a file that is a page leads to the page, one to any other to the repository's web address.
Files from outside this folder that are pages, such as the results, are copied here before Sphinx
looks for pages.
"""

import os
import pathlib
import re

from pygments.lexers.special import TextLexer
from sphinx.util import logging

_LOGGER = logging.getLogger(__name__)
DOCS = pathlib.Path(__file__).parent
ROOT = DOCS.parent


def copied() -> dict[str, str]:
    """The files of the repository that become pages, by the page's name."""
    results = sorted(path.parent.name for path in ROOT.glob("results/*/README.md"))
    return {
        "develop/contributing": "CONTRIBUTING.md",
        "develop/changelog": "CHANGELOG.md",
        **{f"results/{name}": f"results/{name}/README.md" for name in results},
    }


def write(page: str, text: str) -> None:
    """Writes a page where it isn't there already, so that Sphinx reads what has changed."""
    path = DOCS / page
    path.parent.mkdir(exist_ok=True)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def unbroken(text: str) -> str:
    """A number and its spread, and some with strokes, stay on one line of a narrow table."""
    return re.sub(r"(?<=\d) ([±/]) (?=\d)", "\N{NO-BREAK SPACE}\\1\N{NO-BREAK SPACE}", text)


def rewritten(text: str, page: str, repository: str) -> str:
    """The Markdown of a page with the links that hold on the site.

    Args:
      text: as it stands in the repository.
      page: the page's name, without ``.md``.
      repository: the repository's web address.
    """
    file = copied().get(page, f"docs/{page}.md")
    pages = {source: name for name, source in copied().items()}

    def link(match):
        opening, target, anchor = match[1], match[2], match[3] or ""
        if ":" in target or not target:
            return match[0]
        path = os.path.normpath(pathlib.Path(file).parent / target)
        if opening.startswith("!"):
            return f"{opening}{os.path.relpath(ROOT / path, (DOCS / page).parent)})"
        if path in pages or pathlib.Path(path).parts[0] == "docs":
            to = pages[path] + ".md" if path in pages else os.path.relpath(path, "docs")
            return f"{opening}{os.path.relpath(to, pathlib.Path(page).parent)}{anchor})"
        if not (ROOT / path).exists() or (anchor and anchor[1:] not in _anchors(path)):
            _LOGGER.warning("%s has a link to %s, which isn't there", file, target + anchor)
        kind = "tree" if (ROOT / path).is_dir() else "blob"
        return f"{opening}{repository}/{kind}/main/{path}{anchor})"

    # Code keeps what looks like a link.
    parts = re.split(r"(^```.*?^```$)", text, flags=re.DOTALL | re.MULTILINE)
    links = r"(!?\[[^\]]*\]\()([^)#\s]*)(#[^)\s]*)?\)"
    parts[::2] = [re.sub(links, link, unbroken(part)) for part in parts[::2]]
    return "".join(parts)


def _anchors(path: str) -> set[str]:
    text = (ROOT / path).read_text(encoding="utf-8")
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def _copy(app):
    del app
    for page, source in copied().items():
        write(f"{page}.md", (ROOT / source).read_text(encoding="utf-8"))


def _read(app, page, content):
    if app.env.doc2path(page).suffix == ".md":
        content[0] = rewritten(content[0], page, app.config.repository)


def setup(app):
    """Registers both."""
    app.add_config_value("repository", "", "env")
    app.add_lexer("gin", TextLexer)
    app.connect("builder-inited", _copy)
    app.connect("source-read", _read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

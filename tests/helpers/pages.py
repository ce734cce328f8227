"""Blocks of code of a page of the docs."""

import pathlib
import re

DOCS = pathlib.Path(__file__).parents[2] / "docs"


def run(page, word, names):
    """Runs the first block of Python of a page that has a word, with some names, which it changes.

    Each block is for readers who have these already.
    """
    text = (DOCS / page).read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    code = next(block for block in blocks if word in block)
    exec(compile(code, page, "exec"), names)
    return names

"""Formulas as MathML, which browsers show without JavaScript and without a network."""

from docutils import nodes
from docutils.utils.math import MathError, latex2mathml, tex2unichar
from sphinx.util import logging

_LOGGER = logging.getLogger(__name__)
_TABLES = ("mathbin", "mathclose", "mathfence", "mathopen", "mathord", "mathrel")
# Signs that docstrings have as they are, and docutils takes as commands only.
_COMMANDS = {
    sign: f"\\{name} "
    for table in _TABLES
    for name, sign in getattr(tex2unichar, table).items()
    if len(sign) == 1 and not sign.isascii()
} | {"−": "-", "·": r"\cdot ", "½": r"\tfrac{1}{2}", "⊤": r"\top ", "‖": r"\Vert "}


def to_mathml(formula: str, *, as_block: bool = False) -> str:
    """The MathML of a formula in LaTeX, with Unicode's signs as they are.

    Raises:
      docutils.utils.math.MathError: if it has a command that docutils doesn't know.
    """
    spelt = "".join(_COMMANDS.get(sign, sign) for sign in formula)
    return latex2mathml.tex2mathml(spelt, as_block=as_block)


def _visit(translator, node):
    is_block = isinstance(node, nodes.math_block)
    try:
        made = to_mathml(node.astext(), as_block=is_block)
    except MathError as error:
        _LOGGER.warning("%s in the formula %s", error, node.astext(), location=node)
        made = f"<code>{translator.encode(node.astext())}</code>"
    translator.body.append(f'<div class="math">{made}</div>' if is_block else made)
    raise nodes.SkipNode


def setup(app):
    """Registers the renderer, for ``html_math_renderer = "mathml"``."""
    app.add_html_math_renderer("mathml", (_visit, None), (_visit, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}

"""Lists of all methods, made from what each says of itself: `ldro-jax list`, and the documents.

``python -m ldro_jax.weighting.listing docs/methods.md docs/choose.md`` writes their tables anew,
between ``<!-- methods: … -->`` and ``<!-- end -->``. The last column of the large table, what
a method costs, is measured by ``benchmarks/methods.py`` and kept.
"""

import inspect
import pathlib
import re
import sys
from collections.abc import Callable

from ldro_jax.weighting import about, registry


def names() -> list[str]:
    """All methods, family by family, the simplest family first."""
    return sorted(about.METHODS, key=lambda n: (about.FAMILIES.index(about.ABOUT[n].family), n))


def text() -> str:
    """All methods with their formulas, papers and hyperparameters, for a terminal."""
    lines, last = [], ""
    for name in names():
        said = about.ABOUT[name]
        if said.family != last:
            lines.append(f"\n{said.family}")
            last = said.family
        paper = f" ({said.paper})" if said.paper else ""
        parameters = inspect.signature(about.METHODS[name]).parameters.values()
        given = ", ".join(_with_default(parameter) for parameter in parameters)
        lines.append(f"  {name}({given}): {said.weights}{paper}")
    return "\n".join(lines).strip()


def _with_default(parameter: inspect.Parameter) -> str:
    required = parameter.default is inspect.Parameter.empty
    return parameter.name if required else f"{parameter.name}={parameter.default!r}"


def document(page: str) -> str:
    """A document, in Markdown, with what stands between the marks made anew from the methods."""
    made: dict[str, Callable[[str], list[str]]] = {
        "families": _families,
        "losses": _losses,
        "table": _table,
    }

    def anew(match):
        return "\n".join([match[1], *made[match[2]](match[3]), match[4]])

    marks = rf"(<!-- methods: ({'|'.join(made)}) -->)\n(.*?)\n(<!-- end -->)"
    return re.sub(marks, anew, page, flags=re.DOTALL)


def _families(old: str) -> list[str]:
    del old
    lines = ["| | `weighting.` |", "|---|---|"]
    for family in about.FAMILIES:
        lines.append(_row(family, _code([n for n in names() if about.ABOUT[n].family == family])))
    return lines


def _losses(old: str) -> list[str]:
    del old
    needy = [name for name in names() if _usual(name).needs_positive_losses]
    others = [name for name in names() if name not in needy]
    rows = [_row("of no constant", _code(others)), _row("need positive losses", _code(needy))]
    return ["| | |", "|---|---|", *rows]


def _table(old: str) -> list[str]:
    measured = dict(re.findall(r"^\| `(\w+)` \|.*\| ([^|]*) \|$", old, re.MULTILINE))
    head = ("name", "w", "paper", "A", "state", "sums to", "unit", "ms, N = 20 / 40 / 64")
    lines = [_row(*head), "|---" * len(head) + "|"]
    for name in names():
        said = about.ABOUT[name]
        lines.append(
            _row(
                f"`{name}`",
                said.weights,
                said.paper,
                interaction(name),
                said.state,
                said.sums_to,
                unit(name),
                measured.get(name, ""),
            )
        )
    return lines


def interaction(name: str) -> str:
    """What a method needs of the interaction: "A", "A, split", "products" or "none", or nothing."""
    made = _usual(name)
    if not made.uses_interaction:
        return ""
    every = (about.settings(s, [1.0, 2.0]) for s in about.ABOUT[name].variants.values())
    needed = "A, split" if made.default_interaction == "split" else "A"
    ways = [needed] if made.by_products is None else [needed, "products"]
    if not all(registry.create(name, settings).uses_interaction for settings in every):
        ways.append("none")
    return " or ".join(ways)


def unit(name: str) -> str:
    """When the shares of the tasks don't depend on the unit of the losses: "any", how, or never."""
    if about.ABOUT[name].scale_free:
        return "any"
    relative = "relative" in inspect.signature(about.METHODS[name]).parameters
    return "`relative`" if relative else ""


def _usual(name: str):
    return registry.create(name, about.usual(name, 2))


def _code(methods: list[str]) -> str:
    return " ".join(f"`{name}`" for name in methods)


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    for _file in map(pathlib.Path, sys.argv[1:]):
        _file.write_text(document(_file.read_text(encoding="utf-8")), encoding="utf-8")

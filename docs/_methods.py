"""A page for each method and one of all, from what ``about.method`` says beside its function."""

import functools
import re
from collections.abc import Callable, Iterable, Sequence

import _links
import numpy as np

from ldro_jax import weighting
from ldro_jax.weighting import about, listing

# What the tables of results call methods, where that is no name of a gin file.
_SHOWN = {"w ∝ s": "signal", "w ∝ s exp(ℓs/max)": "signal"}


def page(name: str) -> str:
    """The page of a method, in reStructuredText."""
    said = weighting.ABOUT[name]
    parts = [
        _heading(name, "="),
        f"*{said.family}*",
        _facts(name),
        f".. code-block:: python\n\n{_indented(example(name))}",
        f".. automodule:: {weighting.METHODS[name].__module__}\n   :no-index:",
        _heading("Function", "-"),
        f".. currentmodule:: ldro_jax.weighting\n\n.. autofunction:: {name}",
        _heading("What tests check", "-"),
        "With the settings above:",
        "\n".join(f"* {_escaped(line)}" for line in properties(name)),
    ]
    if found := evidence(name):
        parts += [_heading("Measured", "-"), *found]
    return "\n\n".join(parts) + "\n"


def index() -> str:
    """The page of all methods, family by family."""
    parts = [
        _heading("All methods", "="),
        "A page each: the formula, its function, what tests check and what was measured.",
    ]
    for family in weighting.FAMILIES:
        names = [name for name in listing.names() if weighting.ABOUT[name].family == family]
        rows = [("method", "weights", "paper")]
        for name in names:
            said = weighting.ABOUT[name]
            rows.append((f":doc:`{name} <{name}>`", _escaped(said.weights), _escaped(said.paper)))
        parts += [_heading(family[0].upper() + family[1:], "-")]
        parts += [_table(rows, ":header-rows: 1")]
        parts += [".. toctree::\n   :hidden:\n\n" + "\n".join(f"   {name}" for name in names)]
    return "\n\n".join(parts) + "\n"


def example(name: str) -> str:
    """How a method is made, for three tasks: in a loop of one's own and in an experiment."""
    given = {
        key: np.round(value, 2).tolist() if isinstance(value, np.ndarray) else value
        for key, value in weighting.usual(name, 3).items()
    }
    arguments = ", ".join(f"{key}={value!r}" for key, value in given.items())
    settings = f", {given!r}".replace("'", '"') if given else ""
    return f"""from ldro_jax import transform, weighting
from ldro_jax.training import Method

tx = transform.weighted(weighting.{name}({arguments}), num_tasks=3)
method = Method("{name}", "{name}"{settings})"""


def properties(name: str) -> list[str]:
    """What the tests of all methods check of this one, by what it says of itself."""
    said, made = weighting.ABOUT[name], weighting.create(name, weighting.usual(name, 2))
    total = {"1": " and sum to one", "N": " and sum to N", "1 or more": ", at least 1/N each,"}
    takes = weighting.from_data(name, {})
    references = " and references" if "reference_losses" in takes else ""
    signs = "" if said.signed else ", and none is negative"
    lines = [
        f"Weights are finite{total.get(said.sums_to, '')} for losses and gradients of any scale, "
        f"zero as well{signs}.",
        "Losses in another unit give every task the same share of the weight."
        if said.scale_free
        else "Losses in another unit give other shares of the weight.",
        "Losses must be positive: a step with others keeps the weights that it had."
        if made.needs_positive_losses
        else f"A constant added to all losses{references} makes no difference.",
        "A task that was in no batch yet has its weight as ever."
        if said.family == about.FIXED and name != "random_loss"
        else "Until a task was in a batch, the others have the weights of a problem without it.",
        "One program serves all steps, also under vmap and with a task on each of eight devices, "
        "in float32 and float64. Its state keeps its types, and may be donated.",
    ]
    if not said.random:
        lines.append("In another order the tasks have the same weights.")
    return lines


def evidence(name: str) -> list[str]:
    """The rows of this method in the tables of results, in reStructuredText."""
    parts = []
    for results, words in {
        "digits_methods": "On ten tasks of handwritten digits, ten seeds",
        "hopeless": "On nine tasks beside hopeless ones, twenty seeds, less the average loss",
    }.items():
        head, rows = _first_table(results)
        mine = [row for row in rows if _method_of(row[0]) == name]
        if mine:
            parts += [f"{words} (:doc:`all of it </results/{results}>`):"]
            parts += [_table([head, *mine], ":header-rows: 1", of=_escaped)]
    return parts


def _first_table(results: str) -> tuple[list[str], list[list[str]]]:
    text = (_links.ROOT / "results" / results / "README.md").read_text(encoding="utf-8")
    table = re.search(r"(?:^\|.*\|$\n?)+", _links.unbroken(text), re.MULTILINE)[0]
    head, _, *rows = [[c.strip() for c in line[1:-1].split("|")] for line in table.splitlines()]
    return head, rows


def _method_of(shown: str) -> str | None:
    """The method of a row, by its first cell: a name of a gin file, and settings in brackets."""
    label = re.sub(r"\*\*|:.*", "", shown)
    shorter = re.sub(r" \([^)]*\)$", "", label)
    plain = re.sub(r", (relative|with references)$", "", shorter)
    names = {**_names_in_gin(), **_SHOWN}
    return next((names[each] for each in (label, shorter, plain) if each in names), None)


@functools.cache
def _names_in_gin() -> dict[str, str]:
    folder = _links.ROOT / "gin_configs"
    files = sorted([*folder.glob("methods/*.gin"), *folder.glob("experiments/digits*.gin")])
    text = "\n".join(path.read_text(encoding="utf-8") for path in files)
    given: dict[str, dict[str, str]] = {}
    field = r'^([\w/]+)/Method\.(name|weighting) = "(.*)"$'
    for scope, key, value in re.findall(field, text, re.MULTILINE):
        given.setdefault(scope, {})[key] = value
    return {each["name"]: each["weighting"] for each in given.values() if len(each) == 2}


def _facts(name: str) -> str:
    said = weighting.ABOUT[name]
    facts = {
        "Weights": _escaped(said.weights),
        "Paper": _escaped(said.paper),
        "Keeps": _escaped(said.state) or "nothing between steps",
        "Sum": said.sums_to,
        "Reads": _reads(name),
        "Rates": _unit(name),
        "Variants": ", ".join(f"``{word}``" for word in said.variants),
        "Cost": _cost(name),
    }
    return _table([f"**{key}**", value] for key, value in facts.items() if value)


def _reads(name):
    needed = listing.interaction(name)
    return f"losses and {needed}" if needed else "losses alone"


def _unit(name):
    return {
        "any": "the shares don't depend on the unit of the losses",
        "`relative`": "in units of the losses; with ``relative=True`` in none",
        "": "in units of the losses",
    }[listing.unit(name)]


def _cost(name: str) -> str:
    text = (_links.DOCS / "methods.md").read_text(encoding="utf-8")
    found = re.search(rf"^\| `{name}` \|.*\| ([^|]+) \|$", text, re.MULTILINE)
    return f"{found[1]} ms for 20 / 40 / 64 tasks on one CPU core" if found else ""


def _heading(text: str, line: str) -> str:
    return f"{_escaped(text)}\n{line * (2 * len(text))}"


def _escaped(text: str) -> str:
    """Plain words; what Markdown has as code stays code."""
    parts = re.split(r"`([^`]*)`", text.replace("**", ""))
    parts[::2] = [re.sub(r"([\\*_|`])", r"\\\1", part) for part in parts[::2]]
    parts[1::2] = [f"``{part}``" for part in parts[1::2]]
    return "".join(parts)


def _table(rows: Iterable[Sequence[str]], *options: str, of: Callable[[str], str] = str) -> str:
    lines = [".. list-table::", *(f"   {option}" for option in options), ""]
    for row in rows:
        lines += [f"   {' ' if number else '*'} - {of(cell)}" for number, cell in enumerate(row)]
    return "\n".join(lines)


def _indented(text: str) -> str:
    return "\n".join(f"   {line}".rstrip() for line in text.splitlines())


def _write(app):
    del app
    _links.write("methods/index.rst", index())
    for name in listing.names():
        _links.write(f"methods/{name}.rst", page(name))


def setup(app):
    """Writes the pages before Sphinx looks for them."""
    app.connect("builder-inited", _write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

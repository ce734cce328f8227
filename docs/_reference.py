"""A page for each package with all that it exports, and where references to names lead."""

import ast
import dataclasses
import functools
import importlib
import inspect
import pathlib
import pkgutil
import re
import sys
import textwrap
import types
from typing import Any

import _links
from docutils import nodes
from sphinx.domains.python import PyObject
from sphinx.util.nodes import make_refnode

from ldro_jax import weighting

# Packages that export names, and others with the modules whose names are for users.
PAGES: dict[str, tuple[str, ...]] = {
    "ldro_jax": (),
    "ldro_jax.ldro": (),
    "ldro_jax.transform": (),
    "ldro_jax.weighting": (),
    "ldro_jax.interaction": (),
    "ldro_jax.integrations": ("nnx",),
    "ldro_jax.measuring": (),
    "ldro_jax.training": (),
    "ldro_jax.problems": ("public_data",),
    "ldro_jax.tasks": ("base", "digits", "cifar100", "corrupted", "text", "mc4", "vocabulary"),
    "ldro_jax.tasks.grouped": (),
    "ldro_jax.models": ("mlp", "cnn", "autoencoder", "decoder"),
    "ldro_jax.optimizers": (),
    "ldro_jax.experiments": ("grouped", "worst_groups", "approaches", "alone"),
    "ldro_jax.grouping": (),
    "ldro_jax.records": ("results", "relative", "best"),
    "ldro_jax.reporting": (),
    "ldro_jax.games": (),
    "ldro_jax.solvers": (),
}


def exported(module: types.ModuleType) -> list[str]:
    """The public names of a module: its ``__all__``, names imported as themselves, or its own."""
    if hasattr(module, "__all__"):
        return list(module.__all__)
    imports = [
        n for n in ast.parse(inspect.getsource(module)).body if isinstance(n, ast.ImportFrom)
    ]
    as_themselves = [a.name for n in imports for a in n.names if a.name == a.asname]
    own = [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and getattr(value, "__module__", None) == module.__name__
        and (inspect.isclass(value) or callable(value))
    ]
    return as_themselves or own


@functools.cache
def documented() -> dict[str, Any]:
    """Every object of these pages, by the name that it has there; methods have pages of theirs."""
    found = {}
    for page, parts in PAGES.items():
        for name in (page, *(f"{page}.{part}" for part in parts)):
            module = importlib.import_module(name)
            for each in exported(module):
                value = getattr(module, each)
                if not inspect.ismodule(value):
                    found.setdefault(f"{name}.{each}", value)
    return found


def page(package: str) -> str:
    """The page of a package, in reStructuredText."""
    parts = [_heading(package, "=")]
    for name in (package, *(f"{package}.{part}" for part in PAGES[package])):
        module = importlib.import_module(name)
        if name != package:
            parts.append(_heading(name, "-"))
        parts.append(f".. automodule:: {name}\n   :no-members:")
        if name == "ldro_jax.weighting":
            parts.append("The methods have pages of their own: :doc:`/methods/index`.")
        parts += [_entry(name, each) for each in exported(module)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _entry(module: str, name: str) -> str:
    value = getattr(importlib.import_module(module), name)
    if inspect.ismodule(value):
        return f"* :doc:`{value.__name__}`" if value.__name__ in PAGES else ""
    if module == "ldro_jax.weighting" and name in weighting.METHODS:
        return ""
    if inspect.isclass(value):
        return f".. autoclass:: {name}\n   :members:"
    if callable(value):
        return f".. autofunction:: {name}"
    return f".. py:data:: {name}\n\n   {_comment(module, name)}"


def _comment(module: str, name: str) -> str:
    """What stands above the assignment of a name, wherever its module has it from."""
    for each in [m for key, m in sys.modules.items() if key.startswith(module)]:
        source = inspect.getsource(each)
        if found := re.search(rf"((?:^# .*\n)+)^{name}(?::.*)? = ", source, re.MULTILINE):
            return re.sub(r"\n?# ", " ", found[1]).strip()
    raise LookupError(f"No comment says what {module}.{name} is.")


def _heading(text: str, line: str) -> str:
    return f"{text}\n{line * len(text)}"


def index() -> str:
    """The page that lists these."""
    lines = [f"* :doc:`{name}`: {_first_line(importlib.import_module(name))}" for name in PAGES]
    toctree = ".. toctree::\n   :hidden:\n\n" + "\n".join(f"   {name}" for name in PAGES)
    return "\n\n".join([_heading("All names", "="), "\n".join(lines), toctree]) + "\n"


def _first_line(module) -> str:
    return module.__doc__.partition("\n\n")[0].replace("\n", " ")


def _as_written(app, what, name, value, options, signature, returns):
    """The signature with the types as the code has them: an alias isn't spelt out."""
    del app, name, options
    if dataclasses.is_dataclass(value) or (
        inspect.isclass(value) and "__init__" not in vars(value)
    ):
        fields = _fields(value)
        given = [fields[each] for each in inspect.signature(value).parameters if each in fields]
        return (f"({', '.join(given)})", None) if given else None
    function = inspect.unwrap(value.__init__ if inspect.isclass(value) else value)
    if not inspect.isfunction(function):
        return None
    node = _parsed(function)
    if not isinstance(node, ast.FunctionDef):
        return None
    arguments = node.args.posonlyargs or node.args.args
    if what != "function" and arguments and arguments[0].arg in ("self", "cls"):
        del arguments[0]
    return f"({ast.unparse(node.args)})", node.returns and ast.unparse(node.returns)


def _fields(value: type) -> dict[str, str]:
    """The fields of a class with annotations, as arguments: "name: type = default"."""
    found = {}
    for each in reversed(value.__mro__):
        node = _parsed(each) if each.__module__.startswith("ldro_jax") else None
        for line in node.body if node else ():
            if isinstance(line, ast.AnnAssign):
                written = re.sub(r"= .*field\(default_factory=(.*)\)", r"= \1()", ast.unparse(line))
                found[line.target.id] = written
    return found


@functools.cache
def _parsed(value: Any) -> Any:
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(value))).body[0]
    except (OSError, SyntaxError):
        return None


@functools.cache
def _find(target: str, module: str | None, within: str | None) -> Any:
    """The object of a name as a docstring or a type writes it, or None."""
    loaded = [name for name in sorted(sys.modules) if name.startswith("ldro_jax")]
    places = [f"{place}:{target}" for place in (module, *loaded)]
    for place in (f"{module}:{within}.{target}", *places, target):
        try:
            return pkgutil.resolve_name(place)
        except (ImportError, AttributeError, ValueError):
            continue
    return None


def _resolve(app, env, node, content):
    """A name that Sphinx doesn't know by this path: its page, its source, or another library's."""
    if node.get("refdomain") != "py":
        return None
    # Sphinx has arrays by another name, and leaves the arguments of some types in theirs.
    target = node["reftarget"].replace("jax.jaxlib._jax", "jax").partition("[")[0]
    module, within = node.get("py:module"), node.get("py:class")
    if node["reftype"] == "attr" and within:
        described = [c.__doc__ or "" for c in _find(within, module, None).__mro__]
        if re.search(rf"^ *{target}:", "\n".join(described), re.MULTILINE):
            return content
    value = _find(target.lstrip("."), module, within)
    if value is None:
        return None
    domain = env.domains["py"]
    for name, each in documented().items():
        if each is value and name in domain.objects:
            entry = domain.objects[name]
            return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, content)
    defined = inspect.getmodule(value)
    if defined is None or not defined.__name__.startswith("ldro_jax"):
        # Of another library, whose pages aren't at hand: in a signature with its module's name.
        return content if isinstance(content, nodes.literal) else nodes.Text(target)
    source = pathlib.Path(defined.__file__).relative_to(_links.ROOT)
    return nodes.reference(
        "", "", content, internal=False, refuri=f"{app.config.repository}/blob/main/{source}"
    )


def _apart(app, what, name, value, options, lines):
    """Each reference of a docstring is a paragraph of its own."""
    del app, what, name, value, options
    start = lines.index("References:") if "References:" in lines else len(lines)
    for number in reversed(range(start, len(lines))):
        if re.search(r"\d{4}\w?\.$", lines[number]):
            lines.insert(number + 1, "")


def _skips(app, what, name, value, skip, options):
    """A named tuple's fields, which its docstring describes."""
    del app, what, name, options
    return True if (getattr(value, "__doc__", "") or "").startswith("Alias for field") else skip


def _write(app):
    del app
    _links.write("api/index.rst", index())
    for name in PAGES:
        _links.write(f"api/{name}.rst", page(name))


def setup(app):
    """Writes the pages before Sphinx looks for them, and resolves what it can't."""
    for field in PyObject.doc_field_types:
        if field.name == "variable":
            field.label = "Attributes"
    app.connect("builder-inited", _write)
    app.connect("autodoc-process-signature", _as_written)
    app.connect("autodoc-skip-member", _skips)
    app.connect("autodoc-process-docstring", _apart, priority=400)  # before napoleon
    app.connect("missing-reference", _resolve)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

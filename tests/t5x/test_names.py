"""What the page and the errors name is there."""

import importlib
import pathlib
import re

import pytest

pytest.importorskip(
    "helpers.tiny_t5x", reason="T5X is not installed (scripts/install_t5x.sh)", exc_type=ImportError
)
ROOT = pathlib.Path(__file__).parents[2]
TEXTS = [*sorted((ROOT / "ldro_jax" / "t5x").glob("*.[pg]*")), ROOT / "docs" / "t5x.md"]


def is_there(name):
    """Whether a dotted name is a module, or an attribute of something that is there."""
    try:
        importlib.import_module(name)
        return True
    except ImportError:
        parent, _, last = name.rpartition(".")
    return bool(parent) and hasattr(resolved(parent), last)


def resolved(name):
    try:
        return importlib.import_module(name)
    except ImportError:
        parent, _, last = name.rpartition(".")
        return getattr(resolved(parent), last, None) if parent else None


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_names_and_files_are_there(path):
    text = path.read_text(encoding="utf-8")
    names = set(re.findall(r"\bldro_jax(?:\.[A-Za-z]\w*)+", text))
    assert [name for name in sorted(names) if not is_there(name)] == []
    folders = "ldro_jax|gin_configs|scripts|tests"
    files = set(re.findall(rf"\b(?:{folders})/[\w/]+\.(?:gin|sh|py)\b", text))
    assert [file for file in sorted(files) if not (ROOT / file).exists()] == []

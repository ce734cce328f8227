"""What the README shows works as it stands."""

import pathlib
import re

import pytest

from ldro_jax import interaction, weighting
from ldro_jax.weighting import listing

_ROOT = pathlib.Path(__file__).parent.parent
_README = (_ROOT / "README.md").read_text(encoding="utf-8")
_BLOCKS = re.findall(r"```python\n(.*?)```", _README, re.DOTALL)


@pytest.mark.parametrize("code", _BLOCKS)
def test_python_examples_run(code, capsys):
    # They pass under the strict promotion of the tests, so also without.
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out


def test_there_are_python_examples():
    assert _BLOCKS


def test_the_first_example_is_short():
    assert len([line for line in _BLOCKS[0].splitlines() if line.strip()]) <= 15


_FILES = sorted(set(re.findall(r"\w+/[\w/]+\.(?:sh|gin|md)|[A-Z]+\.md", _README)))


@pytest.mark.parametrize("path", _FILES)
def test_files_it_names_exist(path):
    assert (_ROOT / path).exists()


def test_tables_list_every_method_and_strategy():
    first_columns = set(re.findall(r"^\| `(\w+)` \|", _README, re.MULTILINE))
    assert first_columns == set(interaction.STRATEGIES)
    section = _README[_README.index("## Methods") :]
    named = re.findall(r"^\| [^`|]+ \|((?: `\w+`)+) \|$", section, re.MULTILINE)
    assert {name for row in named for name in re.findall(r"\w+", row)} == set(weighting.METHODS)
    page = (_ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == set(weighting.METHODS)


@pytest.mark.parametrize("path", ["README.md", "docs/methods.md"])
def test_tables_are_made_from_the_methods(path):
    """To write them anew: python -m ldro_jax.weighting.listing README.md docs/methods.md."""
    page = (_ROOT / path).read_text(encoding="utf-8")
    assert listing.document(page) == page
    # Formulas and names are made again; what was measured stays.
    other = page.replace("softmax(tℓ)", "?").replace("`stch` `term`", "`term`")
    assert other != page and listing.document(other) == page


def test_the_example_of_grouping_finds_the_groups(capsys):
    page = (_ROOT / "docs" / "grouping.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(compile(code, "docs/grouping.md", "exec"), {})
    assert capsys.readouterr().out == "((0, 1), (2, 3))\n"


def _of_groups():
    page = (_ROOT / "docs" / "worst_groups.md").read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", page, re.DOTALL)


def test_the_problems_of_groups_can_be_made(capsys):
    made = {}
    for code in _of_groups()[:2]:
        exec(compile(code, "docs/worst_groups.md", "exec"), made)
    assert capsys.readouterr().out.endswith("'camel, sand') [190  10  10 190]\n")


@pytest.mark.heavy
def test_the_example_of_groups_trains(tmp_path):
    made = {}
    for code in _of_groups():
        code = code.replace("/tmp/worst_groups", str(tmp_path / "out"))
        exec(compile(code, "docs/worst_groups.md", "exec"), made)
    assert (tmp_path / "out" / "report.html").exists() and len(made["record"].runs) == 18

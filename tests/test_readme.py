"""What the README shows works as it stands."""

import pathlib
import re

import jax
import pytest

from ldro_jax import interaction, weighting
from ldro_jax.weighting import listing

_ROOT = pathlib.Path(__file__).parent.parent
_README = (_ROOT / "README.md").read_text(encoding="utf-8")
_PYTHON = r"```python\n(.*?)```"


def _page(name):
    return (_ROOT / "docs" / name).read_text(encoding="utf-8")


def test_own_tasks_are_compared_as_it_says(tmp_path, capsys):
    (code,) = re.findall(_PYTHON, _README, re.DOTALL)
    assert "Schedule(300," in code and "/tmp/own_tasks" in code
    code = code.replace("Schedule(300,", "Schedule(20,").replace("/tmp", str(tmp_path))
    # Adam multiplies its int32 count with a float.
    with jax.numpy_dtype_promotion("standard"):
        exec(compile(code, "README.md", "exec"), {})
    assert "By signal" in capsys.readouterr().out
    assert (tmp_path / "own_tasks" / "report.html").exists()


def test_the_first_loop_is_short_and_runs(capsys):
    code = re.findall(_PYTHON, _page("optax.md"), re.DOTALL)[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    # It passes under the strict promotion of the tests, so also without.
    exec(compile(code, "docs/optax.md", "exec"), {})
    assert capsys.readouterr().out


@pytest.mark.parametrize("number", [0, pytest.param(1, marks=pytest.mark.heavy)])
def test_what_others_call_otherwise_runs(number, tmp_path, capsys):
    made = {}
    with jax.numpy_dtype_promotion("standard"):
        for code in re.findall(_PYTHON, _page("coming_from.md"), re.DOTALL)[: number + 1]:
            exec(compile(code.replace("/tmp", str(tmp_path)), "docs/coming_from.md", "exec"), made)
    assert ("[0." if number == 0 else "CAGrad") in capsys.readouterr().out


def test_errors_that_it_explains_are_raised():
    files = (_ROOT / "ldro_jax").rglob("*.py")
    source = "".join(path.read_text(encoding="utf-8") for path in files)
    source = re.sub(r'"\s*f?"', "", source)
    table = _page("troubleshooting.md").partition("| it says | what to do |")[2]
    phrases = re.findall(r"^\| ([^|-][^|]*) \|", table, re.MULTILINE)
    parts = [part for phrase in phrases for part in re.split(r" ?…;? ?", phrase) if part]
    assert len(phrases) > 5 and [part for part in parts if part not in source] == []


def test_it_is_read_in_a_few_minutes():
    assert len(_README.splitlines()) <= 130


_FILES = sorted(set(re.findall(r"\w+/[\w/]+\.(?:sh|gin|md)|[A-Z]+\.md", _README)))


@pytest.mark.parametrize("path", _FILES)
def test_files_it_names_exist(path):
    assert (_ROOT / path).exists()


def test_tables_list_every_method_and_strategy():
    page = _page("methods.md")
    named = re.findall(r"^\| [^`|]+ \|((?: `\w+`)+) \|$", page, re.MULTILINE)
    assert {name for row in named for name in re.findall(r"\w+", row)} == set(weighting.METHODS)
    table = re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)
    assert sorted(table) == sorted(weighting.METHODS)
    strategies = re.findall(r"^\| `(\w+)` \|", _page("interaction.md"), re.MULTILINE)
    assert sorted(strategies) == sorted(interaction.STRATEGIES)


@pytest.mark.parametrize("name", ["methods.md", "choose.md"])
def test_tables_are_made_from_the_methods(name):
    """To write them anew: python -m ldro_jax.weighting.listing docs/methods.md docs/choose.md."""
    page = _page(name)
    assert listing.document(page) == page
    # Formulas and names are made again; what was measured stays.
    other = page.replace("softmax(tℓ)", "?").replace("`famo` `geometric_mean`", "`famo`")
    assert other != page and listing.document(other) == page


def test_the_example_of_grouping_finds_the_groups(capsys):
    (code,) = re.findall(_PYTHON, _page("grouping.md"), re.DOTALL)
    exec(compile(code, "docs/grouping.md", "exec"), {})
    assert capsys.readouterr().out == "((0, 1), (2, 3))\n"


def _of_groups():
    return re.findall(_PYTHON, _page("worst_groups.md"), re.DOTALL)


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

"""The documentation: its code runs, and a site of all that is exported is built from it."""

import importlib
import os
import pathlib
import re
import subprocess
import sys

import optax
import pytest

from ldro_jax import ldro, transform, weighting

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs"
BLOCKS = {
    path.name: re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)
    for path in sorted(DOCS.glob("*.md"))
}
# The code of these pages needs data or libraries, and is run there.
ELSEWHERE = {
    "coming_from.md": "test_readme.py",
    "command_line.md": "test_commands.py",
    "grouping.md": "test_readme.py",
    "libraries.md": "test_libraries.py",
    "results.md": "records/test_tidy.py",
    "optax.md": "transform/test_optax_wrappers.py",
    "t5x.md": "t5x/test_inheritance.py",
    "trainers.md": "integrations/test_nnx.py",
    "watching.md": "experiments/test_callback.py",
    "worst_groups.md": "test_readme.py",
}


@pytest.mark.parametrize("page", [p for p in BLOCKS if BLOCKS[p] and p not in ELSEWHERE])
def test_the_code_of_a_page_runs(page):
    names = {"ldro": ldro, "optax": optax, "transform": transform, "weighting": weighting}
    for code in BLOCKS[page]:
        exec(compile(code, page, "exec"), names)


@pytest.mark.parametrize("page", ELSEWHERE)
def test_code_that_is_run_elsewhere_is_read_there(page):
    assert BLOCKS[page]
    source = (ROOT / "tests" / ELSEWHERE[page]).read_text(encoding="utf-8")
    assert f'"{page}"' in source


def anchors(text):
    headings = re.findall(
        r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE
    )
    bare = (re.sub(r"[^\w\- ]", "", heading.strip().lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in bare}


# Pages that are made when the site is built have no links here.
PAGES = [
    *ROOT.glob("*.md"),
    *DOCS.glob("*.md"),
    *DOCS.glob("notebooks/*.md"),
    *ROOT.glob("results/*/README.md"),
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_between_pages_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    lost = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        if ":" in link:
            continue
        if not target.exists() or (anchor and anchor not in anchors(target.read_text("utf-8"))):
            lost.append(link)
    assert lost == []


def test_the_first_page_has_the_code_of_the_readme():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    page = (DOCS / "index.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```(?:bash|diff).*?```", page, re.DOTALL)
    assert blocks and all(block in readme for block in blocks)


@pytest.fixture
def module(monkeypatch):
    """Imports what makes the pages."""
    for needed in ("furo", "myst_nb", "sphinx_copybutton"):
        pytest.importorskip(needed, reason="the extra docs isn't installed")
    monkeypatch.syspath_prepend(DOCS)
    return importlib.import_module


def test_a_method_is_made_as_its_page_shows(module):
    for name in weighting.METHODS:
        made = {}
        exec(module("_methods").example(name), made)
        assert isinstance(made["tx"], transform.Weighted) and made["method"].name == name


def test_measurements_are_those_of_the_method(module):
    evidence = module("_methods").evidence
    assert "CAGrad" in evidence("cagrad")[1] and len(evidence("cagrad")) == 2
    assert re.findall(r"\* - (.*)", evidence("smooth_lookahead")[1])[1:] == [
        "Smooth L-DRO",
        "Smooth L-DRO, A of batches",
    ]
    # In two tables.
    assert len(evidence("lookahead_online")) == len(evidence("signal")) + 2 == 4
    assert evidence("skill_it") == []


def test_links_lead_to_pages_or_into_the_repository(module):
    rewritten = module("_links").rewritten
    given = "[a](../results/digits/README.md#b) [c](optax.md) [d](../ldro_jax/ldro.py) [e](#f)"
    assert rewritten(given, "methods", "https://x") == (
        "[a](results/digits.md#b) [c](optax.md) [d](https://x/blob/main/ldro_jax/ldro.py) [e](#f)"
    )
    given = "[a](../../docs/methods.md) ![b](figures/b.png) [c](https://c.d)"
    assert rewritten(given, "results/digits", "") == (
        "[a](../methods.md) ![b](../../results/digits/figures/b.png) [c](https://c.d)"
    )


def test_a_formula_is_mathml(module):
    to_mathml = module("_mathml").to_mathml
    assert to_mathml("w^⊤ A ≥ ½") == to_mathml(r"w^\top A \ge \tfrac{1}{2}")
    with pytest.raises(ValueError, match="nothing"):
        to_mathml(r"\nothing")


def test_every_package_that_exports_names_has_a_page(module):
    pages = module("_reference").PAGES
    packages = [f"ldro_jax.{path.parent.name}" for path in ROOT.glob("ldro_jax/*/__init__.py")]
    inner = {"ldro_jax.runtime", "ldro_jax.t5x"}
    assert set(packages) - inner <= set(pages) and not inner & set(pages)


@pytest.mark.heavy
def test_the_site_is_built_without_a_warning(module, tmp_path):
    # In the environment of a shell, without the devices and types of these tests.
    options = "--fail-on-warning", "--keep-going", "--nitpicky", "--quiet", "-b", "html"
    made = subprocess.run(
        [sys.executable, "-m", "sphinx", *options, DOCS, tmp_path],
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    pages = {p: p.read_text(encoding="utf-8") for p in tmp_path.glob("**/*.html")}
    everything = "".join(pages.values())
    assert "<math" in everything
    lost = [n for n in module("_reference").documented() if f'id="{n}"' not in everything]
    assert not lost
    # Nothing is fetched from elsewhere.
    assert not re.findall(r'<(?:script|img)[^>]* src="https?:|<link[^>]* href="https?:', everything)

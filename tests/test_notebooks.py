"""The notebooks of the documentation: each is made of its Markdown, and runs."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOKS = ROOT / "docs" / "notebooks"
CODE = {
    path.stem: re.findall(
        r"^```\{code-cell\} ipython3\n(.*?)^```$",
        path.read_text(encoding="utf-8"),
        re.DOTALL | re.MULTILINE,
    )
    for path in sorted(NOTEBOOKS.glob("*.md"))
}
# What the prose says of the outcome, whatever the machine.
CLAIMS = {
    "own_loop": """
noise = TASKS.index("noise")
last = {name: [run[2]["weights"][-1][noise] for run in of_seeds] for name, of_seeds in runs.items()}
assert min(last["L-DRO"]) > 0.9
assert max(last["ldro.transform(N)"]) < 0.3 and np.mean(last["ldro.transform(N)"]) < 0.2
means = {name: errors.mean(axis=0) for name, errors in final.items()}
assert means["ldro.transform(N)"][hard] < 3 * means["average loss"][hard]
assert (means["L-DRO"] > means["average loss"])[:4].all()
assert shares.mean(axis=0).argmin() == noise
assert means["average loss"][:4].argmax() == hard
""",
    "which_tasks_suffer": """
assert lost["Average"].idxmin() in ("negative", "mirrored", "upside down")
assert table["Alone"].idxmin() == table["Group DRO"].idxmin() == "snow"
assert (lost["Average"] < 0).all()
""",
    "many_labels": """
assert table["Average"].min() > 0.5 and table["Average"].idxmin() in NAMES[LABELS // 2 :]
assert len(verdicts) == 6
""",
    "worst_language": """
assert (table > 1).all(axis=None) and (table < 10).all(axis=None)
assert len(verdicts) == 4
""",
}


@pytest.mark.parametrize("name", CODE)
def test_a_notebook_is_its_markdown(name):
    reason = "the extra docs isn't installed"
    jupytext = pytest.importorskip("jupytext", reason=reason)
    made, kept = (jupytext.read(NOTEBOOKS / f"{name}{end}") for end in (".md", ".ipynb"))

    def read(notebook):
        return [(cell.cell_type, cell.source) for cell in notebook.cells]

    assert read(kept) == read(made), "jupytext --update --to ipynb docs/notebooks/*.md"
    assert kept.metadata.kernelspec == made.metadata.kernelspec
    code = [cell for cell in kept.cells if cell.cell_type == "code"]
    assert [cell.source + "\n" for cell in code] == CODE[name]
    assert not any(cell.outputs or cell.execution_count for cell in code)


@pytest.mark.parametrize("name", CODE)
def test_the_code_is_plain_python(name):
    assert CODE[name]
    for code in CODE[name]:
        compile(code, name, "exec")


def test_every_notebook_is_in_the_contents():
    contents = (ROOT / "docs" / "notebooks.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^notebooks/(\w+)$", contents, re.MULTILINE)) == list(CODE)
    assert set(CLAIMS) == set(CODE)


# Each takes about a minute, most of it compilation.
@pytest.mark.heavy
@pytest.mark.parametrize("name", CODE)
def test_a_notebook_runs_and_shows_what_it_says(name, tmp_path):
    for needed in ("matplotlib", "sklearn"):
        pytest.importorskip(needed, reason="the extra trainer isn't installed")
    program = tmp_path / f"{name}.py"
    program.write_text("\n".join([*CODE[name], CLAIMS[name]]), encoding="utf-8")
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "MPLBACKEND": "Agg",
        # Where the notebooks make their directories.
        "TMPDIR": str(tmp_path),
    }
    environment.pop("XLA_FLAGS", None)
    done = subprocess.run(
        [sys.executable, str(program)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]

"""The examples, as a user would run them."""

import json
import os
import pathlib
import re
import runpy
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import ldro_jax

pytest.importorskip("sklearn")

ROOT = pathlib.Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"


def start(name, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    environment.pop("XLA_FLAGS", None)
    return subprocess.Popen(
        [sys.executable, str(EXAMPLES / f"{name}.py"), *map(str, arguments)],
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(name, *arguments):
    process = start(name, *arguments)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-2000:]
    return output


def record(directory):
    return json.loads((directory / "results.json").read_text())


def values(directory):
    """Everything but times and versions."""
    runs = [{**run, "seconds_per_step": None} for run in record(directory)["runs"]]
    return json.dumps(runs, sort_keys=True)


def code_lines(source):
    """Lines without the docstring at the top and the imports."""
    body = re.sub(r'^""".*?"""\n', "", source, flags=re.DOTALL)
    lines = [line for line in body.splitlines() if line.strip()]
    return [line for line in lines if not re.match(r"(import|from) ", line)]


@pytest.mark.usefixtures("unpainted")
def test_own_tasks_trains_and_reports(tmp_path, monkeypatch):
    # With a seed and two of its methods, here; with all of them, in a process of its own, below.
    compare = ldro_jax.compare

    def smaller(problem, methods, **options):
        return compare(problem, methods[::2], **{**options, "seeds": (0,)})

    monkeypatch.setattr(ldro_jax, "compare", smaller)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        runpy.run_path(str(EXAMPLES / "own_tasks.py"))["main"](tmp_path)
    found = record(tmp_path)["runs"]
    assert [r["method"] for r in found] == ["Average", "L-DRO"]
    assert "L-DRO" in (tmp_path / "report.html").read_text()


@pytest.mark.heavy
def test_own_tasks_ends_with_the_same_numbers_after_a_kill(tmp_path):
    killed = start("own_tasks", tmp_path / "killed")
    deadline = time.monotonic() + 240
    while not list((tmp_path / "killed").glob("checkpoints/*/*/_CHECKPOINT_METADATA")):
        assert killed.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    killed.kill()
    killed.communicate()
    assert not (tmp_path / "killed" / "results.json").exists()
    for name in ("killed", "whole"):
        run("own_tasks", tmp_path / name)
    assert len(record(tmp_path / "whole")["runs"]) == 9
    assert values(tmp_path / "killed") == values(tmp_path / "whole")


def test_own_tasks_is_short():
    assert len(code_lines((EXAMPLES / "own_tasks.py").read_text())) <= 60
    assert len(code_lines((EXAMPLES / "own_loop.py").read_text())) <= 30


def test_own_loop_lowers_the_losses(capsys):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        runpy.run_path(str(EXAMPLES / "own_loop.py"), run_name="__main__")
    output = capsys.readouterr().out
    losses = [float(x) for x in re.findall(r"losses \[([\d.]+)", output)]
    assert len(losses) == 5 and losses[-1] < losses[0]


@pytest.mark.heavy
def test_finetune_keeps_a_layer_moves_the_others_and_exports(tmp_path):
    run("finetune", tmp_path)
    trunk = ldro_jax.load(tmp_path / "pretrained")
    with np.load(tmp_path / "params.npz") as exported:
        params = dict(exported)
    assert params["head/bias"].shape == (2,)
    np.testing.assert_array_equal(params["first/kernel"], trunk["first"]["kernel"])
    moved = [np.abs(params["second/kernel"] - trunk["second"]["kernel"]).max()]
    moved += [np.abs(params["head/kernel"] - trunk["head"]["kernel"]).max()]
    assert 0 < moved[0] < moved[1]
    for name, runs in (("pretrained", 1), ("finetuned", 6)):
        found = record(tmp_path / name)["runs"]
        assert len(found) == runs and not any(r["stopped"] for r in found)
        assert all(r["evaluations"]["average"][-1] > 0.8 for r in found)


# Each is twenty seconds, most of it imports and compilation.
@pytest.mark.heavy
@pytest.mark.parametrize(
    "name, runs",
    [
        ("nnx_model", 9),
        ("imbalanced_groups", 12),
        ("multilabel", 9),
        ("sharded", 2),
        ("streams", 6),
    ],
)
def test_the_other_examples_train_and_report(name, runs, tmp_path):
    run(name, tmp_path)
    found = record(tmp_path)["runs"]
    assert len(found) == runs and not any(r["stopped"] for r in found)
    # Better than guessing among ten classes.
    tables = [r["evaluations"] for r in found]
    assert all(e["split"][-1] == "test" and e["average"][-1] > 0.3 for e in tables)
    assert (tmp_path / "report.html").exists()

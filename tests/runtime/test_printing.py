"""Whoever listens or doesn't: results are written, and the exit status is 0."""

import io
import os
import pathlib
import stat
import subprocess
import sys

import pytest

from ldro_jax.records import results
from ldro_jax.runtime import printing

_ROOT = pathlib.Path(__file__).parents[2]
# Drawing the report takes longer than all else.
_PROGRAM = """
from ldro_jax import main, reporting
from ldro_jax.runtime import paths
reporting.write_report = lambda record, folder, **_: paths.write(folder / "report.html", "report")
main.run()
"""
_GIN = """
include 'gin_configs/experiments/synthetic.gin'
Report.description = 'Wege über 平面'
"""


@pytest.fixture
def command(tmp_path):
    """The command line of an experiment in a gin file that isn't ASCII."""
    (tmp_path / "ways.gin").write_text(_GIN, encoding="utf-8")
    return [
        *(sys.executable, "-c", _PROGRAM, f"--gin_file={tmp_path / 'ways.gin'}"),
        *("--gin.Schedule.train_steps=4", "--gin.Schedule.eval_interval=4"),
        *("--gin.trajectories.panels=[@a/Panel()]", "--gin.a/Panel.methods=[@average/Method()]"),
        "--gin.Report.name='Ö'",
        f"--output_dir={tmp_path / 'o'}",
    ]


def _environment(**more):
    path = os.pathsep.join([str(_ROOT), *filter(None, sys.path)])
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "PYTHONPATH": path,
        **more,
    }


def _check(directory):
    record = results.load_results(directory / "results.json")
    assert (record.experiment, record.description) == ("Ö", "Wege über 平面")
    text = (directory / "config.gin").read_text(encoding="utf-8")
    assert "平面" in text and "name = 'Ö'" in text


@pytest.mark.skipif(not pathlib.Path("/dev/full").exists(), reason="needs Linux")
def test_a_full_disk_no_stderr_and_an_old_locale(command, tmp_path):
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    script = 'umask 077; exec "$@" >/dev/full 2>&-'
    done = subprocess.run(
        ["sh", "-c", script, "sh", *command], env=_environment(**locale), timeout=240, check=False
    )
    assert done.returncode == 0
    _check(tmp_path / "o")
    # Nor has anything else taken the place of stderr, or is readable to others.
    modes = {p: stat.S_IMODE(p.stat().st_mode) & 0o077 for p in (tmp_path / "o").rglob("*")}
    assert not {path for path, mode in modes.items() if mode}


@pytest.mark.heavy  # as the full disk does
@pytest.mark.skipif(sys.platform == "win32", reason="needs pipes that break")
def test_a_pipe_that_is_closed_and_ascii(command, tmp_path):
    process = subprocess.Popen(
        command,
        env=_environment(PYTHONIOENCODING="ascii"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.close()
    _, said = process.communicate(timeout=240)
    assert process.returncode == 0, said
    # Neither a traceback, nor a progress bar where there is no terminal.
    assert not said
    _check(tmp_path / "o")


def test_letters_that_a_stream_does_not_have_are_escaped(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "ascii", errors="strict"))
    printing.say("1.00× λ")
    assert written.getvalue() == b"1.00\\xd7 \\u03bb\n"


@pytest.mark.parametrize("error", [False, True])
def test_nobody_has_to_listen(error, monkeypatch):
    closed = io.StringIO()
    closed.close()

    class Full(io.StringIO):
        def write(self, text):
            raise OSError(28, "No space left on device")

    for stream in (None, closed, Full()):
        monkeypatch.setattr(sys, "stderr" if error else "stdout", stream)
        printing.say("anything", error=error)
        assert stream is None or not printing.is_terminal()

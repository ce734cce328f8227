"""The scripts' virtual environments, one for each interpreter, with made-up interpreters."""

import os
import pathlib
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[1]

# Says its version, makes an environment that holds itself, and notes what pip is asked for.
INTERPRETER = """#!/usr/bin/env bash
case "$1 $2" in
  "-c "*version_info\\ \\<*) exit {old} ;;
  "-c "*) echo {version} ;;
  "-m venv")
    mkdir -p "$3/bin"
    cp "$0" "$3/bin/python"
    echo "export VIRTUAL_ENV='$PWD/$3' PATH='$PWD/$3/bin:$PATH'" >"$3/bin/activate"
    ;;
  "-m pip") echo "$0 $*" >>"$LOG" ;;
  *) echo "Python {version}" ;;
esac
"""


@pytest.fixture
def use(tmp_path):
    """Sources the script and asks for an environment; what is printed, and the exit status."""
    for name, version, old in [("python3", "3.11", 0), ("new", "3.13", 0), ("old", "3.9", 1)]:
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(INTERPRETER.format(version=version, old=old))
        path.chmod(0o755)

    def run(**variables):
        unset = {"CONSTRAINTS", "LDRO_JAX_VENV", "PYTHON", "VIRTUAL_ENV"}
        environment = {k: v for k, v in os.environ.items() if k not in unset}
        environment |= {
            "PATH": f"{tmp_path}/bin:{os.environ['PATH']}",
            "LOG": str(tmp_path / "log"),
        }
        script = ROOT / "scripts" / "environment.sh"
        return subprocess.run(
            ["bash", "-c", f"source {script} && use_environment a,b && command -v python"],
            cwd=tmp_path,
            env=environment | variables,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def test_each_interpreter_has_an_environment_of_its_own(use, tmp_path):
    new = f"{tmp_path}/.venv-3.13/bin/python\n"
    assert use().stdout == f"{tmp_path}/.venv/bin/python\n"
    assert use(PYTHON="new").stdout == new
    # It is used again, also where another one is active, which is used where none is asked for.
    (tmp_path / ".venv-3.13" / "kept").touch()
    active = {"VIRTUAL_ENV": f"{tmp_path}/.venv"}
    assert use(PYTHON="new", **active).stdout == new
    assert (tmp_path / ".venv-3.13" / "kept").exists()
    assert use(PYTHON="new", LDRO_JAX_VENV="mine").stdout == f"{tmp_path}/mine/bin/python\n"
    installed = (tmp_path / "log").read_text().splitlines()
    assert all(line.endswith(" .[a,b]") for line in installed)
    assert len(installed) == 4
    assert sorted(path.name for path in tmp_path.glob("*/bin/activate")) == ["activate"] * 3


@pytest.mark.parametrize(
    "name, message",
    [("old", "needs Python 3.11 or newer, but old is Python 3.9"), ("none", "no interpreter none")],
)
def test_what_is_no_interpreter_for_it_is_said(use, tmp_path, name, message):
    done = use(PYTHON=name)
    assert done.returncode == 1
    assert message in done.stderr
    assert not list(tmp_path.glob(".venv*"))


def test_constraints_have_an_environment_of_their_own(use, tmp_path):
    assert use(CONSTRAINTS="old.txt").stdout == f"{tmp_path}/.venv-constrained/bin/python\n"
    active = {"VIRTUAL_ENV": f"{tmp_path}/.venv"}
    with_python = use(CONSTRAINTS="old.txt", PYTHON="new", **active).stdout
    assert with_python == f"{tmp_path}/.venv-3.13-constrained/bin/python\n"
    installed = (tmp_path / "log").read_text().splitlines()
    assert len(installed) == 2 and all(" --constraint old.txt " in line for line in installed)

"""What ``import ldro_jax`` brings and leaves out, and that its names are documented."""

import ast
import importlib
import inspect
import itertools
import json
import os
import pathlib
import pkgutil
import re
import runpy
import shutil
import subprocess
import sys
import zipfile

import pytest

import ldro_jax
from ldro_jax.runtime import extras as extras_lib

_ROOT = pathlib.Path(__file__).parents[1]
_HEAVY = ("clu", "flax", "gin", "matplotlib", "orbax", "sklearn", "tensorflow", "tqdm")


def test_importing_the_library_imports_nothing_heavy(run_python):
    program = "import sys, ldro_jax; {}print('\\n'.join(sys.modules))"
    found = run_python(program.format("ldro_jax.ldro.transform; ")).split()
    assert "ldro_jax.transform" in found and "optax" in found
    assert not {name.partition(".")[0] for name in found} & set(_HEAVY)
    # What the command line imports first must not take a second.
    assert "jax" not in run_python(program.format("")).split()
    assert "jax" not in run_python(program.format("import ldro_jax.main; ")).split()


def test_importing_what_trains_imports_no_solvers_and_no_statistics(run_python):
    found = run_python(
        "import sys, ldro_jax.experiments.compare; print('\\n'.join(sys.modules))"
    ).split()
    assert "ldro_jax.grouping" in found
    assert not {"scipy.optimize", "scipy.stats", "matplotlib", "tensorflow"} & set(found)


def test_a_core_install_names_the_extra(run_python):
    lacks = "import sys, ldro_jax; sys.modules['{}'] = None\n"
    program = lacks.format("flax") + "".join(
        f"try:\n  {line}\nexcept ModuleNotFoundError as error: print(error)\n"
        for line in (
            "ldro_jax.compare",
            "from ldro_jax import problems",
            "import ldro_jax.sharding",
            "from ldro_jax.training import Method",
            "import ldro_jax.models.mlp",
            "from ldro_jax.experiments.compare import compare",
        )
    )
    said = run_python(program).splitlines()
    assert len(said) == 6
    assert all("needs flax" in line and "pip install 'ldro-jax[trainer]'" in line for line in said)
    program = lacks.format("orbax") + "try: ldro_jax.load\nexcept ImportError as e: print(e)"
    assert "needs orbax, which isn't installed: pip" in run_python(program)
    program = (
        lacks.format("gin")
        + "sys.argv = ['ldro-jax', '--output_dir=/nowhere']\nfrom ldro_jax import main\n"
        + "try: main.run()\nexcept SystemExit as error: print(error)"
    )
    assert "Error: The trainer needs gin, which isn't installed: pip" in run_python(program)


def test_names_that_are_not_there_are_attribute_errors():
    with pytest.raises(AttributeError, match="module 'ldro_jax' has no attribute 'nothing'"):
        _ = ldro_jax.nothing


# From below; the modules that are in no room are its doors, and may import any.
_FLOORS = [
    {"runtime"},
    {"games", "interaction", "models", "records", "solvers", "tasks"},
    {"measuring", "weighting"},
    {"grouping", "problems", "transform"},
    {"integrations", "reporting", "training"},
    {"experiments", "t5x"},
]


# A method of what compare returns makes the table of the report, with what is above it.
_UPWARDS = ["records/results.py imports reporting"]


def test_imports_go_one_way():
    floor = {room: number for number, rooms in enumerate(_FLOORS) for room in rooms}
    root = pathlib.Path(ldro_jax.__file__).parent
    assert set(floor) == {path.parent.name for path in root.glob("*/__init__.py")}
    wrong = []
    for path in root.glob("*/**/*.py"):
        here = path.relative_to(root).parts[0]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith(
                "ldro_jax"
            ):
                continue
            inner = node.module.split(".")[1:2] or [alias.name for alias in node.names]
            wrong += [
                f"{path.relative_to(root)} imports {room}"
                for room in inner
                if room != here and floor.get(room, -1) >= floor[here]
            ]
    assert wrong == _UPWARDS


_ROOTS = [ldro_jax, ldro_jax.interaction]


@pytest.mark.parametrize("module", _ROOTS, ids=lambda module: module.__name__)
def test_all_is_sorted_and_complete(module):
    # Constants first, then classes, then functions, as ruff sorts them.
    order = [(not name.isupper(), not name[0].isupper(), name) for name in module.__all__]
    assert order == sorted(set(order))
    public = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert public <= set(module.__all__)
    for name in module.__all__:
        assert getattr(module, name) is not None


_MODULES = ["ldro_jax", *(m.name for m in pkgutil.walk_packages(ldro_jax.__path__, "ldro_jax."))]


@pytest.mark.parametrize("name", _MODULES)
def test_every_public_name_is_documented(name):
    light = ("", ".gin_text", ".names", ".report", ".report_sections", ".run_file", ".summaries")
    if name.startswith("ldro_jax.t5x") and name.removeprefix("ldro_jax.t5x") not in light:
        pytest.importorskip("t5x.trainer", reason="T5X is not installed (scripts/install_t5x.sh)")
    if name.startswith("ldro_jax.integrations."):
        pytest.importorskip(name.rpartition(".")[2].replace("nnx", "flax"))
    module = importlib.import_module(name)
    assert module.__doc__, name
    for attribute, value in vars(module).items():
        ours = getattr(value, "__module__", None) == name
        if attribute.startswith("_") or not ours or not callable(value):
            continue
        assert value.__doc__, f"{name}.{attribute}"
        if inspect.isclass(value):
            for method, function in vars(value).items():
                if inspect.isfunction(function) and not method.startswith("_"):
                    # One that overrides another has that one's.
                    inherited = inspect.getdoc(getattr(value, method))
                    assert inherited, f"{name}.{attribute}.{method}"


def test_the_version_is_the_installed_one():
    import importlib.metadata

    try:
        installed = importlib.metadata.version("ldro-jax")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("ldro-jax runs from its source here")
    assert ldro_jax.__version__ == installed


def _given_to_setup(monkeypatch):
    setuptools = pytest.importorskip("setuptools")
    given = {}
    monkeypatch.setattr(setuptools, "setup", given.update)
    runpy.run_path(str(_ROOT / "setup.py"))
    return given


def test_the_version_to_cite_is_this_one():
    lines = (_ROOT / "CITATION.cff").read_text(encoding="utf-8").splitlines()
    assert f"version: {ldro_jax.__version__}" in lines


def test_the_trainer_comes_without_tensorflow(monkeypatch):
    extras = _given_to_setup(monkeypatch)["extras_require"]
    names = {re.match(r"[\w-]+", needed)[0] for needed in extras["trainer"]}
    assert not {name for name in names if name.startswith("tensorflow")}
    assert {name.partition("-")[0] for name in names} >= {"gin", *extras_lib.TRAINER}
    assert {"matplotlib", "jinja2", "scikit-learn"} <= names
    assert any(needed.startswith("tensorflow") for needed in extras["vision"])


def test_the_oldest_releases_that_are_tested_are_the_lower_bounds(monkeypatch):
    given = _given_to_setup(monkeypatch)
    needed = {*given["install_requires"], *itertools.chain(*given["extras_require"].values())}
    # The documentation is built with the newest.
    needed -= set(given["extras_require"]["docs"])
    bound = r"([\w-]+)(?:\[\w+\])?[>=]=([\w.]+)"
    bounds = {_plain(*re.match(bound, line).groups()) for line in needed}
    lines = (_ROOT / ".github" / "oldest.txt").read_text(encoding="utf-8").splitlines()
    assert bounds <= {_plain(*line.split("==")) for line in lines if "==" in line}


def _plain(name, version):
    return name.lower().replace("_", "-"), version


def test_the_wheel_has_all_that_is_read(tmp_path):
    pytest.importorskip("setuptools", "77")
    # pip builds where the source is.
    copy = tmp_path / "source"
    for name in ("ldro_jax", "gin_configs"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(_ROOT / name, copy / name, ignore=ignored)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(_ROOT / name, copy)
    command = "-m pip wheel --no-deps --no-build-isolation --no-index --quiet ."
    subprocess.run([sys.executable, *command.split(), "-w", str(tmp_path)], cwd=copy, check=True)
    (wheel,) = tmp_path.glob("ldro_jax-*-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as file:
        inside = {name for name in file.namelist() if ".dist-info/" not in name}
    expected = {
        path.relative_to(copy).as_posix()
        for path in (copy / "ldro_jax").rglob("*")
        if path.is_file()
    }
    expected |= {
        f"ldro_jax/{path.relative_to(copy).as_posix()}"
        for path in copy.glob("gin_configs/**/*.gin")
    }
    assert inside == expected


# Their bases are classes of Optax and Orbax, which don't say that they are typed.
_OF_UNTYPED = {
    "ldro_jax.ldro.transform",
    "ldro_jax.records.orbax.Manager",
    "ldro_jax.transform.Weighted",
    "ldro_jax.transform.weighted",
    "ldro_jax.transform.weighted.Weighted",
    "ldro_jax.transform.weighted.weighted",
}


@pytest.mark.heavy
def test_every_public_name_has_a_type(tmp_path):
    command = "-m pyright --verifytypes ldro_jax --ignoreexternal --outputjson"
    done = subprocess.run(
        [sys.executable, *command.split()],
        # Pyright finds no package that is installed as a clone, and here no project's settings.
        env=os.environ | {"PYTHONPATH": str(_ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    symbols = json.loads(done.stdout)["typeCompleteness"]["symbols"]
    assert len(symbols) > 2500
    lacking = {
        symbol["name"]
        for symbol in symbols
        if symbol["isExported"]
        and (not symbol["isTypeKnown"] or symbol["isTypeAmbiguous"])
        # They subclass classes of T5X and of trainers, which have none.
        and not symbol["name"].startswith(("ldro_jax.t5x.", "ldro_jax.integrations."))
    }
    assert lacking == _OF_UNTYPED

"""The commands of ldro-jax: docs/command_line.md as it stands, and what is refused."""

import dataclasses
import pathlib
import re
import shlex

import numpy as np
import pytest
from helpers.command_line import snapshot, typed

import ldro_jax
from ldro_jax import commands, reporting, shipped
from ldro_jax.records import results as results_lib

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

_ROOT = pathlib.Path(__file__).parents[1]
_PAGE = (_ROOT / "docs" / "command_line.md").read_text(encoding="utf-8")
_SHOWN = [
    (line, output)
    for block in re.findall(r"```console\n(.*?)```", _PAGE, re.DOTALL)
    for line, output in re.findall(r"^\$ ldro-jax (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE)
]
_NAMES = ("list", "run", "watch", "report", "compare", "evaluate", "export")


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """By command of the page what it printed, with /tmp as the page has it; and that place."""
    place = tmp_path_factory.mktemp("page")
    by_command = {}
    for line, _ in _SHOWN:
        status, out, err = typed(*shlex.split(line.replace("/tmp", str(place))))
        said = (out + err).replace(str(place), "/tmp")
        assert (status != 0) == said.startswith("Error: "), said
        # A clean run prints nothing that isn't its own.
        assert not err or status
        by_command[line] = said
    return by_command, place


@pytest.fixture
def short(printed):
    """The directory of the page's experiment."""
    return printed[1] / "short"


def masked(text):
    """A text without what is another on another machine: numbers, the worst task, the best."""
    record = results_lib.load_results(_ROOT / "results" / "digits" / "results.json")
    text = re.sub("|".join(map(re.escape, record.task_names)), "TASK", text)
    # Numbers of the names of layers stay.
    text = re.sub(r"(?<![\w.])\d[\d.]*", "#", text.replace("*", "").replace("−", ""))
    return [re.sub(r"--+", "--", " ".join(line.split())) for line in text.splitlines()]


@pytest.mark.parametrize(("line", "shown"), _SHOWN, ids=[line[:30] for line, _ in _SHOWN])
def test_the_page_shows_what_a_command_prints(line, shown, printed):
    found = "\n".join(masked(printed[0][line]))
    pattern = ".*".join(map(re.escape, "\n".join(masked(shown)).split("…")))
    assert re.fullmatch(pattern, found, re.DOTALL), found


def test_the_page_has_every_command_and_its_python_runs(printed, capsys):
    assert {line.split()[0] for line, _ in _SHOWN} == set(_NAMES)
    (code,) = re.findall(r"```python\n(.*?)```", _PAGE, re.DOTALL)
    exec(compile(code.replace("/tmp", str(printed[1])), "docs/command_line.md", "exec"), {})
    assert capsys.readouterr().out == "(64, 16)\n"


def test_help_has_examples_and_imports_nothing_that_takes_time(run_python):
    program = "import sys; from ldro_jax import main\nfor name in {}:\n"
    program += "  sys.argv = ['ldro-jax', name, '--help']\n  try: main.run()\n"
    program += "  except SystemExit as error: print('status', error.code)\n"
    program += "print(sorted({{'jax', 'numpy', 'gin', 'pandas'}} & set(sys.modules)))"
    said = run_python(program.format(_NAMES))
    assert said.endswith("status 0\n[]\n") and said.count("status 0") == len(_NAMES)
    for name in _NAMES:
        assert f"\nfor example:\n  ldro-jax {name}" in said


@pytest.mark.parametrize(
    ("line", "status", "said"),
    [
        ("rnu digits", 2, "There is no command 'rnu'. Did you mean run?"),
        ("frobnicate", 2, "There is no command 'frobnicate'. There are list, run, watch, rep"),
        ("run", 2, "the following arguments are required: EXPERIMENT. ldro-jax run --help says"),
        (
            "run digits --outputdir=/nowhere",
            2,
            "unrecognized arguments: --outputdir=/no",
        ),
        ("run Digts_methods", 1, "Did you mean digits_methods"),
        ("run xyz", 1, "There is no experiment 'xyz'. 'ldro-jax list' has all."),
        ("run digits --set TRAIN_STEPS", 1, "--set takes NAME=VALUE, but it is 'TRAIN_STEPS'."),
        ("list method", 2, "invalid choice: 'method'"),
        ("report /nowhere", 1, "/nowhere has no results.json. Name the output directory of a fin"),
        (
            "watch /nowhere",
            1,
            "/nowhere has no config.gin of an experiment. Name the output dir",
        ),
        ("watch SHORT --every=0", 1, "--every must be at least a second, but it is 0."),
        ("watch SHORT --once --to=SHORT/live", 1, "where nothing else may be written."),
        ("watch SHORT --once --to=results", 1, "holds something else than such a page. Choose ano"),
        ("report SHORT --baseline=averag", 1, "--baseline: There is no method 'averag'. Did you"),
        ("evaluate SHORT --method=xyz", 1, "no method 'xyz'. There are Average, L-DRO."),
        ("export SHORT --seed=7", 1, "There is no seed 7, but 0."),
        ("export ''", 1, "OUTPUT_DIR is empty. Is it a variable that isn't set?"),
        ("compare SHORT SHORT --output_dir=/nowhere", 1, "There must be two or more different RES"),
        ("compare SHORT results/digits --output_dir=SHORT", 1, "holds something else than a comp"),
    ],
)
def test_a_slip_is_one_line(line, status, said, short):
    before = snapshot(short)
    found, out, err = typed(*shlex.split(line.replace("SHORT", str(short))))
    assert (found, out) == (status, "")
    assert err.startswith("Error: ") and err.count("\n") == 1 and said in err
    assert snapshot(short) == before


def test_run_gives_the_flags_of_the_older_form():
    digits = f"--gin_file={_ROOT / 'gin_configs' / 'experiments' / 'digits.gin'}"
    line = "run digits --overwrite --data_dir=/d --set A=1 'B=(0, 1)' -s C=-1 --gin.D='x y'"
    flags = commands.main(shlex.split(line))
    assert flags == [
        *(digits, "--output_dir=results_local/digits", "--data_dir=/d", "--overwrite"),
        *("--gin.D=x y", "--gin.A=1", "--gin.B=(0, 1)", "--gin.C=-1"),
    ]
    own = commands.main(["run", "mine/own.gin", "--output_dir=/o", "--distributed"])
    assert own == ["--gin_file=mine/own.gin", "--output_dir=/o", "--distributed"]
    assert commands.main(["run", "mine/own.gin"])[1] == "--output_dir=results_local/own"


def test_the_same_command_again_is_well_and_another_is_refused(short):
    line = next(line for line, _ in _SHOWN if line.startswith("run digits "))
    args = shlex.split(line.replace("/tmp/short", str(short)))
    status, out, err = typed(*args)
    assert status == 0 and out.startswith(f"The experiment in {short} is finished;") and not err
    status, out, err = typed(*args, "optax.sgd.learning_rate=0.5")
    assert status == 1 and "was made with another optimizer" in err


def test_every_experiment_is_listed_with_a_sentence(printed):
    listed = printed[0]["list"]
    files = {path.stem for path in (_ROOT / "gin_configs" / "experiments").glob("*.gin")}
    assert set(shipped.experiments()) == files
    for name, found in shipped.experiments().items():
        data = " (--data_dir)" if found.needs_data else ""
        assert f"\n  {name}{data}: {found.about}\n" in listed
        assert found.about[0].isupper() and found.about.endswith(".") != found.about.endswith("?")
        assert "#" not in found.about and "--" not in found.about
    assert "average(" not in typed("list", "experiments")[1]
    assert "digits" not in typed("list", "methods")[1]


def test_the_report_is_that_of_the_experiment(short, printed):
    def page():
        # Pictures are drawn from numbers that the record rounds.
        text = (short / "report.html").read_text(encoding="utf-8")
        return re.sub(r"base64,[\w+/=]*", "", text)

    before = page()
    (short / "report.html").unlink()
    assert typed("report", str(short))[0] == 0
    assert page() == before
    again = printed[1] / "again"
    assert "average, minus L-DRO" in (again / "report.html").read_text(encoding="utf-8")
    names = {path.name for path in (again / "figures").iterdir()}
    assert names == {path.name for path in (short / "figures").iterdir()}


def test_a_report_with_more_than_the_record_can_make_is_kept(short, tmp_path):
    record = results_lib.load_results(short / "results.json")
    reporting.finish(record, tmp_path, "", [("Groups of two", "a caption", "<p>x</p>")])
    before = snapshot(tmp_path)
    status, _, err = typed("report", str(tmp_path))
    assert status == 1 and "what can't be made from the record alone: Groups of two. Del" in err
    assert snapshot(tmp_path) == before


def test_joined_runs_are_those_of_both(short, printed):
    record = results_lib.load_results(printed[1] / "both" / "results.json")
    parts = [
        results_lib.load_results(place / "results.json")
        for place in (short, _ROOT / "results" / "digits")
    ]
    assert [len(record.runs)] == [sum(len(part.runs) for part in parts)]
    assert {run.method for run in record.runs} == {
        *("Average (short)", "L-DRO (short)", "Average (digits)", "L-DRO (digits)"),
        *("Scalarisation", "Group DRO", "TERM on means", "Smooth L-DRO"),
    }
    frames = [r.to_frame().value.to_numpy() for r in (record, *parts)]
    np.testing.assert_allclose(np.sort(frames[0]), np.sort(np.concatenate(frames[1:])), rtol=1e-5)
    # The same comparison again takes the place of the first.
    args = ["compare", str(short), "results/digits", f"--output_dir={printed[1] / 'both'}"]
    assert typed(*args)[0] == 0


def test_what_is_exported_is_what_is_loaded(short, printed):
    with np.load(printed[1] / "params.npz") as exported:
        params = ldro_jax.load(short, method="L-DRO", seed=0, step=20)
        layers = {f"{layer}/{name}": x for layer, xs in params.items() for name, x in xs.items()}
        assert set(exported) == set(layers)
        for name, array in layers.items():
            np.testing.assert_array_equal(exported[name], array, strict=True)


def test_parameters_that_are_gone_are_said_to_be(short, tmp_path):
    record = results_lib.load_results(short / "results.json")
    results_lib.save_results(record, tmp_path / "results.json")
    status, out, _ = typed("evaluate", str(tmp_path), "--method=L-DRO")
    assert status == 0 and re.search(r"^L-DRO .* not kept$", out, re.MULTILINE)
    assert "Average" not in out
    status, _, err = typed("export", str(tmp_path))
    assert status == 1 and "has no checkpoint of a run with method='L-DRO'" in err


def test_a_record_alone_is_as_good_as_its_directory(short, tmp_path):
    record = results_lib.load_results(short / "results.json")
    slower = [dataclasses.replace(r, seconds_per_step=1.0) for r in record.runs]
    (tmp_path / "slow").mkdir()
    file = results_lib.save_results(
        dataclasses.replace(record, runs=slower, device={"kind": "gpu"}),
        tmp_path / "slow" / "other.json",
    )
    status, _, err = typed("compare", str(short), str(file), f"--output_dir={tmp_path / 'out'}")
    assert (status, err) == (0, "")
    joined = results_lib.load_results(tmp_path / "out" / "results.json")
    assert {run.method for run in joined.runs} >= {"Average (short)", "Average (slow)"}
    assert "made on other devices" in joined.description


def test_nothing_to_do_is_an_error_that_shows_what_there_is():
    status, out, err = typed()
    assert (status, out) == (1, "")
    assert all(f"\n    ldro-jax {name} " in err for name in _NAMES)


def test_the_version_is_printed():
    assert typed("--version")[1] == f"ldro-jax {ldro_jax.__version__}\n"

"""ldro-jax watch: the page of an experiment that trains, which it leaves as it is."""

import re
import shutil
import signal
import subprocess
import sys

import pytest
from helpers import tiny, trained
from helpers.command_line import typed

from ldro_jax import commands, reporting
from ldro_jax.records import kept
from ldro_jax.reporting import page, tables
from ldro_jax.training.method import grid

pytest.importorskip("matplotlib")

METHODS = [tiny.AVERAGE, tiny.GROUP_DRO]


class Numbers(list):
    """A callback that keeps what it is called with."""

    def __call__(self, method, seed, step, numbers):
        self.append((method, seed, step, numbers))


def run(directory, **options):
    """An experiment of four runs, of 40 steps unless it says otherwise."""
    options = {"methods": METHODS, "schedule": tiny.schedule(40, 5, 10)} | options
    return tiny.run(directory, **options)


def interrupted(directory, at=(4, 30), **options):
    """The same, stopped in a run, the last by default, at a step that isn't saved."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        trained.Trained(patch).interrupt = at
        run(directory, **options)


@pytest.fixture(autouse=True)
def _no_report(monkeypatch):
    monkeypatch.setattr(reporting, "write_report", lambda *args, **options: None)


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """The directory of such an experiment, and the numbers that it called back with."""
    directory, told = tmp_path_factory.mktemp("begun") / "tiny", Numbers()
    interrupted(directory, callback=told)
    return directory, told


@pytest.fixture
def underway(begun, tmp_path):
    """A copy of it, with the times of its files."""
    return shutil.copytree(begun[0], tmp_path / "tiny")


def state(directory):
    """Everything that watching might change: names, times and content, of the lock as well."""
    files = [path for path in directory.rglob("*") if path.is_file()]
    times = {path: path.stat().st_mtime_ns for path in directory.rglob("*")}
    return times, {path: path.read_bytes() for path in files}


def watched(directory, target):
    """The page after one look."""
    status, out, err = typed("watch", str(directory), f"--to={target}", "--once")
    assert (status, err) == (0, ""), err
    assert out.startswith(f"Look at {target / 'index.html'}.\n")
    assert [path.name for path in target.iterdir()] == ["index.html"]
    return (target / "index.html").read_text(encoding="utf-8")


def titles(html):
    return re.findall(r"<h2>(.*)</h2>", html)


def rows(html):
    """The cells of the first table."""
    body = html.partition("<tbody>")[2].partition("</tbody>")[0]
    return [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in body.split("</tr>") if "<td" in row]


def test_the_page_shows_what_is_saved_and_changes_nothing(begun, tmp_path):
    directory, told = begun
    before = state(directory)
    html = watched(directory, tmp_path / "page")
    assert state(directory) == before
    ((method, seed, step, average, worst, task, saved),) = rows(html)
    # It was stopped at step 30, before that was saved.
    assert (method, seed, step) == ("Group DRO", "1", "20 of 40")
    (numbers,) = (n for m, s, t, n in told if (m, s, t) == ("Group DRO", 1, 20))
    assert average == f"{numbers['validation/accuracy/average']:.3f}"
    assert worst == f"{numbers['validation/accuracy/worst']:.3f}"
    assert numbers[f"validation/accuracy/task/{task}"] == numbers["validation/accuracy/worst"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \w+", saved)
    assert "Finished runs: Average 2, Group DRO 1." in html
    shown = ["Runs", "Average and worst task", "Over training", "Task weights", "Time per step"]
    assert titles(html) == shown
    # Those that have ended are at another step, so nothing is said to be better.
    assert "can&#39;t be told yet" in html
    assert "<strong>" not in html and "clear" not in html and "separated" not in html
    assert "http-equiv" not in html and html.count("data:image/png;base64,") == 4


def test_it_goes_on_until_the_experiment_is_finished(underway, tmp_path, monkeypatch):
    seen, clock = [], iter(range(1000, 2000))
    target = tmp_path / "page"

    def sleep(seconds):
        assert seconds == 7
        seen.append((target / "index.html").read_text(encoding="utf-8"))
        if len(seen) == 2:
            run(underway)

    monkeypatch.setattr(commands.time, "sleep", sleep)
    monkeypatch.setattr(commands.time, "time", lambda: next(clock))
    status, out, err = typed("watch", str(underway), f"--to={target}", "--every=7")
    assert (status, err) == (0, "")
    assert out.splitlines()[0] == f"Look at {target / 'index.html'}."
    assert out.splitlines()[-1] == "The experiment is finished."
    first, second = seen
    assert '<meta http-equiv="refresh" content="7">' in first
    # Nothing has happened in between, and yet the page says that somebody looks.
    lines = zip(first.split("\n"), second.split("\n"), strict=True)
    ((one, other),) = (pair for pair in lines if len(set(pair)) > 1)
    assert one.startswith("<p>Written 1970-01-01 ") and other.startswith("<p>Written 1970-01-01 ")
    last = (target / "index.html").read_text(encoding="utf-8")
    assert "The experiment is finished" in last and "http-equiv" not in last
    assert "Finished runs: Average 2, Group DRO 2." in last and "told yet" not in last
    assert rows(last)[0][0] == "Average"


def test_more_steps_make_a_finished_experiment_an_unfinished_one(tmp_path):
    directory = tmp_path / "tiny"
    run(directory, seeds=(0,))
    assert "The experiment is finished" in watched(directory, tmp_path / "page")
    interrupted(directory, (1, 60), seeds=(0,), schedule=tiny.schedule(80, 5, 10))
    html = watched(directory, tmp_path / "page")
    assert "is finished" not in html and "Finished runs: Group DRO 1." in html
    assert [row[:3] for row in rows(html)] == [["Average", "0", "50 of 80"]]


SWEEP = grid(tiny.GROUP_DRO, {"weight_lr": [0.1, 0.5]})


@pytest.mark.parametrize(
    ("options", "lengths", "at", "shown"),
    [
        # Two of them have one checkpoint, and there is no other record that says what is measured.
        ({"runs_together": 2}, {}, (2, 60), ["Average", "0", "20 of 40"]),
        ({}, {"test": "last"}, (2, 30), ["Group DRO", "0", "20 of 40"]),
        ({}, {"test": "best"}, (2, 30), ["Group DRO", "0"]),
        # A single evaluation makes no curve.
        ({}, {"eval_interval": 10}, (1, 20), ["Average", "0", "10 of 40"]),
        ({"problem": tiny.problem(broken=40)}, {}, (1, 30), ["Average", "0", "20 of 40"]),
        ({"methods": [SWEEP]}, {}, (2, 30), ["Group DRO (weight_lr=0.5)", "0", "20 of 40"]),
        ({"problem": tiny.Distances()}, {}, (1, 30), ["Average", "0", "20 of 40"]),
    ],
    ids=["together", "last", "best", "one evaluation", "NaN", "sweep", "lower is better"],
)
def test_the_page_comes_from_few_numbers(options, lengths, at, shown, tmp_path):
    lengths = {"train_steps": 40, "eval_interval": 5, "checkpoint_interval": 10} | lengths
    directory = tmp_path / "tiny"
    interrupted(directory, at, schedule=tiny.schedule(**lengths), **options)
    html = watched(directory, tmp_path / "page")
    assert rows(html)[0][: len(shown)] == shown
    assert "Not shown yet" not in html and "Average and worst task" in titles(html)
    assert ("Over training" in titles(html)) == (lengths["eval_interval"] == 5)
    assert ("Pareto frontiers" in titles(html)) == ("methods" in options)
    assert ("lower is better" in html) == isinstance(options.get("problem"), tiny.Distances)


def test_before_the_first_save_there_is_a_page(tmp_path):
    interrupted(tmp_path / "tiny", (1, 5))
    html = watched(tmp_path / "tiny", tmp_path / "page")
    assert "Nothing is saved yet." in html and titles(html) == []


def test_what_the_data_says_of_a_setting_makes_no_other_setting(tmp_path):
    mixing = tiny.Method("Mixing", "static_mixing", {"exponent": 1.0})
    interrupted(tmp_path / "tiny", (2, 30), methods=[mixing])
    html = watched(tmp_path / "tiny", tmp_path / "page")
    assert [row[:2] for row in rows(html)] == [["Mixing", "1"]]
    assert "Finished runs: Mixing 1." in html and "Pareto frontiers" not in titles(html)


def test_a_checkpoint_that_cant_be_read_gives_way_to_the_one_before(underway, tmp_path):
    folder = underway / "checkpoints" / "Group_DRO-seed1"
    assert kept.steps_in(folder) == [10, 20]
    shutil.rmtree(folder / "20" / "record")
    assert rows(watched(underway, tmp_path / "page"))[0][2] == "10 of 40"
    shutil.rmtree(folder / "10" / "record")
    html = watched(underway, tmp_path / "page")
    assert "Finished runs: Average 2, Group DRO 1." in html and "of 40" not in html


def test_what_is_deleted_while_it_is_read_is_left_out(underway, tmp_path, monkeypatch):
    read = kept.read_payload

    def delete(place):
        shutil.rmtree(place.parent, ignore_errors=True)
        return read(place)

    monkeypatch.setattr(kept, "read_payload", delete)
    html = watched(underway, tmp_path / "page")
    assert "Finished runs: Average 2, Group DRO 1." in html and "of 40" not in html


def test_a_record_that_is_cut_off_is_left_out(underway, tmp_path):
    file = underway / "runs" / "Average-seed0.json"
    file.write_bytes(file.read_bytes()[:100])
    # Its last checkpoint is still there.
    assert rows(watched(underway, tmp_path / "page"))[0][:3] == ["Average", "0", "40 of 40"]


def test_a_directory_that_vanishes_is_an_error_in_a_line(underway, tmp_path, monkeypatch):
    target = tmp_path / "page"
    monkeypatch.setattr(commands.time, "sleep", lambda _: shutil.rmtree(underway))
    status, _, err = typed("watch", str(underway), f"--to={target}")
    assert (status, err) == (1, f"Error: {underway} is gone. The page shows what was there last.\n")
    html = (target / "index.html").read_text(encoding="utf-8")
    assert "It is gone now." in html and "http-equiv" not in html
    assert [row[2] for row in rows(html)] == ["20 of 40"]
    assert not underway.exists()


def test_a_section_that_fails_costs_no_page(underway, tmp_path, monkeypatch):
    def fail(*args):
        raise ZeroDivisionError("no mean of nothing")

    with monkeypatch.context() as patch:
        patch.setattr(tables, "headline", fail)
        html = watched(underway, tmp_path / "page")
        assert titles(html)[:3] == ["Runs", "Not shown yet", "Over training"]
        assert "no mean of nothing" in html
    monkeypatch.setattr(page, "_drawn", fail)
    assert titles(watched(underway, tmp_path / "page")) == ["Runs"]


@pytest.mark.parametrize("text", [None, "other.setting = 3\n"])
def test_another_directory_is_refused(text, tmp_path, monkeypatch):
    monkeypatch.setattr(commands.tempfile, "tempdir", str(tmp_path / "temporary"))
    place = tmp_path / "other"
    place.mkdir()
    if text is not None:
        (place / "config.gin").write_text(text)
    status, out, err = typed("watch", str(place))
    assert (status, out) == (1, "")
    assert err.startswith(f"Error: {place} has no config.gin of an exp") and err.count("\n") == 1
    assert not (tmp_path / "temporary").exists()


def test_ctrl_c_ends_it_in_a_line(underway, tmp_path):
    (tmp_path / "temporary").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "ldro_jax.main", "watch", underway, "--every=100"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**commands.os.environ, "TMPDIR": str(tmp_path / "temporary")},
        text=True,
    )
    try:
        assert process.stdout and process.stdout.readline().startswith("Look at ")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    (folder,) = (tmp_path / "temporary").glob("ldro-jax-tiny-*")
    assert process.returncode == 130
    assert err == f"\nInterrupted. The page stays in {folder / 'index.html'}.\n"

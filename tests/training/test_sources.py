"""Sources of a user's own: rows that change, and states that can't be gone on from."""

import shutil

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import tiny, tiny_lm

from ldro_jax import problems, reporting
from ldro_jax.records import results
from ldro_jax.tasks.drawing import drawer
from ldro_jax.training import loop
from ldro_jax.training import progress as progress_lib

POINTS = np.array([[-1.0], [2.0]], np.float32)


class Rows(problems.Source):
    """Rows with two parts; what ``change`` makes of them is given from the third batch on."""

    def __init__(self, change=None):
        self._change, self._asked = change, 0

    def rows(self, tasks, indices):
        self._asked += 1
        rows = {"point": POINTS[tasks], "index": indices.astype(np.int32)}
        return self._change(rows) if self._change and self._asked > 2 else rows


class Distances(tiny.Distances):
    """Tasks whose rows come from a source alone."""

    on_device = None

    def __init__(self, source):
        super().__init__()
        self.on_device, self.source = None, lambda seed: source()

    def row_losses(self, params, rows):
        noise = jnp.cos(rows["index"].astype(jnp.float32))
        return jnp.sum((params[None] - rows["point"]) ** 2, axis=1) + noise * params[0]


def program(source):
    return tiny.meshed(a_problem=Distances(source), size=4, learning_rate=0.01)


def schedule():
    return tiny.schedule(6, 1, 1)


def record(run):
    return {**results.run_to_record(run), "seconds_per_step": None}


WRONG = {
    "other keys": (
        lambda rows: {"point": rows["point"], "other": rows["index"]},
        r"rows of the same parts each time, rows\['index'\], rows\['point'\], but it gave "
        r"rows\['other'\], rows\['point'\]\.",
    ),
    "a key less": (lambda rows: {"point": rows["point"]}, r"but it gave rows\['point'\]\."),
    "no keys": (lambda rows: rows["point"], "but it gave rows"),
    "nothing": (lambda rows: None, "but it gave None"),
    "too few": (
        lambda rows: {name: array[:3] for name, array in rows.items()},
        r"rows\['index'\] as an array \[4\] of int32 for 4 rows, but it gave \[3\] of int32",
    ),
    "another shape": (lambda rows: rows | {"point": rows["point"][:, 0]}, r"\[4, 1\].*gave \[4\]"),
    "another dtype": (lambda rows: rows | {"index": rows["index"] > 1}, "gave .* of bool"),
    "no array": (lambda rows: rows | {"index": 3}, r"gave \[\] of int"),
    "masked": (lambda rows: rows | {"point": np.ma.masked_less(rows["point"], 0)}, "2 are masked"),
}


@pytest.mark.parametrize("what", WRONG)
def test_rows_that_change_are_refused_and_nothing_saved_is_lost(what, tmp_path):
    change, message = WRONG[what]
    with pytest.raises(ValueError, match=f"^source must .*{message}"):
        tiny.train(program(lambda: Rows(change)), tmp_path, schedule())


def test_a_run_goes_on_with_a_source_that_was_mended(tmp_path):
    expected = tiny.train(program(Rows), tmp_path / "whole", schedule())
    change, _ = WRONG["other keys"]
    broken = program(lambda: Rows(change))
    with pytest.raises(ValueError, match="source must"):
        tiny.train(broken, tmp_path / "run", schedule())
    progress = tiny.Progress()
    run = tiny.train(program(Rows), tmp_path / "run", schedule(), progress=progress)
    assert progress.lines and record(run) == record(expected)


def test_int64_rows_that_int32_holds_are_taken_and_others_are_not(tmp_path):
    class Wide(Rows):
        def rows(self, tasks, indices):
            return super().rows(tasks, indices) | {"index": indices.astype(np.int64) + self.first}

    Wide.first = 0
    found = tiny.train(program(Wide), tmp_path / "wide", schedule())
    expected = tiny.train(program(Rows), tmp_path / "narrow", schedule())
    assert record(found) == record(expected)
    Wide.first = 2**31
    with pytest.raises(ValueError, match=r"rows\['index'\] that int32 can hold.*2147483648"):
        tiny.train(program(Wide), tmp_path / "beyond", schedule())


def test_a_source_that_forgets_its_place_is_told_of_when_it_goes_on(tmp_path, caplog):
    class Forgetful(Rows):
        def rows(self, tasks, indices):
            return super().rows(tasks, indices + self._asked)

    for source, told in [(Rows, False), (Forgetful, True)]:
        folder = tmp_path / source.__name__
        with pytest.raises(KeyboardInterrupt):
            tiny.train(program(source), folder, schedule(), progress=tiny.Progress(stop_after=3))
        caplog.clear()
        tiny.train(program(source), folder, schedule())
        assert (f"source {source.__name__} gives other rows" in caplog.text) == told


def test_a_place_in_another_format_is_refused_and_stays(tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(drawer, "VERSION", 0)
        tiny.train(program(Rows), tmp_path, schedule(), progress=tiny.Progress(stop_after=3))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=r"saved by another version .* format 0, .* new run\.$"):
        tiny.train(program(Rows), tmp_path, schedule())
    assert sorted(tmp_path.rglob("*")) == before


@pytest.fixture(scope="module")
def stream(tmp_path_factory):
    """A program with a stream, its whole run, and a directory of one that was interrupted."""
    folder = tmp_path_factory.mktemp("stream")
    made = tiny_lm.make_program(tiny_lm.AVERAGE, tiny_lm.problem(tiny_lm.streamed()))
    whole = tiny_lm.train(made, folder / "whole")
    with pytest.raises(KeyboardInterrupt):
        tiny_lm.train(made, folder / "cut", progress=tiny.Progress(stop_after=3))
    return made, whole, folder / "cut"


def newest_place(folder):
    return max((folder / "checkpoints" / "stream").iterdir(), key=lambda path: int(path.name))


def changed_digit(place):
    text = (place / "given").read_text()
    (place / "given").write_text(str((int(text[0]) + 1) % 10) + text[1:])


DAMAGE = {
    "a digit": changed_digit,
    "cut off": lambda place: (place / "given").write_text("1"),
    "gone": lambda place: (place / "given").unlink(),
    "one more": lambda place: (place / "other").write_text("1"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_state_of_a_source_is_known_by_its_checksum(what, stream, tmp_path, caplog):
    made, whole, cut = stream
    folder = shutil.copytree(cut, tmp_path / "run")
    DAMAGE[what](newest_place(folder))
    run = tiny_lm.train(made, folder)
    assert record(run) == record(whole)
    assert "is not what was saved" in caplog.text


def test_a_state_that_is_whole_and_refused_stops_the_run_and_stays(stream, tmp_path, monkeypatch):
    made, whole, cut = stream
    folder = shutil.copytree(cut, tmp_path / "run")
    before = sorted(folder.rglob("*"))

    def restore(self, directory):
        raise NotImplementedError("a stream can't be rewound")

    with monkeypatch.context() as patch:
        patch.setattr(tiny_lm.Counted, "restore", restore)
        said = "source Counted can't go on from .* as it was saved .a stream can't be rewound"
        with pytest.raises(ValueError, match=said):
            tiny_lm.train(made, folder)
    assert sorted(folder.rglob("*")) == before
    assert record(tiny_lm.train(made, folder)) == record(whole)


@pytest.mark.parametrize("method", ["save", "restore"])
def test_a_source_that_cannot_be_saved_is_found_before_training(method, tmp_path, monkeypatch):
    def fails(self, directory):
        raise TypeError("cannot pickle 'generator' object")

    monkeypatch.setattr(progress_lib, "_TRIED", {})
    monkeypatch.setattr(tiny_lm.Counted, method, fails)
    made = tiny_lm.make_program(tiny_lm.AVERAGE, tiny_lm.problem(tiny_lm.streamed()))
    progress = tiny.Progress()
    said = "source Counted has a state, but .*TypeError: cannot pickle 'generator' object"
    with pytest.raises(ValueError, match=said):
        tiny_lm.train(made, tmp_path, progress=progress)
    assert not progress.steps


def test_the_trial_of_a_source_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(progress_lib, "_TRIED", {})
    made = tiny_lm.make_program(tiny_lm.AVERAGE, tiny_lm.problem(tiny_lm.streamed()))
    with pytest.raises(KeyboardInterrupt):
        tiny_lm.train(made, tmp_path, progress=tiny.Progress(stop_after=1))
    assert {path.name for path in (tmp_path / "checkpoints" / "stream").iterdir()} <= {"10"}
    assert made.problem in progress_lib._TRIED.values()


def test_what_a_source_is_known_by_is_compared_where_a_run_goes_on(tmp_path, monkeypatch):
    class Part(Rows):
        def __init__(self, of):
            super().__init__()
            self.identity = {"processes": of}

    def run(of):
        made = Distances(lambda: Part(of))
        options = {"seeds": (0,), "batch_size": 4, "layout": tiny.ONE, "schedule": schedule()}
        return tiny.run(tmp_path, problem=made, optimizer=optax.sgd(0.01), **options)

    monkeypatch.setattr(reporting, "write_report", lambda *args, **more: None)
    train = loop.train
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(
            loop, "train", lambda *a, **o: train(*a, **{**o, "progress": tiny.Progress(3)})
        )
        run(2)
    with pytest.raises(ValueError, match="made with other data: processes was 2, now it is 3"):
        run(3)
    assert run(2).runs[0].evaluations[-1].step == 6

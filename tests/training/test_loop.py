"""One run, on either engine: it learns, repeats itself, and survives interruptions."""

import dataclasses
import functools
import os
import signal

import jax
import numpy as np
import optax
import pytest
from helpers import plain_loop, tiny

from ldro_jax.records import results
from ldro_jax.runtime import preemption
from ldro_jax.tasks import drawing

ENGINES = {"stacked": tiny.stacked, "meshed": tiny.meshed}
DRAWN = dataclasses.replace(tiny.GROUP_DRO, name="drawn", sampling="weights")
METHODS = {method.name: method for method in (*tiny.METHODS, DRAWN)}


@functools.cache
def program(engine, name="Average"):
    """Compiled once for all tests here."""
    # Each engine has batches of its own, and on those of a mesh larger steps do not settle.
    return ENGINES[engine](METHODS[name], learning_rate=0.5 if engine == "stacked" else 0.2)


@pytest.fixture(params=ENGINES)
def engine(request):
    return request.param


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Trains a program from its start to its end, once for all tests here."""

    @functools.cache
    def trained(engine, name="Average"):
        return tiny.train(program(engine, name), tmp_path_factory.mktemp("whole"))

    return trained


def everything(run):
    """All of a record but what the clock says."""
    return results.run_to_record(dataclasses.replace(run, seconds_per_step=None))


def same(run, other):
    assert everything(run) == everything(other)


def files_of(directory):
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def ask_to_stop():
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(
    ("engine", "name"),
    [*(("stacked", m.name) for m in tiny.METHODS), ("meshed", "L-DRO"), ("meshed", "drawn")],
)
def test_a_run_learns_and_repeats_itself(engine, name, whole, tmp_path):
    first = whole(engine, name)
    same(tiny.train(program(engine, name), tmp_path), first)
    assert first.losses.values[-1].mean() < 0.95 * first.losses.values[0].mean()
    assert first.evaluations[-1].average > 0.8
    assert first.losses.steps.tolist() == [10, 20, 30, 40]
    assert first.seconds_per_step > 0
    np.testing.assert_allclose(first.weights.values.sum(axis=1), 1, rtol=1e-5)
    steps = [(e.step, e.split) for e in first.evaluations]
    assert steps == [(s, split) for s in (10, 20, 30, 40) for split in ("validation", "test")]


@pytest.mark.parametrize(
    ("engine", "name"),
    [("stacked", "Group DRO"), ("stacked", "L-DRO"), ("meshed", "L-DRO"), ("meshed", "drawn")],
)
def test_an_interrupted_run_ends_as_if_nothing_had_happened(engine, name, whole, tmp_path):
    found = program(engine, name)
    for stop_after in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            progress = tiny.Progress(stop_after=stop_after)
            tiny.train(found, tmp_path / "pieces", progress=progress)
    progress = tiny.Progress()
    run = tiny.train(found, tmp_path / "pieces", progress=progress)
    same(run, whole(engine, name))
    # Interrupted before the checkpoint of step 10 and, from the start again, before that of 20.
    assert progress.lines == [f"{name}, seed 0: resumed at step 10."]
    assert progress.steps[0] == 10 and sum(progress.steps) == 40


@pytest.mark.parametrize(
    ("engine", "name"), [("stacked", "Average"), ("meshed", "L-DRO"), ("meshed", "drawn")]
)
def test_a_damaged_checkpoint_costs_time_but_changes_nothing(engine, name, whole, tmp_path, caplog):
    found = program(engine, name)
    with pytest.raises(KeyboardInterrupt):
        tiny.train(found, tmp_path / "pieces", progress=tiny.Progress(stop_after=3))
    for path in (tmp_path / "pieces" / "checkpoints" / "20").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    progress = tiny.Progress()
    run = tiny.train(found, tmp_path / "pieces", progress=progress)
    aside = tmp_path / "pieces" / "checkpoints" / "unreadable-20"
    assert "The checkpoint of step 20" in caplog.text
    assert str(aside) in caplog.text and (aside / "state").is_dir()
    assert progress.lines == [f"{name}, seed 0: resumed at step 10."]
    same(run, whole(engine, name))


def test_a_run_that_was_killed_after_its_last_step_only_reports(engine, tmp_path):
    whole = tiny.train(program(engine), tmp_path)
    progress = tiny.Progress()
    again = tiny.train(program(engine), tmp_path, progress=progress)
    assert results.run_to_record(again) == results.run_to_record(whole)
    assert again.seconds_per_step > 0 and progress.steps == [40]


class AskedInEvaluation:
    """A program that is asked to stop while it evaluates a split for the n-th time."""

    def __init__(self, a_program, split, number):
        self._program, self._split, self._left = a_program, split, number

    def __getattr__(self, name):
        return getattr(self._program, name)

    def evaluate(self, params, split, *rest):
        if split == self._split:
            self._left -= 1
            if not self._left:
                ask_to_stop()
        return self._program.evaluate(params, split, *rest)


@pytest.mark.parametrize(
    ("split", "number", "step"), [("validation", 1, 10), ("validation", 4, 40), ("test", 1, 40)]
)
def test_a_run_that_is_asked_to_stop_while_it_evaluates_stops_after_that(
    engine, split, number, step, tmp_path
):
    # In particular at the end of a run, where another one would start that knows nothing of it.
    schedule = tiny.schedule(test="last", checkpoint_interval=100)
    expected = tiny.train(program(engine), tmp_path / "whole", schedule)
    asked = AskedInEvaluation(program(engine), split, number)
    with pytest.raises(preemption.PreemptedError, match=f"stopped, saved at step {step}"):
        tiny.train(asked, tmp_path / "pieces", schedule)
    progress = tiny.Progress()
    same(tiny.train(program(engine), tmp_path / "pieces", schedule, progress=progress), expected)
    assert progress.lines == [f"Average, seed 0: resumed at step {step}."]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_stretch_is_taken_in_parts_and_broken_off_without_a_difference(
    number, tmp_path, monkeypatch
):
    # Ten steps are two blocks. What was observed before the signal belongs to the record too.
    monkeypatch.setattr(tiny.Distances, "observe", staticmethod(lambda params: params))
    found = tiny.stacked(tiny.GROUP_DRO, tiny.Distances(), learning_rate=0.02)
    schedule = tiny.schedule(25, 10, 100)
    progress = tiny.Progress()
    whole = tiny.train(found, tmp_path / "whole", schedule, progress=progress)
    assert progress.steps[-2:] == [10, 5] and whole.path.values.shape == (25, 1)
    monkeypatch.setattr(preemption, "SECONDS", 0)
    progress = tiny.Progress(at=15, action=lambda: os.kill(os.getpid(), number))
    with pytest.raises(preemption.PreemptedError, match="stopped, saved at step 15") as error:
        tiny.train(found, tmp_path / "pieces", schedule, progress=progress)
    assert error.value.exit_status == 128 + number and progress.steps == [5, 5, 5]
    progress = tiny.Progress()
    same(tiny.train(found, tmp_path / "pieces", schedule, progress=progress), whole)
    assert progress.steps == [15, 5, 5]
    assert len(found.compiled()) == 1


def test_checkpoints_come_at_the_next_evaluation(engine, tmp_path):
    tiny.train(program(engine), tmp_path, tiny.schedule(checkpoint_interval=15))
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"20", "40"}


def test_a_last_stretch_that_is_shorter(engine, tmp_path):
    run = tiny.train(program(engine), tmp_path, tiny.schedule(train_steps=11))
    assert run.losses.steps.tolist() == [10, 11]


def test_the_test_can_be_left_to_the_end(engine, tmp_path):
    schedules = [tiny.schedule(20, 10, test=test) for test in ("always", "last")]
    always, last = (
        tiny.train(program(engine), tmp_path / schedule.test, schedule) for schedule in schedules
    )
    steps = [(e.step, e.split) for e in last.evaluations]
    assert steps == [(10, "validation"), (20, "validation"), (20, "test")]
    assert last.evaluations[-1] == always.evaluations[-1]


def test_the_progress_names_the_worst_task(engine, tmp_path):
    progress = tiny.Progress()
    schedule = tiny.schedule(train_steps=10)
    run = tiny.train(program(engine), tmp_path, schedule, progress=progress)
    found = next(e for e in run.evaluations if e.split == "validation")
    assert progress.texts == [
        f"average {found.average:.3f}, worst {found.worst:.3f} ({found.worst_task})"
    ]
    assert found.worst_task in tiny.NAMES


def test_a_method_of_another_program_is_refused(engine, tmp_path):
    with pytest.raises(ValueError, match="can't be trained by the program of"):
        tiny.train(program(engine), tmp_path, method=tiny.GROUP_DRO)


def with_split(name, change):
    """The data with one array changed; nothing of it is trained on."""
    split = getattr(tiny.data(), name)
    change(split)
    return tiny.problem(a_data=dataclasses.replace(tiny.data(), **{name: split}))


@pytest.fixture(scope="module", params=ENGINES)
def interrupted(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp("interrupted")
    with pytest.raises(KeyboardInterrupt):
        tiny.train(program(request.param), directory, progress=tiny.Progress(stop_after=2))
    return ENGINES[request.param], directory


def test_other_data_is_refused_and_nothing_is_deleted(interrupted):
    make, directory = interrupted
    before = files_of(directory)

    def swap(split):
        split.targets[:2] = 1 - split.targets[:2]

    for other, key in [
        (tiny.problem((40, 32, 39)), "sizes"),
        # The same tasks and sizes, and another label that nothing is trained on.
        (with_split("test", swap), "content"),
        (
            tiny.problem(a_data=dataclasses.replace(tiny.data(), task_names=("a", "b", "c"))),
            "task_names",
        ),
    ]:
        ours, theirs = tiny.problem().identity[key], other.identity[key]
        with pytest.raises(ValueError, match="made with other data") as error:
            tiny.train(make(a_problem=other), directory)
        assert f"{key} was {ours}, now it is {theirs}." in str(error.value)
    assert files_of(directory) == before


def test_another_optimizer_is_refused_and_nothing_is_moved(interrupted):
    make, directory = interrupted
    before = files_of(directory)
    with pytest.raises(ValueError, match="made with another optimizer: the digest of"):
        tiny.train(make(optimizer=optax.adam(0.1)), directory)
    assert files_of(directory) == before


def broken(engine, number, name="Average"):
    """A program for data whose first training examples of the task "middle" are not numbers."""
    return ENGINES[engine](METHODS[name], tiny.problem(broken=number))


def bad_steps(engine, found, num_steps):
    """In which steps one of the examples that aren't numbers comes."""
    if engine == "stacked":
        # Example 0 of "middle" is broken, and an epoch of its 32 examples is 4 batches of 8.
        key = jax.random.fold_in(jax.random.key(0), 1)
        sizes = np.array([40, 32, 40])
        drawer = drawing.Drawer("balanced", 24, 0 * sizes, sizes=sizes)
        drawn = plain_loop.drawn(drawer, key, num_steps)
        return np.flatnonzero(((drawn.tasks == 1) & (drawn.indices == 0)).any(axis=1))
    rows = found.problem.source(0).rows(np.ones(8 * num_steps, int), np.arange(8 * num_steps))
    return np.flatnonzero(np.isnan(rows["inputs"]).reshape(num_steps, -1).any(axis=1))


def test_a_nan_loss_in_one_batch_leaves_the_weights_and_is_counted(engine, tmp_path, caplog):
    found = broken(engine, 1, "Group DRO")
    run = tiny.train(found, tmp_path, tiny.schedule(8, 1, 8))
    bad = bad_steps(engine, found, 8)
    assert len(bad) == 2
    assert run.nonfinite_losses == {"middle": 2} and run.stopped is None
    weights = np.concatenate([np.full((1, 3), 1 / 3), run.weights.values])
    changed = (np.abs(np.diff(weights, axis=0)).max(axis=1) > 1e-6).tolist()
    assert changed == [i not in bad for i in range(8)]
    # Before its first good batch the task's loss isn't known.
    assert np.isfinite(run.losses.values[bad[0] + 1 :]).all()
    assert np.isfinite(run.losses.values[:, [0, 2]]).all()
    assert f"seed 0, step {bad[0] + 1}" in caplog.text and "middle 1" in caplog.text


def test_interactions_that_can_not_be_measured_are_counted_and_named(engine, tmp_path, caplog):
    found = broken(engine, 1, "L-DRO exact")
    run = tiny.train(found, tmp_path, tiny.schedule(8, 4, 8))
    # In each of these A is measured.
    assert len(bad_steps(engine, found, 8)) == 2
    assert run.nonfinite_losses == run.unmeasured_interactions == {"middle": 2}
    assert "interactions that could not be measured so far" in caplog.text
    assert np.isfinite(run.interaction.values).all()


def test_a_task_that_never_recovers_stops_the_run_and_is_named(engine, tmp_path, caplog):
    found = broken(engine, 32)
    run = tiny.train(found, tmp_path / "long", tiny.schedule(max_nonfinite_steps=15))
    assert run.stopped.startswith("stopped at step 20: for the last 20 steps")
    assert "(middle)" in run.stopped and run.stopped in caplog.text
    assert run.losses.steps.tolist() == [10, 20]
    # A short one without one good step has stopped as well.
    run = tiny.train(found, tmp_path / "short", tiny.schedule(train_steps=10))
    assert run.stopped.startswith("stopped at step 10") and run.nonfinite_losses == {"middle": 10}

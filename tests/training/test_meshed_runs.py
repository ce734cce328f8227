"""A run on a mesh, step by step: its rows, and what an interruption leaves of it."""

import copy
import dataclasses
import os
import shutil
import signal
import threading

import jax
import numpy as np
import pytest
from helpers import tiny, tiny_lm

from ldro_jax import transform
from ldro_jax.records import identity, results
from ldro_jax.runtime import preemption
from ldro_jax.sharding import Layout
from ldro_jax.tasks import drawing

METHODS = [tiny_lm.LDRO, tiny_lm.DRAWN]


class Recorded:
    """A program that remembers what each step was trained on, and where training got to."""

    def __init__(self, a_program):
        self.rows, self.losses, self.state = {}, {}, None
        self._original, self.program = a_program, copy.copy(a_program)
        self.program.feed = copy.copy(a_program.feed)
        self.program.feed.batch, self.program.step = self._batch, self._step

    def _batch(self, source, drawer):
        draw, _ = drawer.next()
        rows = [draw.tasks.tolist(), draw.indices.tolist(), drawer.record()["probabilities"]]
        # What is drawn again after an interruption is the same.
        assert self.rows.setdefault(drawer.step, rows) == rows
        return self._original.feed.batch(source, drawer)

    def _step(self, state, batch, method):
        step = int(state.step)
        self.state, losses = self._original.step(state, batch, method)
        self.losses[step] = np.array(losses)
        return self.state, losses


def everything(run):
    """All of a record but what the clock says."""
    return results.run_to_record(dataclasses.replace(run, seconds_per_step=None))


def same(run, other):
    assert everything(run) == everything(other)


def all_steps(recorded):
    return recorded.rows, {k: v.tolist() for k, v in recorded.losses.items()}


def identical(recorded, other):
    """The same rows and losses in every step, and the same state after the last, to the bit."""
    assert all_steps(recorded) == all_steps(other)
    jax.tree.map(np.testing.assert_array_equal, recorded.state, other.state)


_WHOLE = {}


@pytest.fixture
def whole(tmp_path_factory):
    """Runs without interruption, once for all tests: their record, and all that happened."""

    def find(method):
        if method.name not in _WHOLE:
            recorded = Recorded(tiny_lm.program(method))
            run = tiny_lm.train(recorded.program, tmp_path_factory.mktemp("whole"))
            _WHOLE[method.name] = run, recorded
        return _WHOLE[method.name]

    return find


def saved_steps(directory):
    return sorted(int(p.name) for p in (directory / "checkpoints").glob("[0-9]*"))


def _ask_to_stop():
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_a_run_learns_and_its_record_is_what_happened(method, whole):
    run, recorded = whole(method)
    losses = np.array([recorded.losses[step] for step in range(40)])
    assert losses[-10:].mean() < 0.85 * losses[:10].mean()
    # The losses of all steps of a stretch, averaged.
    assert run.losses.steps.tolist() == [10, 20, 30, 40]
    expected = losses.reshape(4, 10, -1).mean(axis=1)
    np.testing.assert_allclose(run.losses.values, expected, rtol=1e-6)
    assert run.seconds_per_step > 0 and run.stopped is None and not run.nonfinite_losses
    # Validation at every evaluation, the test of the best of them at the end.
    *validated, tested = run.evaluations
    assert [(e.step, e.split) for e in validated] == [(s, "validation") for s in (10, 20, 30, 40)]
    assert tested.split == "test" and 0 < tested.step <= 40
    assert {e.metric for e in run.evaluations} == {"perplexity"}
    weights = transform.find_state(recorded.state.opt_state).weights
    np.testing.assert_allclose(run.weights.values[-1], weights)
    np.testing.assert_allclose(run.weights.values.sum(axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize(
    "method", [tiny_lm.LDRO, tiny_lm.GROUP_DRO], ids=lambda method: method.name
)
def test_looking_at_a_run_changes_nothing(method, tmp_path):
    # In particular not what a row of a balanced batch counts, now that the weights are known.
    runs = [Recorded(tiny_lm.program(method)) for _ in range(2)]
    for recorded, interval in zip(runs, (3, 20), strict=True):
        tiny_lm.train(recorded.program, tmp_path / str(interval), tiny_lm.schedule(20, interval))
    assert runs[0].losses.keys() == runs[1].losses.keys()
    for step, losses in runs[0].losses.items():
        np.testing.assert_array_equal(losses, runs[1].losses[step])
    jax.tree.map(np.testing.assert_array_equal, runs[0].state, runs[1].state)
    # Which would hold without weights as well.
    assert np.ptp(transform.find_state(runs[0].state.opt_state).weights) > 0.05


def test_rows_are_drawn_by_the_weights_at_the_last_evaluation(whole):
    run, recorded = whole(tiny_lm.DRAWN)
    # Those may not change in between, or a run that is resumed there would draw other rows.
    weights = np.concatenate([np.full((1, 4), 0.25), run.weights.values])
    for step, (_, _, probabilities) in recorded.rows.items():
        expected = drawing.probabilities_of_weights(weights[step // 10])
        np.testing.assert_allclose(probabilities, expected, rtol=1e-6)
    late = [task for step in range(30, 40) for task in recorded.rows[step][0]]
    shares = np.bincount(late, minlength=4) / len(late)
    # Of 160 rows; the standard deviation of a share is at most 0.04.
    np.testing.assert_allclose(shares, weights[3], atol=0.12)
    assert np.ptp(weights[3]) > 0.3


def test_balanced_rows_take_every_sequence_once_in_an_epoch(whole):
    _, recorded = whole(tiny_lm.LDRO)
    rows = [recorded.rows[step] for step in range(40)]
    for task in range(4):
        indices = [
            i for tasks, found, _ in rows for t, i in zip(tasks, found, strict=True) if t == task
        ]
        assert indices == list(range(160))


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_a_killed_run_ends_as_if_nothing_had_happened(method, whole, tmp_path):
    expected, original = whole(method)
    recorded = Recorded(tiny_lm.program(method))
    for stop_after in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            progress = tiny.Progress(stop_after=stop_after)
            tiny_lm.train(recorded.program, tmp_path, progress=progress)
    progress = tiny.Progress()
    run = tiny_lm.train(recorded.program, tmp_path, progress=progress)
    same(run, expected)
    identical(recorded, original)
    # Interrupted before the checkpoint of step 10 and, from the start again, before that of 20.
    assert progress.lines == [f"{method.name}, seed 0: resumed at step 10."]
    assert progress.steps == [10] + [1] * 30


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_a_run_that_is_asked_to_stop_saves_first(method, whole, tmp_path):
    expected, original = whole(method)
    recorded = Recorded(tiny_lm.program(method))

    def earlier_handler(*_):
        raise AssertionError("This handler is not for this run.")

    former = signal.signal(signal.SIGTERM, earlier_handler)
    try:
        for at in (3, 24):
            with pytest.raises(preemption.PreemptedError, match="stopped, saved") as error:
                progress = tiny.Progress(at=at, action=_ask_to_stop)
                tiny_lm.train(recorded.program, tmp_path, progress=progress)
            assert signal.getsignal(signal.SIGTERM) is earlier_handler
            saved = saved_steps(tmp_path)[-1]
            assert str(error.value).endswith(f"saved at step {saved}.")
            # Soon, though what is drawn already is trained on; and not at an evaluation.
            assert at <= saved <= at + 4 and saved % 10
    finally:
        signal.signal(signal.SIGTERM, former)
    progress = tiny.Progress()
    run = tiny_lm.train(recorded.program, tmp_path, progress=progress)
    same(run, expected)
    identical(recorded, original)
    assert progress.steps == [saved] + [1] * (40 - saved)


def test_a_run_goes_on_with_other_devices(whole, tmp_path):
    expected, original = whole(tiny_lm.LDRO)
    with pytest.raises(KeyboardInterrupt):
        tiny_lm.train(tiny_lm.program(tiny_lm.LDRO), tmp_path, progress=tiny.Progress(stop_after=3))
    recorded = Recorded(tiny_lm.program(tiny_lm.LDRO, Layout(data=4, model=2, fully_sharded=True)))
    progress = tiny.Progress()
    run = tiny_lm.train(recorded.program, tmp_path, progress=progress)
    assert progress.lines == ["L-DRO, seed 0: resumed at step 20."]
    # Eight devices add in another order.
    np.testing.assert_allclose(run.losses.values, expected.losses.values, rtol=1e-4)
    np.testing.assert_allclose(run.weights.values, expected.weights.values, rtol=1e-3)
    for ours, theirs in zip(run.evaluations, expected.evaluations, strict=True):
        assert (ours.step, ours.split) == (theirs.step, theirs.split)
        assert ours.per_task == pytest.approx(theirs.per_task, rel=1e-3)
    # The rows are the same; what they would have been drawn by is not quite.
    assert {k: original.rows[k][:2] for k in range(20, 40)} == {
        k: rows[:2] for k, rows in recorded.rows.items()
    }
    embedding = recorded.state.params["embedding"]
    assert embedding.addressable_shards[0].data.shape == (64, 4)


OTHER_TEXT = {
    "vocabulary": dataclasses.replace(tiny_lm.corpus(), vocabulary="other"),
    # Other shapes must not count as damage.
    "vocabulary of another size": dataclasses.replace(
        tiny_lm.corpus(), vocabulary="other", vocab_size=200
    ),
    "number": tiny_lm.corpus(2),
}


@pytest.mark.parametrize("name", OTHER_TEXT)
def test_other_text_is_refused_and_nothing_is_deleted(name, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        tiny_lm.train(tiny_lm.program(), tmp_path, progress=tiny.Progress(stop_after=2))
    before = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    other, ours = OTHER_TEXT[name].identity, tiny_lm.corpus().identity
    differs = next(key for key in ours if other[key] != ours[key])
    program = tiny_lm.make_program(tiny_lm.AVERAGE, tiny_lm.problem(OTHER_TEXT[name]))
    with pytest.raises(ValueError, match="made with other data") as error:
        tiny_lm.train(program, tmp_path)
    assert f"{differs} was {ours[differs]}, now it is {other[differs]}." in str(error.value)
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == before


def test_a_stream_begins_anew_with_the_run(tmp_path, monkeypatch):
    program = tiny_lm.make_program(tiny_lm.AVERAGE, tiny_lm.problem(tiny_lm.streamed()))
    expected = tiny_lm.train(program, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        tiny_lm.train(program, tmp_path / "cut", progress=tiny.Progress(stop_after=2))
    assert saved_steps(tmp_path / "cut") == [10]
    same(tiny_lm.train(program, shutil.copytree(tmp_path / "cut", tmp_path / "resumed")), expected)
    # The only checkpoint can be read, and so can the place beside it, but a bit is another one.
    real, wrong = identity.digest, iter([[[0, 0]]])
    monkeypatch.setattr(identity, "digest", lambda state: next(wrong, None) or real(state))
    same(tiny_lm.train(program, shutil.copytree(tmp_path / "cut", tmp_path / "damaged")), expected)


def test_a_run_that_fails_leaves_no_thread(tmp_path):
    broken = copy.copy(tiny_lm.program())
    broken.feed = copy.copy(broken.feed)

    def batch(source, drawer):
        if drawer.counts[0] > 16:
            raise OSError("the file system is gone")
        return tiny_lm.program().feed.batch(source, drawer)

    broken.feed.batch = batch
    before = set(threading.enumerate())
    with pytest.raises(OSError, match="the file system is gone"):
        tiny_lm.train(broken, tmp_path)
    # Orbax keeps threads of its own.
    assert not [
        thread for thread in set(threading.enumerate()) - before if "produce" in thread.name
    ]

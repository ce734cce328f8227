"""One run of a language model: it repeats itself, survives interruptions, and loses nothing."""

import contextlib
import copy
import dataclasses
import itertools
import os
import shutil
import signal
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_lm
from jax import flatten_util

from ldro_jax import transform
from ldro_jax.evaluation import perplexity
from ldro_jax.records import results
from ldro_jax.tasks import sequences
from ldro_jax.training import checkpoints, identity, preemption
from ldro_jax.training.lm_program import LanguageModelProgram
from ldro_jax.training.prefetch import prefetched
from ldro_jax.training.sharding import Layout

METHODS = [tiny_lm.LDRO, tiny_lm.DRAWN]


@pytest.fixture(scope="module", autouse=True)
def _quickly():
    with tiny_lm.compiled_quickly(), tiny_lm.no_tensorboard():
        yield


class Recorded:
    """A program that remembers what each step was trained on, and where training got to."""

    def __init__(self, a_program):
        self.rows, self.losses, self.state = {}, {}, None
        self._original, self.program = a_program, copy.copy(a_program)
        self.program.draw, self.program.step = self._draw, self._step

    def _draw(self, drawn, probabilities, seed, step):
        found = self._original.draw(drawn, probabilities, seed, step)
        rows = [found.tasks.tolist(), found.indices.tolist(), np.asarray(probabilities).tolist()]
        # What is drawn again after an interruption is the same.
        assert self.rows.setdefault(step, rows) == rows
        return found

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
        np.testing.assert_allclose(probabilities, weights[step // 10], rtol=1e-6)
    late = [task for step in range(30, 40) for task in recorded.rows[step][0]]
    shares = np.bincount(late, minlength=4) / len(late)
    # Of 160 rows; the standard deviation of a share is at most 0.04.
    np.testing.assert_allclose(shares, weights[3], atol=0.12)
    assert np.ptp(weights[3]) > 0.3


@pytest.mark.parametrize(
    "method",
    [
        dataclasses.replace(tiny_lm.DRAWN, floor=0.2),
        dataclasses.replace(
            tiny_lm.DRAWN,
            weighting="static_mixing",
            hyperparameters={"sizes": (8.0, 4.0, 2.0, 1.0), "exponent": 1.0},
            floor=0.5,
        ),
    ],
    ids=["group DRO", "static mixing"],
)
def test_the_first_rows_are_drawn_by_the_first_weights(method):
    found = tiny_lm.program().first_probabilities(method)
    static = (
        np.array([8, 4, 2, 1]) / 15 if method.weighting == "static_mixing" else np.full(4, 0.25)
    )
    np.testing.assert_allclose(found, (1 - method.floor) * static + method.floor / 4, rtol=1e-6)


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
            progress = tiny_lm.Progress(stop_after=stop_after)
            tiny_lm.train(recorded.program, tmp_path, progress=progress)
    progress = tiny_lm.Progress()
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
                progress = tiny_lm.Progress(at=at, action=_ask_to_stop)
                tiny_lm.train(recorded.program, tmp_path, progress=progress)
            assert signal.getsignal(signal.SIGTERM) is earlier_handler
            saved = saved_steps(tmp_path)[-1]
            assert str(error.value).endswith(f"saved at step {saved}.")
            # Soon, though what is drawn already is trained on; and not at an evaluation.
            assert at <= saved <= at + 4 and saved % 10
    finally:
        signal.signal(signal.SIGTERM, former)
    progress = tiny_lm.Progress()
    run = tiny_lm.train(recorded.program, tmp_path, progress=progress)
    same(run, expected)
    identical(recorded, original)
    assert progress.steps == [saved] + [1] * (40 - saved)


class _AskedInEvaluation:
    """A program that is asked to stop while it evaluates a split at some step."""

    def __init__(self, a_program, split, number):
        self.program = copy.copy(a_program)
        self.program.evaluate = self._evaluate
        self._evaluate_there, self._split, self._left = a_program.evaluate, split, number

    def _evaluate(self, params, split, max_tokens=None):
        self._left -= split == self._split
        if not self._left and split == self._split:
            _ask_to_stop()
        return self._evaluate_there(params, split, max_tokens)


@pytest.mark.parametrize(
    ("split", "number", "step"), [("validation", 1, 10), ("validation", 4, 40), ("test", 1, 40)]
)
def test_a_run_that_is_asked_to_stop_while_it_evaluates_stops_after_that(
    split, number, step, whole, tmp_path
):
    # In particular at the end of a run, where another one would start that knows nothing of it.
    expected, _ = whole(tiny_lm.LDRO)
    asked = _AskedInEvaluation(tiny_lm.program(tiny_lm.LDRO), split, number)
    with pytest.raises(preemption.PreemptedError, match=f"saved at step {step}"):
        tiny_lm.train(asked.program, tmp_path)
    progress = tiny_lm.Progress()
    same(tiny_lm.train(tiny_lm.program(tiny_lm.LDRO), tmp_path, progress=progress), expected)
    assert progress.lines == [f"L-DRO, seed 0: resumed at step {step}."]


def test_several_processes_agree_on_a_step_and_remember_it(monkeypatch):
    # What jax says is true of one number alone, which may be that of a step where a run can't stop.
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(preemption, "_questions", itertools.count(1))
    monkeypatch.setattr(
        preemption.multihost_utils, "reached_preemption_sync_point", lambda number: number == 3
    )
    before = signal.getsignal(signal.SIGTERM)
    with preemption.watch() as preempted:
        assert [preempted(step) for step in range(1, 6)] == [False, False, True, True, True]
        assert signal.getsignal(signal.SIGTERM) is before
    # The steps of the next run begin anew, the numbers don't.
    with preemption.watch() as preempted:
        assert not any(preempted(step) for step in range(1, 6))


def test_outside_the_main_thread_there_are_no_signals_to_watch_for():
    answers = []

    def watch():
        with preemption.watch() as preempted:
            answers.append(preempted(1))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=watch)
    thread.start()
    thread.join()
    assert answers == [False] and signal.getsignal(signal.SIGTERM) is before


def test_a_run_goes_on_with_other_devices(whole, tmp_path):
    expected, original = whole(tiny_lm.LDRO)
    with pytest.raises(KeyboardInterrupt):
        tiny_lm.train(
            tiny_lm.program(tiny_lm.LDRO), tmp_path, progress=tiny_lm.Progress(stop_after=3)
        )
    recorded = Recorded(
        tiny_lm.program(tiny_lm.LDRO, layout=Layout(data=4, model=2, fully_sharded=True))
    )
    progress = tiny_lm.Progress()
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


def test_a_damaged_checkpoint_costs_time_but_changes_nothing(whole, tmp_path, caplog):
    expected, original = whole(tiny_lm.DRAWN)
    recorded = Recorded(tiny_lm.program(tiny_lm.DRAWN))
    with pytest.raises(KeyboardInterrupt):
        tiny_lm.train(recorded.program, tmp_path, progress=tiny_lm.Progress(stop_after=3))
    assert saved_steps(tmp_path) == [10, 20]
    for path in (tmp_path / "checkpoints" / "20").rglob("*"):
        if path.is_file():
            path.write_bytes(b"damaged")
    progress = tiny_lm.Progress()
    run = tiny_lm.train(recorded.program, tmp_path, progress=progress)
    assert "The checkpoint of step 20" in caplog.text
    aside = tmp_path / "checkpoints" / "unreadable-20"
    assert str(aside) in caplog.text and (aside / "record" / "metadata").read_bytes() == b"damaged"
    assert progress.lines == [f"{run.method}, seed 0: resumed at step 10."]
    same(run, expected)
    identical(recorded, original)


OTHER_TEXT = {
    "vocabulary": dataclasses.replace(tiny_lm.corpus(), vocabulary="other"),
    # Other shapes must not count as damage either.
    "vocabulary of another size": dataclasses.replace(
        tiny_lm.corpus(), vocabulary="other", vocab_size=200
    ),
    "names": dataclasses.replace(tiny_lm.corpus(), task_names=("a", "b", "c", "d")),
    "number": tiny_lm.corpus(2),
    # The same languages and sizes, and another word.
    "content": dataclasses.replace(
        tiny_lm.corpus(), test=[*tiny_lm.corpus().test[:-1], tiny_lm.corpus().test[-1][::-1]]
    ),
}


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    directory = tmp_path_factory.mktemp("interrupted")
    with pytest.raises(KeyboardInterrupt):
        tiny_lm.train(tiny_lm.program(), directory, progress=tiny_lm.Progress(stop_after=2))
    return directory


@pytest.mark.parametrize("name", OTHER_TEXT)
def test_other_text_is_refused_and_nothing_is_deleted(name, interrupted):
    before = sorted(path for path in interrupted.rglob("*") if path.is_file())
    other, ours = OTHER_TEXT[name].identity, tiny_lm.corpus().identity
    differs = next(key for key in ours if other[key] != ours[key])
    with pytest.raises(ValueError, match="made with other data") as error:
        tiny_lm.train(tiny_lm.make_program(tiny_lm.AVERAGE, OTHER_TEXT[name]), interrupted)
    assert f"{differs} was {ours[differs]}, now it is {other[differs]}." in str(error.value)
    assert sorted(path for path in interrupted.rglob("*") if path.is_file()) == before


def test_another_model_is_refused_and_nothing_is_moved(interrupted):
    before = sorted(path for path in interrupted.rglob("*") if path.is_file())
    other = tiny_lm.make_program(tiny_lm.AVERAGE, tiny_lm.corpus(), optimizer=optax.adam(0.1))
    with pytest.raises(ValueError, match="made with another model, optimizer or version"):
        tiny_lm.train(other, interrupted)
    assert sorted(path for path in interrupted.rglob("*") if path.is_file()) == before


class Counted(sequences.ShuffledSequences):
    """A stream: what comes next depends on what it has given, not on what it is asked for."""

    def __init__(self, tokens, length, seed):
        super().__init__(tokens, length, seed)
        self._given = np.zeros(len(tokens), np.int64)

    def rows(self, tasks, indices):
        own = []
        for task in tasks:
            own.append(self._given[task])
            self._given[task] += 1
        return super().rows(tasks, np.array(own))

    def save(self, directory):
        (directory / "given").write_text(" ".join(map(str, self._given)))

    def restore(self, directory):
        self._given[:] = (directory / "given").read_text().split()


class CountedText:
    def __init__(self, tokens):
        self.sizes, self._tokens = np.array([len(text) for text in tokens]), tokens

    def source(self, length, seed):
        return Counted(self._tokens, length, seed)


def test_a_stream_begins_anew_with_the_run(tmp_path, monkeypatch):
    tokens = tiny_lm.corpus().train
    corpus = dataclasses.replace(tiny_lm.corpus(), train=(), stream=CountedText(tokens))
    program = tiny_lm.make_program(tiny_lm.AVERAGE, corpus)
    expected = tiny_lm.train(program, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        tiny_lm.train(program, tmp_path / "cut", progress=tiny_lm.Progress(stop_after=2))
    assert saved_steps(tmp_path / "cut") == [10]
    same(tiny_lm.train(program, shutil.copytree(tmp_path / "cut", tmp_path / "resumed")), expected)
    # The only checkpoint can be read, and so can the place beside it, but a bit is another one.
    real, wrong = identity.digest, iter([[[0, 0]]])
    monkeypatch.setattr(identity, "digest", lambda state: next(wrong, None) or real(state))
    same(tiny_lm.train(program, shutil.copytree(tmp_path / "cut", tmp_path / "damaged")), expected)


def _unstable(count):
    """A good learning rate for 20 steps, one that unlearns for 10, and then NaN."""
    return jnp.where(count < 20, 1.0, jnp.where(count < 30, -0.5, jnp.nan))


@pytest.fixture(scope="module")
def unstable():
    return tiny_lm.make_program(tiny_lm.GROUP_DRO, tiny_lm.corpus(), optimizer=optax.sgd(_unstable))


def test_the_test_is_of_the_best_checkpoint(unstable, tmp_path):
    run = tiny_lm.train(unstable, tmp_path / "long", tiny_lm.schedule(30))
    averages = [e.average for e in run.evaluations if e.split == "validation"]
    assert averages[1] < averages[0] and averages[1] < averages[2] - 2
    tested = run.evaluations[-1]
    assert (tested.split, tested.step) == ("test", 20)
    # The same as that of a run which ends there, whose last state is its best.
    recorded = Recorded(unstable)
    short = tiny_lm.train(recorded.program, tmp_path / "short", tiny_lm.schedule(20))
    assert short.evaluations[-1] == tested
    losses = unstable.evaluate(recorded.state.params, "test")
    expected = perplexity.perplexity(losses)
    np.testing.assert_allclose(list(tested.per_task.values()), expected, rtol=1e-6)


def test_a_damaged_best_checkpoint_costs_time_but_changes_nothing(unstable, tmp_path, caplog):
    schedule = tiny_lm.schedule(30)
    expected = tiny_lm.train(unstable, tmp_path, schedule)
    assert expected.evaluations[-1].step == 20 and saved_steps(tmp_path) == [20, 30]
    for path in (tmp_path / "checkpoints" / "20" / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(b"damaged")
    # The newest is whole, but what it calls the best is gone; an older one must not be tested.
    same(tiny_lm.train(unstable, tmp_path, schedule), expected)
    assert "step 30 can't be used: the best one of its run, of step 20" in caplog.text


def test_losses_that_stay_nan_stop_a_run_and_nothing_is_lost(unstable, tmp_path, caplog):
    schedule = tiny_lm.schedule(80, max_nonfinite_steps=5)
    run = tiny_lm.train(unstable, tmp_path, schedule)
    # The step 31 makes the parameters NaN, so the losses are from the next one on.
    assert run.stopped.startswith("stopped at step 40: for the last 9 steps")
    assert run.nonfinite_losses == dict.fromkeys(tiny_lm.corpus().task_names, 9)
    assert run.stopped in caplog.text
    averages = {e.step: e.average for e in run.evaluations}
    assert list(averages) == [10, 20, 30, 40] and np.isnan(averages[40])
    assert np.isfinite([averages[step] for step in (10, 20, 30)]).all()
    # Weights and losses are the last ones that were finite.
    assert np.isfinite(run.losses.values).all() and np.isfinite(run.weights.values).all()
    assert saved_steps(tmp_path) == [20, 30, 40]
    identity = unstable.corpus.identity
    saved = checkpoints.Checkpoints(tmp_path / "checkpoints", identity=identity)
    with contextlib.closing(saved):
        assert saved.restore(unstable.init(0))[0].step == 40
        state = saved.restore_best(unstable.init(0))
    assert state.step == 20
    assert np.isfinite(flatten_util.ravel_pytree(state.params)[0]).all()
    # Started again it is over at once, with the same record.
    progress = tiny_lm.Progress()
    same(tiny_lm.train(unstable, tmp_path, schedule, progress=progress), run)
    assert progress.steps == [40]


def test_a_checkpoint_comes_with_every_improvement_and_else_at_its_interval(unstable, tmp_path):
    tiny_lm.train(unstable, tmp_path / "rarely", tiny_lm.schedule(30, 10, 30))
    # At 30 nothing improves any more.
    assert saved_steps(tmp_path / "rarely") == [10, 20]
    tiny_lm.train(unstable, tmp_path / "often", tiny_lm.schedule(30, 10, 10))
    assert saved_steps(tmp_path / "often") == [20, 30]


def test_a_schedule_that_does_not_divide_has_a_shorter_last_stretch(tmp_path):
    run = tiny_lm.train(tiny_lm.program(), tmp_path, tiny_lm.schedule(43, 40))
    assert run.losses.steps.tolist() == [40, 43]


def test_seeds_differ_and_methods_start_alike():
    first, second = (tiny_lm.program().init(seed).params for seed in (0, 1))
    assert not np.array_equal(first["embedding"], second["embedding"])
    jax.tree.map(np.testing.assert_array_equal, first, tiny_lm.program(tiny_lm.LDRO).init(0).params)
    rows = [tiny_lm.program().source(seed).rows(np.array([0]), np.array([0])) for seed in (0, 1)]
    assert not np.array_equal(*rows)


def plain_losses(params, tokens, length):
    """Mean loss of all tokens, each row of its own, in float64."""
    embedding, kernel = (np.asarray(params[name], np.float64) for name in ("embedding", "kernel"))
    total = 0.0
    for start in range(0, len(tokens), length):
        before = 0
        for token in tokens[start : start + length]:
            logits = embedding @ np.tanh(embedding[before] @ kernel)
            total += np.log(np.exp(logits).sum()) - logits[token]
            before = token
    return total / len(tokens)


@pytest.mark.parametrize("max_tokens", [None, 20, 1000])
@pytest.mark.parametrize("split", ["validation", "test"])
def test_evaluation_is_the_mean_over_all_tokens(split, max_tokens):
    a_program = tiny_lm.program()
    assert a_program.eval_length == 2 * tiny_lm.LENGTH
    params = a_program.init(0).params
    found = a_program.evaluate(params, split, max_tokens)
    texts = [text[:max_tokens] for text in getattr(tiny_lm.corpus(), split)]
    expected = [plain_losses(params, text, a_program.eval_length) for text in texts]
    assert found.dtype == np.float64
    # Single losses are rounded to float32.
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_run_evaluates_as_many_tokens_as_it_is_told(tmp_path):
    a_program = tiny_lm.program()
    options = {"max_validation_tokens": 10, "max_test_tokens": 30}
    recorded = Recorded(a_program)
    run = tiny_lm.train(recorded.program, tmp_path, tiny_lm.schedule(10), **options)
    for evaluation, limit in zip(run.evaluations, (10, 30), strict=True):
        losses = a_program.evaluate(recorded.state.params, evaluation.split, limit)
        found = list(evaluation.per_task.values())
        np.testing.assert_allclose(found, np.exp(losses), rtol=1e-6)


def test_a_program_serves_other_text_without_compiling():
    a_program = tiny_lm.program()
    params = a_program.init(0).params
    a_program.evaluate(params, "test")
    compiled = a_program._evaluate._cache_size()
    other = a_program.for_corpus(tiny_lm.corpus(seed=1))
    assert not np.array_equal(other.evaluate(params, "test"), a_program.evaluate(params, "test"))
    assert a_program._evaluate._cache_size() == compiled
    assert isinstance(other, LanguageModelProgram) and a_program.corpus is tiny_lm.corpus()
    for corpus in (tiny_lm.corpus(2), tiny_lm.corpus(vocabulary="other")):
        with pytest.raises(ValueError, match="one number of tasks and one vocabulary"):
            a_program.for_corpus(corpus)


def new_threads(before):
    return set(threading.enumerate()) - before


def test_prefetched_items_come_in_order_and_a_few_ahead():
    made = []

    def items():
        for item in range(20):
            made.append(item)
            yield item

    with contextlib.closing(prefetched(items(), depth=2)) as ready:
        assert next(ready) == 0
        # Two wait in the queue, and one for a place in it.
        deadline = time.monotonic() + 30
        while len(made) < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)
        assert made == [0, 1, 2, 3]
        assert list(ready) == list(range(1, 20))


def test_an_error_comes_where_its_item_would_have():
    def items():
        yield 1
        raise OSError("no such file")

    before = set(threading.enumerate())
    ready = prefetched(items())
    assert next(ready) == 1
    with pytest.raises(OSError, match="no such file"):
        next(ready)
    assert not new_threads(before)


def test_the_thread_ends_with_the_consumer():
    before = set(threading.enumerate())
    ready = prefetched(iter(range(10**9)))
    assert [next(ready) for _ in range(3)] == [0, 1, 2]
    assert len(new_threads(before)) == 1
    ready.close()
    assert not new_threads(before)
    # One that was never begun has no thread.
    prefetched(iter(range(3))).close()
    assert list(prefetched(iter(()))) == []


def test_a_run_that_fails_leaves_no_thread(tmp_path):
    broken = copy.copy(tiny_lm.program())

    def batch(source, draw, probabilities):
        if draw.drawn[0] > 20:
            raise OSError("the file system is gone")
        return tiny_lm.program().batch(source, draw, probabilities)

    broken.batch = batch
    before = set(threading.enumerate())
    with pytest.raises(OSError, match="the file system is gone"):
        tiny_lm.train(broken, tmp_path)
    # Orbax keeps threads of its own.
    assert not [thread for thread in new_threads(before) if "produce" in thread.name]


def test_random_rows_are_drawn_with_the_probabilities():
    shares = np.array([0.5, 0.3, 0.2, 0.0])
    drawn = np.zeros(4, np.int64)
    for step in range(500):
        draw = sequences.draw_mixed(drawn, 16, shares, [0, step])
        drawn = draw.drawn
    # 8000 rows: three standard deviations of a share are 0.017.
    np.testing.assert_allclose(drawn / drawn.sum(), shares, atol=0.017)

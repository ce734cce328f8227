"""The record of a run says when it has stopped, and whose losses were not finite."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import tiny

from ldro_jax import reporting, transform, weighting
from ldro_jax.experiments.compare import compare
from ldro_jax.experiments.runs import RunsStoppedError
from ldro_jax.records import results, tensorboard
from ldro_jax.records.checkpoints import Checkpoints
from ldro_jax.records.tensorboard import TensorBoardWriter
from ldro_jax.training import Batches, Method, recording
from ldro_jax.training.engine import Trial
from ldro_jax.training.step import TrainState
from ldro_jax.weighting import base

EVALUATION = results.summarise_evaluation(1, "test", "accuracy", tiny.NAMES, [0.5] * 3, True)


def start():
    params = jnp.zeros(2)
    tx = optax.chain(tiny.AVERAGE.transform(3), optax.sgd(0.1))
    return TrainState(jnp.int32(0), params, tx.init(params))


def begun(schedule, seed=0):
    return recording.Record(recording.empty_run(Trial(tiny.AVERAGE, seed), schedule))


def test_a_record_starts_with_what_tells_its_run_from_others():
    run = recording.empty_run(Trial(tiny.METHODS[3], 7), tiny.schedule(30))
    assert (run.method, run.seed, run.num_steps) == ("L-DRO", 7, 30)
    assert run.hyperparameters == tiny.METHODS[3].settings()


def test_what_was_observed_is_joined_to_a_path():
    record, schedule = begun(tiny.schedule()), tiny.schedule()
    for taken, observed in [(3, np.eye(3, 2)), (5, np.ones((2, 2)))]:
        record.extend(
            schedule,
            start()._replace(step=jnp.int32(taken)),
            task_names=tiny.NAMES,
            losses=jnp.zeros(3),
            evaluations=[dataclasses.replace(EVALUATION, step=taken)],
            seconds_per_step=0.1,
            observed=observed,
        )
    run = record.run
    assert run.path.steps.tolist() == [1, 2, 3, 4, 5]
    np.testing.assert_array_equal(run.path.values, [*np.eye(3, 2), *np.ones((2, 2))])


def test_the_share_that_is_signal_is_recorded_where_it_is_measured():
    record = begun(tiny.schedule())
    state = transform.weighted(weighting.signal(), 3).init(jnp.zeros(2))
    measured = {"squares": [1.0, -1, 3], "noise": [1.0, 1, 1], "total": [1.0, 1, 0]}
    inner = state.weighting._replace(**{name: jnp.array(x) for name, x in measured.items()})
    record.extend(
        tiny.schedule(),
        TrainState(jnp.int32(1), None, (state._replace(weighting=inner), optax.EmptyState())),
        task_names=tiny.NAMES,
        losses=jnp.zeros(3),
        evaluations=[EVALUATION],
        seconds_per_step=0.1,
    )
    run = record.run
    np.testing.assert_allclose(run.signal.values, [[0.5, 0, np.nan]])
    again = results.run_from_record(json.loads(json.dumps(results.run_to_record(run))))
    np.testing.assert_array_equal(again.signal.values, run.signal.values)
    assert begun(tiny.schedule()).run.signal is None


@pytest.mark.parametrize(
    ("train_steps", "streak", "stopped"),
    [
        (10, 1, None),
        (10, 2, "for the last 2 steps the loss of a task was not finite"),
        (1, 1, "for the last step the loss of a task was not finite"),
        # It may still recover.
        (20, 9, None),
    ],
)
def test_a_run_that_ends_without_finite_losses_has_stopped(train_steps, streak, stopped):
    record, _ = ended(train_steps, streak)
    assert record.stopped is None if stopped is None else stopped in record.stopped


def ended(train_steps, streak):
    """A record of ten steps, or fewer, whose last ones had no finite losses, and its state."""
    state, schedule = start(), tiny.schedule(train_steps)
    weighted = state.opt_state[0]._replace(
        nonfinite=jnp.array([0, streak, 0], jnp.int32), nonfinite_streak=jnp.int32(streak)
    )
    taken = min(train_steps, 10)
    state = state._replace(step=jnp.int32(taken), opt_state=(weighted, *state.opt_state[1:]))
    record = begun(schedule)
    record.extend(
        schedule,
        state,
        task_names=tiny.NAMES,
        losses=jnp.zeros(3),
        evaluations=[dataclasses.replace(EVALUATION, step=taken)],
        seconds_per_step=0.1,
    )
    return record, state


def test_what_had_stopped_at_its_end_may_recover_in_a_longer_run():
    record, state = ended(10, 2)
    for schedule, stopped in [
        (tiny.schedule(10), True),
        (tiny.schedule(20, max_nonfinite_steps=2), True),
        (tiny.schedule(20), False),
    ]:
        record.go_on(schedule, state)
        assert bool(record.stopped) == stopped and record.run.num_steps == schedule.train_steps
    # One of a group that stopped before the others did.
    record, state = ended(10, 2)
    record.go_on(tiny.schedule(20), state._replace(step=jnp.int32(12)))
    assert record.stopped


def test_a_task_that_broke_once_is_not_blamed_for_another():
    schedule = tiny.schedule(eval_interval=1, max_nonfinite_steps=3)
    names = [["middle"], [], ["left"], ["left"], ["left"]]
    counts = dict.fromkeys(tiny.NAMES, 0)
    state = start()
    record = begun(schedule)
    weighted = state.opt_state[0]
    streak = 0
    for taken, broken in enumerate(names, 1):
        counts |= {name: counts[name] + 1 for name in broken}
        streak = streak + 1 if broken else 0
        weighted = weighted._replace(
            nonfinite=jnp.array(list(counts.values()), jnp.int32),
            nonfinite_streak=jnp.int32(streak),
        )
        state = state._replace(step=jnp.int32(taken), opt_state=(weighted, *state.opt_state[1:]))
        evaluations = [dataclasses.replace(EVALUATION, step=taken)]
        record.extend(
            schedule,
            state,
            task_names=tiny.NAMES,
            losses=jnp.zeros(3),
            evaluations=evaluations,
            seconds_per_step=0.1,
        )
    run = record.run
    assert run.nonfinite_losses == {"middle": 1, "left": 3}
    assert "for the last 3 steps the loss of a task was not finite (left)." in run.stopped


def test_steps_that_a_solver_did_not_solve_are_counted_and_told(tmp_path, caplog):
    even = jnp.full(3, 1 / 3)
    # It fails in every second step.
    weighting = base.solving(lambda statistics: (even, statistics.count % 2 == 0))
    tx = optax.chain(
        transform.weighted(weighting, 3, interaction_interval=1), optax.sgd(jnp.float32(0.1))
    )
    params, schedule = jnp.zeros(2), tiny.schedule()
    state = tx.init(params)
    log = begun(schedule, seed=4)
    for taken in range(1, 6):
        _, state = tx.update(jnp.ones((3, 2)), state, params, losses=jnp.ones(3))
        caplog.clear()
        log.extend(
            schedule,
            TrainState(jnp.int32(taken), params, state),
            task_names=tiny.NAMES,
            losses=jnp.ones(3),
            evaluations=[dataclasses.replace(EVALUATION, step=taken)],
            seconds_per_step=0.1,
        )
        # Told where the count has grown.
        text = f"seed 4, step {taken}: the method found no weights in {taken // 2} steps"
        assert (text in caplog.text) == (taken % 2 == 0)
    run = log.run
    assert run.unsolved_steps == 2 and run.stopped is None
    record = results.Results("x", tiny.NAMES, "accuracy", True, [run])
    path = results.save_results(record, tmp_path / "results.json")
    assert results.load_results(path).runs[0].unsolved_steps == 2


def test_losses_below_zero_stop_a_method_that_needs_positive_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(reporting, "write_report", lambda *args, **options: None)
    # Distances less ten: the average loss doesn't mind.
    below = tiny.Distances(losses=lambda x: x - 10)
    methods = [tiny.AVERAGE, Method("1/l", "scale_invariant")]
    # The second time the directory is finished, and it is no better.
    for _ in range(2):
        with pytest.raises(RunsStoppedError, match="1/l"):
            compare(
                below,
                methods,
                (0,),
                optax.sgd(0.1),
                schedule=tiny.schedule(4, 2, 2),
                batches=Batches(2),
                output_dir=tmp_path / "out",
            )
    average, inverse = results.load_results(tmp_path / "out" / "results.json").runs
    assert average.stopped is None
    assert "stopped at step 2: the method has no meaning for losses below zero" in inverse.stopped
    assert "those of low, high were." in inverse.stopped


def test_logs_wait_for_the_disk_at_checkpoints_alone_and_before_them(tmp_path, monkeypatch):
    done = []

    def note(kind, name):
        original = getattr(kind, name)

        def noted(*arguments, **options):
            done.append(kind.__name__)
            return original(*arguments, **options)

        monkeypatch.setattr(kind, name, noted)

    monkeypatch.setattr(tensorboard, "_SECONDS_BETWEEN_FLUSHES", float("inf"))
    note(TensorBoardWriter, "flush")
    note(Checkpoints, "save")
    tiny.train(tiny.stacked(), tmp_path, tiny.schedule(40, 5, 20))
    assert done == ["TensorBoardWriter", "Checkpoints"] * 2


def test_a_record_that_is_taken_up_again_grows_as_if_it_had_not_been_put_down():
    schedule, records = tiny.schedule(), []
    for interrupted in (False, True):
        record = begun(schedule)
        for taken in range(1, 5):
            record.extend(
                schedule,
                start()._replace(step=jnp.int32(taken)),
                task_names=tiny.NAMES,
                losses=jnp.full(3, taken / 3),
                evaluations=[
                    dataclasses.replace(EVALUATION, step=taken, split=split)
                    for split in ("validation", "test")
                ],
                seconds_per_step=0.1,
                observed=np.full((1, 2), taken),
            )
            assert [(e.step, e.split) for e in record.latest] == [
                (taken, "validation"),
                (taken, "test"),
            ]
            if interrupted:
                saved = json.loads(json.dumps(results.run_to_record(record.run)))
                record = recording.Record(results.run_from_record(saved))
        records.append(results.run_to_record(record.run))
    assert records[0] == records[1]

"""One run: it learns, repeats itself, survives interruptions, and counts losses that are NaN."""

import copy
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from ldro_jax.records import results
from ldro_jax.tasks import sampling
from ldro_jax.training import records, step
from ldro_jax.training.program import Trial
from ldro_jax.training.schedule import Schedule, epochs

_PROGRAMS = {}
EVALUATION = results.summarise_evaluation(1, "test", "accuracy", tiny.NAMES, [0.5] * 3, True)


def program(method=tiny.AVERAGE, *, broken=0, **options):
    """Neither data nor schedule are part of what is compiled, so it is once for all tests here."""
    if method.name not in _PROGRAMS:
        _PROGRAMS[method.name] = tiny.program(method)
    found = copy.copy(_PROGRAMS[method.name])
    found.schedule = tiny.schedule(**options)
    found._splits = found._splits | {"train": tiny.data(broken=broken).train}
    return found


def everything(run):
    """All of a record but what the clock says."""
    return results.run_to_record(dataclasses.replace(run, seconds_per_step=None))


def same(run, other):
    assert everything(run) == everything(other)


@pytest.mark.parametrize("method", tiny.METHODS, ids=lambda method: method.name)
def test_every_method_learns_and_repeats_itself(method, tmp_path):
    first = tiny.train(program(method), tmp_path / "first")
    same(tiny.train(program(method), tmp_path / "second"), first)
    assert first.losses.values[-1].mean() < 0.85 * first.losses.values[0].mean()
    assert first.evaluations[-1].average > 0.8
    assert first.losses.steps.tolist() == [10, 20, 30, 40]
    assert first.seconds_per_step > 0
    np.testing.assert_allclose(first.weights.values.sum(axis=1), 1, rtol=1e-5)
    steps = [(e.step, e.split) for e in first.evaluations]
    assert steps == [(s, split) for s in (10, 20, 30, 40) for split in ("validation", "test")]


def test_all_methods_start_from_the_same_parameters_and_seeds_differ():
    starts = [program(method).init(3).params for method in tiny.METHODS]
    for other in starts[1:]:
        jax.tree.map(np.testing.assert_array_equal, starts[0], other)
    kernel = starts[0]["Dense_0"]["kernel"]
    assert not np.array_equal(kernel, program().init(4).params["Dense_0"]["kernel"])


def test_all_methods_see_the_same_batches(tmp_path):
    # Group DRO with rate 0 keeps uniform weights, so on the same batches it is the average loss.
    frozen = dataclasses.replace(tiny.GROUP_DRO, hyperparameters={"weight_lr": 0.0})
    run, average = (
        tiny.train(p, tmp_path / str(i)) for i, p in enumerate([tiny.program(frozen), program()])
    )
    np.testing.assert_allclose(run.losses.values, average.losses.values, rtol=1e-4)


@pytest.mark.parametrize("method", tiny.METHODS[1::2], ids=lambda method: method.name)
def test_an_interrupted_run_ends_as_if_nothing_had_happened(method, tmp_path):
    whole = tiny.train(program(method), tmp_path / "whole")
    for stop_after in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            tiny.train(
                program(method), tmp_path / "pieces", progress=tiny.Progress(stop_after=stop_after)
            )
    progress = tiny.Progress()
    run = tiny.train(program(method), tmp_path / "pieces", progress=progress)
    same(run, whole)
    # Interrupted before the checkpoint of step 10 and, from the start again, before that of 20.
    assert progress.lines == [f"{method.name}, seed 0: resumed at step 10."]
    assert progress.steps == [10, 10, 10, 10]


def test_a_damaged_checkpoint_costs_time_but_changes_nothing(tmp_path, caplog):
    whole = tiny.train(program(), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        tiny.train(program(), tmp_path / "pieces", progress=tiny.Progress(stop_after=3))
    for path in (tmp_path / "pieces" / "checkpoints" / "20").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    progress = tiny.Progress()
    run = tiny.train(program(), tmp_path / "pieces", progress=progress)
    assert "The checkpoint of step 20" in caplog.text
    assert progress.lines == ["Average, seed 0: resumed at step 10."]
    same(run, whole)


def test_a_run_that_was_killed_after_its_last_step_only_reports(tmp_path):
    whole = tiny.train(program(), tmp_path)
    progress = tiny.Progress()
    again = tiny.train(program(), tmp_path, progress=progress)
    assert results.run_to_record(again) == results.run_to_record(whole)
    assert again.seconds_per_step > 0 and progress.steps == [40]


def test_checkpoints_come_at_the_next_evaluation(tmp_path):
    tiny.train(program(checkpoint_interval=15), tmp_path)
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"20", "40"}


def test_a_last_stretch_that_is_shorter(tmp_path):
    run = tiny.train(program(train_steps=11), tmp_path)
    assert run.losses.steps.tolist() == [10, 11]


def test_the_progress_names_the_worst_task(tmp_path):
    progress = tiny.Progress()
    run = tiny.train(program(train_steps=10), tmp_path, progress=progress)
    found = next(e for e in run.evaluations if e.split == "validation")
    assert progress.texts == [
        f"average {found.average:.3f}, worst {found.worst:.3f} ({found.worst_task})"
    ]
    assert found.worst_task in tiny.NAMES


def test_a_nan_loss_in_one_batch_leaves_the_weights_and_is_counted(tmp_path, caplog):
    options = {"train_steps": 8, "eval_interval": 1, "checkpoint_interval": 8}
    run = tiny.train(program(tiny.GROUP_DRO, broken=1, **options), tmp_path)
    # Example 0 of "middle" is broken, and an epoch of its 32 examples is 4 batches of 8.
    key = jax.random.fold_in(jax.random.key(0), 1)
    drawn = sampling.balanced(key, 0, 8, np.array([40, 32, 40]), 24)
    bad = np.flatnonzero(((drawn.task == 1) & (drawn.index == 0)).any(axis=1))
    assert len(bad) == 2
    assert run.nonfinite_losses == {"middle": 2} and run.stopped is None
    weights = np.concatenate([np.full((1, 3), 1 / 3), run.weights.values])
    changed = (np.abs(np.diff(weights, axis=0)).max(axis=1) > 1e-6).tolist()
    assert changed == [i not in bad for i in range(8)]
    assert np.isfinite(run.losses.values).all()
    assert f"seed 0, step {bad[0] + 1}" in caplog.text and "middle 1" in caplog.text


def test_interactions_that_can_not_be_measured_are_counted_and_named(tmp_path, caplog):
    options = {"train_steps": 8, "eval_interval": 4, "checkpoint_interval": 8}
    run = tiny.train(program(tiny.METHODS[-1], broken=1, **options), tmp_path)
    # Of the same batches as above, in each of which A is measured.
    assert run.nonfinite_losses == run.unmeasured_interactions == {"middle": 2}
    assert "interactions that could not be measured so far" in caplog.text
    assert np.isfinite(run.interaction.values).all()


def test_a_task_that_never_recovers_stops_the_run_and_is_named(tmp_path, caplog):
    run = tiny.train(program(broken=32, max_nonfinite_steps=15), tmp_path)
    assert run.stopped.startswith("stopped at step 20: for the last 20 steps")
    assert "(middle)" in run.stopped and run.stopped in caplog.text
    assert run.losses.steps.tolist() == [10, 20]


def test_a_short_run_without_one_good_step_has_stopped(tmp_path):
    run = tiny.train(program(broken=32, train_steps=10), tmp_path)
    assert run.stopped.startswith("stopped at step 10") and run.nonfinite_losses == {"middle": 10}


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
    a_program = program(train_steps=train_steps)
    state = a_program.init(0)
    weighted = state.opt_state[0]._replace(
        nonfinite=jnp.array([0, streak, 0], jnp.int32), nonfinite_streak=jnp.int32(streak)
    )
    taken = min(train_steps, 10)
    run = records.extended(
        records.empty_run(Trial(a_program.method, 0), a_program.schedule),
        tiny.NAMES,
        a_program.schedule,
        state._replace(step=jnp.int32(taken), opt_state=(weighted, *state.opt_state[1:])),
        losses=jnp.zeros(3),
        evaluations=[dataclasses.replace(EVALUATION, step=taken)],
        seconds_per_step=0.1,
    )
    assert run.stopped is None if stopped is None else stopped in run.stopped


def test_a_task_that_broke_once_is_not_blamed_for_another():
    a_program = program(eval_interval=1, max_nonfinite_steps=3)
    names = [["middle"], [], ["left"], ["left"], ["left"]]
    counts = dict.fromkeys(tiny.NAMES, 0)
    state = a_program.init(0)
    run = records.empty_run(Trial(a_program.method, 0), a_program.schedule)
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
        run = records.extended(
            run,
            tiny.NAMES,
            a_program.schedule,
            state,
            losses=jnp.zeros(3),
            evaluations=evaluations,
            seconds_per_step=0.1,
        )
    assert run.nonfinite_losses == {"middle": 1, "left": 3}
    assert "for the last 3 steps the loss of a task was not finite (left)." in run.stopped


@pytest.mark.parametrize("value", [0, -1, 2.0, "3", True])
@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(Schedule)])
def test_schedules_are_positive_integers(field, value):
    with pytest.raises(
        ValueError, match=f"{field} must be a positive integer, but it is {value!r}"
    ):
        tiny.schedule(**{field: value})


def test_the_loss_is_the_cross_entropy():
    logits = np.array([[1.0, 2.0, -1.0], [0.0, 0.5, 0.5]], np.float32)
    batch = {"inputs": logits, "labels": np.array([1, 0])}
    found = step.example_losses(lambda params, inputs: inputs * params, jnp.float32(2.0), batch)
    p = np.exp(2 * logits) / np.exp(2 * logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found, -np.log([p[0, 1], p[1, 0]]), rtol=1e-5)


def test_a_schedule_in_epochs():
    assert epochs(3, 7) == Schedule(train_steps=21, eval_interval=7, checkpoint_interval=7)

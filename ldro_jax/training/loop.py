"""The training loop: steps, evaluation, checkpoints, a record of each run."""

import collections
import contextlib
import dataclasses
import math
import pathlib
import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import logging

from ldro_jax.problems.base import Problem
from ldro_jax.records import results, tensorboard
from ldro_jax.runtime import preemption, processes
from ldro_jax.training import recording
from ldro_jax.training.engine import Program, Session, Trial
from ldro_jax.training.progress import Best, Origin, Progress, Saved, identity, taken_from
from ldro_jax.training.schedule import Schedule
from ldro_jax.training.step import TrainState

# tqdm's own.
_SECONDS_BETWEEN_BARS = 0.1


def train(
    program: Program,
    trials: Sequence[Trial],
    schedule: Schedule,
    *,
    checkpoint_dir: pathlib.Path,
    tensorboard_dirs: Sequence[pathlib.Path],
    progress: Any,
    origin: Origin | None = None,
    tell: Sequence[recording.Tell] = (),
) -> list[results.Run]:
    """Trains runs together, from their newest good checkpoint if there is one.

    Args:
      program: what to train.
      trials: the R runs.
      schedule: lengths and intervals. Where the best checkpoint is to be tested, one is also saved
        at each evaluation that is the best so far.
      checkpoint_dir: where the checkpoints of these runs are.
      tensorboard_dirs: where the TensorBoard events of each run go.
      progress: a tqdm progress bar over the steps of all runs.
      origin: where their states are if they have no checkpoint of their own.
      tell: what to call with the numbers of each run after an evaluation, in the first process.

    Returns:
      The records of the runs. If the losses of one never became finite again, it says so in
      ``stopped``.

    Raises:
      PreemptedError: after SIGTERM or SIGHUP, when the state is saved.
      ValueError: if a method needs another program, several runs are to be tested at their best,
        or a checkpoint was made with other data, settings or programs.
    """
    for method, *_ in trials:
        if method.compile_key() != program.method.compile_key():
            raise ValueError(f"{method} can't be trained by the program of {program.method}.")
    if schedule.test == "best" and len(trials) > 1:
        raise ValueError("test='best' needs runs that are trained one at a time.")
    with contextlib.ExitStack() as stack:
        session = program.start(trials, schedule)
        saved = Saved(checkpoint_dir, identity(program, session, schedule, trials))
        stack.enter_context(contextlib.closing(saved.checkpoints))
        preempted = stack.enter_context(preemption.watch())
        now, is_new = _begun(program, session, saved, schedule, trials, origin)
        if not is_new:
            progress.write(f"{now.names}: resumed at step {session.step}.")
            progress.update(session.step * len(trials))
        folders = tensorboard_dirs if processes.is_first() else ()
        writers = [stack.enter_context(tensorboard.TensorBoardWriter(each)) for each in folders]
        log = [recording.Log(x, tell[i] if tell else None) for i, x in enumerate(writers)]
        for writer in writers:
            names = [metric.name for metric in program.problem.metrics]
            writer.write_layout(recording.charts(program.problem.splits, names))
        if is_new and schedule.eval_at_start:
            _evaluate_first(program, session, now, schedule, log)
        # The time of a step is that of the last stretches, so that it takes the same time to find.
        seconds = collections.deque(maxlen=100)
        last_saved, shown = session.step, -math.inf

        def save():
            nonlocal last_saved
            last_saved = session.step
            for writer in writers:
                # What isn't on disk when the checkpoint is, a resumed run won't write again.
                writer.flush()
            saved.save(session, now, now.best[0].step if schedule.test == "best" else None)

        def stop():
            if last_saved < session.step:
                save()
            raise preempted.error(f"{now.names}: stopped, saved at step {session.step}.")

        while session.step < schedule.train_steps and now.is_going:
            end = (session.step // schedule.eval_interval + 1) * schedule.eval_interval
            end = min(end, schedule.train_steps)
            time_per_step = session.advance(end, preempted, progress)
            if session.step < end:
                stop()
            seconds += [time_per_step] if math.isfinite(time_per_step) else []
            _evaluate(program, session, now, schedule, log, seconds)
            # To draw the bar takes longer than to evaluate a small model.
            is_old = time.monotonic() - shown > _SECONDS_BETWEEN_BARS
            progress.set_postfix_str(recording.progress_text(now.records[-1]), refresh=is_old)
            shown = time.monotonic() if is_old else shown
            improved = schedule.test == "best" and now.best[0].step == session.step
            if improved or session.step - last_saved >= schedule.checkpoint_interval:
                save()
            # Also what came in the last step or during the evaluation: the next run won't know.
            if preempted(session.step):
                stop()
        if last_saved < session.step:
            # For whoever wants the parameters, more steps, or another metric; and the records of a
            # group are written one after the other, and what is killed in between needs it.
            save()
        has_ended = all(record.stopped is not None for record in now.records)
        if schedule.test != "always" and "test" in program.problem.splits and not has_ended:
            tested = _test(program, session, schedule, now, saved, log)
            # Without the test in its record: the next run makes it again.
            if preempted(session.step):
                stop()
            return tested
    return now.runs


def _begun(
    program: Program,
    session: Session,
    saved: Saved,
    schedule: Schedule,
    trials: Sequence[Trial],
    origin: Origin | None,
) -> tuple[Progress, bool]:
    """How far the runs are, and whether they begin now."""
    restored = saved.restore(session, program.problem)
    if restored is None and origin is not None:
        restored = taken_from(origin, program, session, schedule)
    if restored is None:
        empty = (recording.empty_run(trial, schedule) for trial in trials)
        return Progress([recording.Record(run) for run in empty], [Best()] * len(trials)), True
    now, changed = restored
    now.go_on(schedule, session)
    if changed:
        _measure_again(program, session, now, schedule, changed)
    return now, False


def _evaluate(
    program: Program,
    session: Session,
    now: Progress,
    schedule: Schedule,
    log: Sequence[recording.Log],
    seconds: collections.deque[float],
) -> None:
    """Extends the records of the runs that go on, and ends those whose patience is at an end."""
    losses = session.evaluated()
    seconds_per_step = statistics.median(seconds) if seconds else math.nan
    for index, record in enumerate(now.records):
        if not record.is_going:
            continue
        state, is_last = session.state(index), False
        problem = session.problems[index]
        values = _measured(program, problem, state, schedule)
        if schedule.scores:
            score = problem.score(values["validation"])
            is_last = now.judge(index, score, session.step, schedule)
        record.extend(
            schedule,
            state,
            task_names=problem.task_names,
            losses=losses[index],
            evaluations=_of_splits(problem, session.step, values),
            seconds_per_step=seconds_per_step,
            observed=session.observed(index),
            is_last=is_last,
        )
        if not record.is_going:
            session.hold(index)
        if log:
            recording.write_scalars(log[index], record, problem.task_names)


def _evaluate_first(
    program: Program,
    session: Session,
    now: Progress,
    schedule: Schedule,
    log: Sequence[recording.Log],
) -> None:
    """Begins the records with what the parameters are worth before the first step."""
    for index, record in enumerate(now.records):
        problem = session.problems[index]
        values = _measured(program, problem, session.state(index), schedule)
        record.begin(_of_splits(problem, 0, values))
        if log:
            recording.write_scalars(log[index], record, problem.task_names)


def _measured(
    program: Program, problem: Problem, state: TrainState, schedule: Schedule
) -> dict[str, dict[str, np.ndarray]]:
    """The values of each metric, by split, of those that are measured all along."""
    splits = [s for s in problem.splits if s != "test" or schedule.test == "always"]
    params = state.evaluated
    return {split: program.evaluate(params, split, problem) for split in splits}


def _measure_again(
    program: Program,
    session: Session,
    now: Progress,
    schedule: Schedule,
    changed: Sequence[str],
) -> None:
    """Measures some metrics with the parameters there are, and forgets what they were before."""
    known = {metric.name for metric in program.problem.metrics} - set(changed)
    for index, run in enumerate(now.runs):
        kept = [e for e in run.evaluations if e.metric in known]
        if run.stopped is None:
            state, problem = session.state(index), session.problems[index]
            values = _measured(program, problem, state, schedule)
            measured = _of_splits(problem, int(state.step), values)
            kept += [e for e in measured if e.metric in changed]
        now.records[index] = recording.Record(dataclasses.replace(run, evaluations=kept))
    logging.warning(
        "%s: %s is measured otherwise than before, and known from step %d on.",
        *(now.names, ", ".join(changed), session.step),
    )


def _test(
    program: Program,
    session: Session,
    schedule: Schedule,
    now: Progress,
    saved: Saved,
    log: Sequence[recording.Log],
) -> list[results.Run]:
    """The records with the split "test", measured at the best checkpoint, or at the end."""
    best_step, best, runs = None, None, now.runs
    if schedule.test == "best":
        best = saved.checkpoints.restore_best(session.states)
        if best is None:
            logging.warning(
                "%s: no value on validation was finite, so the test is of the last step.", now.names
            )
        else:
            best_step = now.best[0].step
    for index, run in enumerate(now.runs):
        if run.stopped is None:
            state, problem = session.state(index, best), session.problems[index]
            step = int(state.step) if best_step is None else best_step
            values = program.evaluate(state.evaluated, "test", problem)
            tested = _evaluations(problem, step, "test", values)
            runs[index] = dataclasses.replace(run, evaluations=[*run.evaluations, *tested])
            if log:
                recording.write_tested(log[index], tested)
    return runs


def _of_splits(problem: Problem, step: int, values) -> list[results.Evaluation]:
    return [e for split in values for e in _evaluations(problem, step, split, values[split])]


def _evaluations(problem: Problem, step: int, split: str, values) -> list[results.Evaluation]:
    return [
        results.summarise_evaluation(
            step=step,
            split=split,
            metric=metric.name,
            task_names=problem.measured,
            values=values[metric.name],
            higher_is_better=metric.direction(problem.measured),
        )
        for metric in problem.metrics
    ]

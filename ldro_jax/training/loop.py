"""The training loop: steps, evaluation, checkpoints, a record of each run."""

import contextlib
import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from ldro_jax import paths, preemption, processes
from ldro_jax.records import checkpoints, results, tensorboard
from ldro_jax.training import fingerprint, recording
from ldro_jax.training.engine import Program, Session, Trial
from ldro_jax.training.schedule import Schedule

# Where the states of sources are kept, beside the checkpoints.
_SOURCE = "stream"


def train(
    program: Program,
    trials: Sequence[Trial],
    schedule: Schedule,
    *,
    checkpoint_dir: pathlib.Path,
    tensorboard_dirs: Sequence[pathlib.Path],
    progress: Any,
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

    Returns:
      The records of the runs. If the losses of one never became finite again, it says so in
      ``stopped``.

    Raises:
      PreemptedError: after SIGTERM, when the state is saved.
      ValueError: if a method needs another program, several runs are to be tested at their best,
        or a checkpoint was made with other data, settings or programs.
    """
    for method, _ in trials:
        if method.compile_key() != program.method.compile_key():
            raise ValueError(f"{method} can't be trained by the program of {program.method}.")
    if schedule.test == "best" and len(trials) > 1:
        raise ValueError("test='best' needs runs that are trained one at a time.")
    with contextlib.ExitStack() as stack:
        session = program.start(trials)
        saved = _Saved(checkpoint_dir, _identity(program, session, schedule, trials))
        stack.enter_context(contextlib.closing(saved.checkpoints))
        preempted = stack.enter_context(preemption.watch())
        restored = saved.restore(session)
        now, changed = restored or (None, [])
        if now is None:
            now = _Progress([recording.empty_run(trial, schedule) for trial in trials])
        else:
            progress.write(f"{now.names}: resumed at step {session.step}.")
            progress.update(session.step * len(trials))
            now.go_on(schedule)
            if changed:
                _measure_again(program, session, now, schedule, changed)
        folders = tensorboard_dirs if processes.is_first() else ()
        log = [stack.enter_context(tensorboard.TensorBoardWriter(folder)) for folder in folders]
        last_saved, seconds = session.step, []

        def save():
            nonlocal last_saved
            last_saved = session.step
            saved.save(session, now)

        def stop():
            if last_saved < session.step:
                save()
            raise preemption.PreemptedError(f"{now.names}: stopped, saved at step {session.step}.")

        while session.step < schedule.train_steps and now.is_going:
            end = (session.step // schedule.eval_interval + 1) * schedule.eval_interval
            end = min(end, schedule.train_steps)
            time_per_step = session.advance(end, preempted, progress)
            if session.step < end:
                stop()
            seconds += [time_per_step] if math.isfinite(time_per_step) else []
            values = _evaluate(program, session, now, schedule, log, seconds)
            progress.set_postfix_str(recording.progress_text(now.runs[-1]))
            improved = schedule.test == "best" and now.improves(
                program.problem.score(values["validation"]), session.step
            )
            due = session.step - last_saved >= schedule.checkpoint_interval
            if improved or due:
                save()
            # Also what came in the last step or during the evaluation: the next run won't know.
            if preempted(session.step):
                stop()
        if last_saved < session.step:
            # For whoever wants the parameters, more steps, or another metric.
            save()
        if schedule.test != "always" and "test" in program.problem.splits and now.is_going:
            tested = _test(program, session, schedule, now, saved)
            # Without the test in its record: the next run makes it again.
            if preempted(session.step):
                stop()
            return tested
    return now.runs


@dataclasses.dataclass
class _Progress:
    """What runs are besides their training states.

    Attributes:
      runs: their records.
      best_score: on validation, so far.
      best_step: where that was.
    """

    runs: list[results.Run]
    best_score: float = -math.inf
    best_step: int | None = None

    @property
    def names(self) -> str:
        return ", ".join(f"{run.method}, seed {run.seed}" for run in self.runs)

    @property
    def is_going(self) -> bool:
        return any(run.stopped is None for run in self.runs)

    def improves(self, score: float, step: int) -> bool:
        """Whether a score is the best so far; notes it."""
        if not score > self.best_score:
            return False
        self.best_score, self.best_step = score, step
        return True

    def go_on(self, schedule: Schedule) -> None:
        """Takes the length of the runs from a schedule, which may be longer than it was."""
        self.runs = [dataclasses.replace(r, num_steps=schedule.train_steps) for r in self.runs]

    def record(self) -> dict[str, Any]:
        return {
            "runs": [results.run_to_record(run) for run in self.runs],
            "best_score": self.best_score if math.isfinite(self.best_score) else None,
            "best_step": self.best_step,
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "_Progress":
        score = record["best_score"]
        return cls(
            [results.run_from_record(run) for run in record["runs"]],
            -math.inf if score is None else score,
            record["best_step"],
        )


class _Saved:
    """The checkpoints of some runs, and the states of their source beside them."""

    def __init__(self, directory: pathlib.Path, identity: Mapping[str, Any]):
        self.checkpoints = checkpoints.Checkpoints(directory, identity=identity)
        self._places = directory / _SOURCE

    def save(self, session: Session, now: _Progress) -> None:
        place = self._places / str(session.step)
        if session.source is not None:
            # Before the checkpoint of the same step, which can't do without.
            if processes.is_first():
                if place.exists():
                    paths.remove_tree(place)
                place.mkdir(parents=True, exist_ok=True)
            processes.wait_for_all("stream")
            session.source.save(place)
            processes.wait_for_all("stream saved")
        record = {**now.record(), "session": session.record()}
        self.checkpoints.save(session.step, session.states, record, best=now.best_step)
        if session.source is not None and processes.is_first():
            kept = {str(step) for step in (*self.checkpoints.steps, session.step)}
            for place in self._places.glob("*"):
                if place.name not in kept:
                    paths.remove_tree(place)

    def restore(self, session: Session) -> tuple[_Progress, list[str]] | None:
        """How far the runs are, and the metrics that are measured otherwise now."""

        def restore_source(step):
            source = session.renew_source()
            if source is not None:
                source.restore(self._places / str(step))

        restored = self.checkpoints.restore(session.states, restore_source)
        if restored is None:
            session.renew_source()
            return None
        states, record, changed = restored
        session.load(states, record["session"])
        return _Progress.from_record(record), changed


def _identity(
    program: Program, session: Session, schedule: Schedule, trials: Sequence[Trial]
) -> dict[str, Any]:
    """What a checkpoint of these runs must have been made with."""
    found = fingerprint.of(program, schedule, trials)
    return {**found, "data": {**found["data"], **session.identity}}


def _evaluate(
    program: Program,
    session: Session,
    now: _Progress,
    schedule: Schedule,
    log: Sequence[Any],
    seconds: Sequence[float],
) -> dict[str, dict[str, np.ndarray]]:
    """Extends the records of the runs that go on; the values of the last one, by split."""
    problem = program.problem
    splits = [s for s in problem.splits if s != "test" or schedule.test == "always"]
    losses, values = session.evaluated(), {}
    for index, run in enumerate(now.runs):
        if run.stopped is not None:
            continue
        state = session.state(index)
        values = {split: program.evaluate(state.params, split) for split in splits}
        now.runs[index] = recording.extended(
            run,
            problem.task_names,
            schedule,
            state,
            losses=losses[index],
            evaluations=[
                evaluation
                for split in splits
                for evaluation in _evaluations(program, session.step, split, values[split])
            ],
            seconds_per_step=float(np.median(seconds)) if seconds else math.nan,
            observed=session.observed(index),
        )
        if log:
            recording.write_scalars(log[index], now.runs[index])
    return values


def _measure_again(
    program: Program,
    session: Session,
    now: _Progress,
    schedule: Schedule,
    changed: Sequence[str],
) -> None:
    """Measures some metrics with the parameters there are, and forgets what they were before."""
    problem = program.problem
    known = {metric.name for metric in problem.metrics} - set(changed)
    for index, run in enumerate(now.runs):
        kept = [e for e in run.evaluations if e.metric in known]
        params = session.state(index).params
        for split in problem.splits if run.stopped is None else ():
            if split == "test" and schedule.test != "always":
                continue
            values = program.evaluate(params, split)
            measured = _evaluations(program, session.step, split, values)
            kept += [e for e in measured if e.metric in changed]
        now.runs[index] = dataclasses.replace(run, evaluations=kept)
    logging.warning(
        "%s: %s is measured otherwise than before, and known from step %d on.",
        *(now.names, ", ".join(changed), session.step),
    )


def _test(
    program: Program, session: Session, schedule: Schedule, now: _Progress, saved: _Saved
) -> list[results.Run]:
    """The records with the split "test", measured at the best checkpoint, or at the end."""
    step, best, runs = session.step, None, list(now.runs)
    if schedule.test == "best":
        best = saved.checkpoints.restore_best(session.states)
        if best is None:
            logging.warning(
                "%s: no value on validation was finite, so the test is of the last step.", now.names
            )
        elif now.best_step is not None:
            step = now.best_step
    for index, run in enumerate(now.runs):
        if run.stopped is None:
            params = session.state(index, best).params
            values = program.evaluate(params, "test")
            tested = _evaluations(program, step, "test", values)
            runs[index] = dataclasses.replace(run, evaluations=[*run.evaluations, *tested])
    return runs


def _evaluations(program: Program, step: int, split: str, values) -> list[results.Evaluation]:
    return [
        results.summarise_evaluation(
            step=step,
            split=split,
            metric=metric.name,
            task_names=program.problem.task_names,
            values=values[metric.name],
            higher_is_better=metric.higher_is_better,
        )
        for metric in program.problem.metrics
    ]

"""The training loop: steps, evaluation, checkpoints, a record of each run."""

import collections
import contextlib
import dataclasses
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging

from ldro_jax import errors, paths, preemption, processes
from ldro_jax.records import checkpoints, files, results, tensorboard
from ldro_jax.tasks.source import Source
from ldro_jax.training import recording
from ldro_jax.training.engine import Program, Session, Trial
from ldro_jax.training.schedule import Schedule

# Where the states of sources are kept, beside the checkpoints.
_SOURCE = "stream"
# The classes of sources that were saved and restored before.
_TRIED: set[type] = set()


class Origin(NamedTuple):
    """Checkpoints of more runs, which some of them can go on from.

    Attributes:
      directory: where they are.
      trials: all runs that they hold.
      chosen: where among these are those that go on.
    """

    directory: pathlib.Path
    trials: Sequence[Trial]
    chosen: Sequence[int]


def train(
    program: Program,
    trials: Sequence[Trial],
    schedule: Schedule,
    *,
    checkpoint_dir: pathlib.Path,
    tensorboard_dirs: Sequence[pathlib.Path],
    progress: Any,
    origin: Origin | None = None,
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

    Returns:
      The records of the runs. If the losses of one never became finite again, it says so in
      ``stopped``.

    Raises:
      PreemptedError: after SIGTERM or SIGHUP, when the state is saved.
      ValueError: if a method needs another program, several runs are to be tested at their best,
        or a checkpoint was made with other data or another model.
    """
    for method, _ in trials:
        if method.compile_key() != program.method.compile_key():
            raise ValueError(f"{method} can't be trained by the program of {program.method}.")
    if schedule.test == "best" and len(trials) > 1:
        raise ValueError("test='best' needs runs that are trained one at a time.")
    with contextlib.ExitStack() as stack:
        session = program.start(trials, schedule)
        saved = _Saved(checkpoint_dir, _identity(program, session, schedule, trials))
        stack.enter_context(contextlib.closing(saved.checkpoints))
        preempted = stack.enter_context(preemption.watch())
        now = saved.restore(session)
        if now is None and origin is not None:
            now = _taken_from(origin, program, session, schedule)
        if now is None:
            empty = (recording.empty_run(trial, schedule) for trial in trials)
            now = _Progress([recording.Record(run) for run in empty])
        else:
            progress.write(f"{now.names}: resumed at step {session.step}.")
            progress.update(session.step * len(trials))
        folders = tensorboard_dirs if processes.is_first() else ()
        log = [stack.enter_context(tensorboard.TensorBoardWriter(folder)) for folder in folders]
        # The time of a step is that of the last stretches, so that it takes the same time to find.
        last_saved, seconds = session.step, collections.deque(maxlen=1000)

        def save():
            nonlocal last_saved
            last_saved = session.step
            for writer in log:
                # What isn't on disk when the checkpoint is, a resumed run won't write again.
                writer.flush()
            saved.save(session, now)

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
            values = _evaluate(program, session, now, schedule, log, seconds)
            progress.set_postfix_str(recording.progress_text(now.records[-1]))
            improved = schedule.test == "best" and now.improves(
                program.problem.score(values["validation"]), session.step
            )
            due = session.step - last_saved >= schedule.checkpoint_interval
            if improved or due:
                save()
            # Also what came in the last step or during the evaluation: the next run won't know.
            if preempted(session.step):
                stop()
        # Their records are written one after the other, and what is killed in between needs it.
        if len(trials) > 1 and last_saved < session.step:
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
      records: of each run.
      best_score: on validation, so far.
      best_step: where that was.
    """

    records: list[recording.Record]
    best_score: float = -math.inf
    best_step: int | None = None

    @property
    def names(self) -> str:
        return ", ".join(record.label for record in self.records)

    @property
    def runs(self) -> list[results.Run]:
        return [record.run for record in self.records]

    @property
    def is_going(self) -> bool:
        return any(record.stopped is None for record in self.records)

    def improves(self, score: float, step: int) -> bool:
        """Whether a score is the best so far; notes it."""
        if not score > self.best_score:
            return False
        self.best_score, self.best_step = score, step
        return True

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
            [recording.Record(results.run_from_record(run)) for run in record["runs"]],
            -math.inf if score is None else score,
            record["best_step"],
        )


class _Saved:
    """The checkpoints of some runs, and the states of their source beside them."""

    def __init__(self, directory: pathlib.Path, identity: Mapping[str, Any]):
        self.checkpoints = checkpoints.Checkpoints(directory, identity=identity)
        self._places = directory / _SOURCE

    def save(self, session: Session, now: _Progress) -> None:
        record = {**now.record(), "session": session.record()}
        if session.source is not None:
            # Before the checkpoint of the same step, which can't do without.
            place = self._save_source(session.source, str(session.step))
            record["source"] = files.digests(place) if processes.is_first() else {}
        self.checkpoints.save(session.step, session.states, record, best=now.best_step)
        if session.source is not None and processes.is_first():
            kept = {str(step) for step in (*self.checkpoints.steps, session.step)}
            for place in self._places.glob("*"):
                if place.name not in kept:
                    paths.remove_tree(place)

    def _save_source(self, source: Source, name: str) -> pathlib.Path:
        place = self._places / name
        if processes.is_first():
            if place.exists():
                paths.remove_tree(place)
            place.mkdir(parents=True, exist_ok=True)
        processes.wait_for_all("stream")
        source.save(place)
        processes.wait_for_all("stream saved")
        return place

    def restore(self, session: Session) -> _Progress | None:
        def restore_source(step, record):
            source, place = session.renew_source(), self._places / str(step)
            if source is None:
                return
            written = record.get("source")
            # Version 0.1.0 wrote none.
            if written and processes.is_first() and files.digests(place) != written:
                raise ValueError(f"{place} is not what was saved")
            try:
                source.restore(place)
            except Exception as error:
                if not written:
                    raise
                raise checkpoints.RefusedError(
                    f"The source {type(source).__name__} can't go on from {place}, which is as it "
                    f"was saved ({errors.first_line(error)}). Give the run the source it began "
                    "with, or begin a new one."
                ) from error

        restored = self.checkpoints.restore(session.states, restore_source)
        if restored is None:
            if (source := session.renew_source()) is not None:
                self._try_source(session, source)
            return None
        states, record = restored
        session.load(states, record["session"])
        return _Progress.from_record(record)

    def _try_source(self, session: Session, source: Source) -> None:
        """Raises ``ValueError`` for a source that no run could go on with, before any training."""
        if type(source) in _TRIED:
            return
        try:
            place = self._save_source(source, "0")
            again = session.renew_source()
            assert again is not None
            again.restore(place)
        except Exception as error:
            raise ValueError(
                f"The source {type(source).__name__} has a state, but it can't be saved and "
                f"restored ({type(error).__name__}: {errors.first_line(error)}), so no run could "
                "go on after an interruption. Mend its save and restore; where rows depend on "
                "nothing but their numbers, has_state is False and neither is needed."
            ) from error
        _TRIED.add(type(source))
        session.renew_source()
        processes.wait_for_all("stream tried")
        if processes.is_first():
            paths.remove_tree(place)


def _identity(
    program: Program, session: Session, schedule: Schedule, trials: Sequence[Trial]
) -> dict[str, Any]:
    """What a checkpoint of these runs must have been made with."""
    del schedule, trials
    return {**program.problem.identity, **session.identity}


def _taken_from(
    origin: Origin, program: Program, session: Session, schedule: Schedule
) -> _Progress | None:
    """Loads the states of some runs out of the newest good checkpoint of more."""
    identity = _identity(program, session, schedule, origin.trials)
    # Held on the host, since all of them may be too many for the device.
    like = jax.tree.map(
        lambda x: np.zeros((len(origin.trials), *x.shape[1:]), x.dtype), session.states
    )
    with contextlib.closing(checkpoints.Checkpoints(origin.directory, identity=identity)) as found:
        restored = found.restore(like)
    if restored is None:
        return None
    states, record = restored
    session.load_some(states, record["session"], origin.chosen)
    now = _Progress.from_record(record)
    return _Progress([now.records[index] for index in origin.chosen])


def _evaluate(
    program: Program,
    session: Session,
    now: _Progress,
    schedule: Schedule,
    log: Sequence[Any],
    seconds: collections.deque[float],
) -> dict[str, dict[str, np.ndarray]]:
    """Extends the records of the runs that go on; the values of the last one, by split."""
    problem = program.problem
    splits = [s for s in problem.splits if s != "test" or schedule.test == "always"]
    losses, values = session.evaluated(), {}
    seconds_per_step = float(np.median(seconds)) if seconds else math.nan
    for index, record in enumerate(now.records):
        if record.stopped is not None:
            continue
        state = session.state(index)
        values = {split: program.evaluate(state.params, split) for split in splits}
        record.extend(
            problem.task_names,
            schedule,
            state,
            losses=losses[index],
            evaluations=[
                evaluation
                for split in splits
                for evaluation in _evaluations(program, session.step, split, values[split])
            ],
            seconds_per_step=seconds_per_step,
            observed=session.observed(index),
        )
        if log:
            recording.write_scalars(log[index], record)
    return values


def _test(
    program: Program, session: Session, schedule: Schedule, now: _Progress, saved: _Saved
) -> list[results.Run]:
    """The records with the split "test", measured at the best checkpoint, or at the end."""
    step, best, runs = session.step, None, now.runs
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

"""The records of runs so far, and how they are saved and restored with the training states."""

import contextlib
import dataclasses
import math
import pathlib
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ldro_jax.problems.base import Problem
from ldro_jax.records import checkpoints, files, results
from ldro_jax.runtime import errors, paths, processes
from ldro_jax.tasks.source import Source
from ldro_jax.training import fingerprint, recording
from ldro_jax.training.engine import Program, Session, Trial
from ldro_jax.training.schedule import Schedule

# Where the states of sources are kept, beside the checkpoints.
_SOURCE = "stream"
# The problems whose sources were saved and restored before, by their ids: not all can be hashed.
_TRIED: weakref.WeakValueDictionary[int, Problem] = weakref.WeakValueDictionary()


class Origin(NamedTuple):
    """Checkpoints of a larger group of runs, from which some of them go on.

    Attributes:
      directory: where the checkpoints are.
      runs: the fingerprints of all runs of the group.
      chosen: the places in ``runs`` of those that go on.
    """

    directory: pathlib.Path
    runs: Sequence[Mapping[str, Any]]
    chosen: Sequence[int]


class Best(NamedTuple):
    """The best that a run has come to.

    Attributes:
      score: on validation, the higher the better.
      step: the step that had it; ``None`` if no score was finite.
      since: number of evaluations after it.
    """

    score: float = -math.inf
    step: int | None = None
    since: int = 0

    def including(self, score: float, step: int) -> "Best":
        """With one more evaluation."""
        if math.isfinite(score) and score > self.score:
            return Best(score, step)
        return self._replace(since=self.since + 1)


@dataclasses.dataclass
class Progress:
    """The records of runs that are being trained together.

    Attributes:
      records: one for each run.
      best: of each run; known where the schedule needs it.
    """

    records: list[recording.Record]
    best: list[Best]

    @property
    def names(self) -> str:
        """The methods and seeds."""
        return ", ".join(record.label for record in self.records)

    @property
    def runs(self) -> list[results.Run]:
        """The records so far."""
        return [record.run for record in self.records]

    @property
    def is_going(self) -> bool:
        """Whether at least one run hasn't ended early."""
        return any(record.is_going for record in self.records)

    def judge(self, index: int, score: float, step: int, schedule: Schedule) -> bool:
        """Notes the score of a run. Returns whether its patience is at an end."""
        self.best[index] = self.best[index].including(score, step)
        return schedule.patience is not None and self.best[index].since >= schedule.patience

    def go_on(self, schedule: Schedule, session: Session) -> None:
        """Takes the length of the runs from a schedule, which may be longer than it was."""
        for index, record in enumerate(self.records):
            record.go_on(schedule, session.state(index))
            if not record.is_going:
                session.hold(index)

    def record(self) -> dict[str, Any]:
        """What a checkpoint keeps, as JSON can hold it."""
        return {
            "runs": [results.run_to_record(run) for run in self.runs],
            "best": [[s if math.isfinite(s) else None, *rest] for s, *rest in self.best],
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Progress":
        """Restores what :meth:`record` gave."""
        runs = [recording.Record(results.run_from_record(run)) for run in record["runs"]]
        if "best" not in record:  # as it was kept before runs could end early
            record = {"best": [(record["best_score"], record["best_step"], 0)] * len(runs)}
        best = [Best(-math.inf if s is None else s, *rest) for s, *rest in record["best"]]
        return cls(runs, best)


class Saved:
    """The checkpoints of some runs, and the states of their source beside them."""

    def __init__(self, directory: pathlib.Path, identity: Mapping[str, Any]) -> None:
        self.checkpoints: checkpoints.Checkpoints = checkpoints.Checkpoints(
            directory, identity=identity
        )
        self._places = directory / _SOURCE

    def save(self, session: Session, now: Progress, best: int | None = None) -> None:
        """Saves the training states, the state of the source, and the records.

        Of the step ``best`` a checkpoint is kept.
        """
        record = {**now.record(), "session": session.record()}
        if session.source is not None:
            # Before the checkpoint of the same step, which can't do without.
            place = self._save_source(session.source, str(session.step))
            record["source"] = files.digests(place) if processes.is_first() else {}
        self.checkpoints.save(session.step, session.states, record, best=best)
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

    def restore(self, session: Session, problem: Problem) -> tuple[Progress, list[str]] | None:
        """Restores the newest good checkpoint.

        Returns the progress and the names of metrics that are measured otherwise now; ``None`` if
        there is no checkpoint.
        """

        def restore_source(step, record):
            source, place = session.renew_source(), self._places / str(step)
            if source is None:
                return
            if processes.is_first() and files.digests(place) != record["source"]:
                raise ValueError(f"{place} is not what was saved")
            try:
                source.restore(place)
            except Exception as error:
                raise checkpoints.RefusedError(
                    f"The source {type(source).__name__} can't go on from {place}, which is as it "
                    f"was saved ({errors.first_line(error)}). Give the run the source it began "
                    "with, or begin a new one."
                ) from error

        restored = self.checkpoints.restore(session.states, restore_source)
        if restored is None:
            if (source := session.renew_source()) is not None:
                self._try_source(session, problem, source)
            return None
        states, record, changed = restored
        session.load(states, record["session"])
        return Progress.from_record(record), changed

    def _try_source(self, session: Session, problem: Problem, source: Source) -> None:
        """Raises ``ValueError`` for a source that no run could go on with, before any training."""
        if _TRIED.get(id(problem)) is problem:
            return
        numbers = np.arange(problem.num_tables, dtype=np.int32)
        try:
            # Before the first row many a source has no state yet.
            source.rows(numbers, np.zeros(len(numbers), np.int64))
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
        _TRIED[id(problem)] = problem
        session.renew_source()
        processes.wait_for_all("stream tried")
        if processes.is_first():
            paths.remove_tree(place)


def identity(
    program: Program, session: Session, schedule: Schedule, trials: Sequence[Trial]
) -> dict[str, Any]:
    """What a checkpoint of these runs must have been made with."""
    return {**fingerprint.of(program, schedule, trials), "source": dict(session.identity)}


def taken_from(
    origin: Origin, program: Program, session: Session, schedule: Schedule
) -> tuple[Progress, list[str]] | None:
    """As :meth:`Saved.restore`, for some runs out of the newest good checkpoint of more."""
    known_by = {**identity(program, session, schedule, []), "runs": list(origin.runs)}
    # Held on the host, since all of them may be too many for the device.
    like = jax.tree.map(
        lambda x: np.zeros((len(origin.runs), *x.shape[1:]), x.dtype), session.states
    )
    with contextlib.closing(checkpoints.Checkpoints(origin.directory, identity=known_by)) as found:
        restored = found.restore(like)
    if restored is None:
        return None
    states, record, changed = restored
    session.load_some(states, record["session"], origin.chosen)
    now = Progress.from_record(record)
    chosen = Progress([now.records[i] for i in origin.chosen], [now.best[i] for i in origin.chosen])
    return chosen, changed

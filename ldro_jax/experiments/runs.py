"""The runs of an experiment: listed and checked before anything is written, and trained."""

import collections
import dataclasses
import pathlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import jax
import tqdm
from absl import logging

from ldro_jax import weighting
from ldro_jax.experiments import finished as finished_lib
from ldro_jax.experiments import groups, names
from ldro_jax.records import results
from ldro_jax.runtime import checks, errors, printing, processes
from ldro_jax.training import loop, recording
from ldro_jax.training.engine import Program, Trial
from ldro_jax.training.method import Method
from ldro_jax.training.schedule import Schedule
from ldro_jax.training.stacked import StackedProgram

# Programs are made with it first, so that errors of a model or of batches are no method's.
AVERAGE = Method("Average", "average")


class RunsStoppedError(RuntimeError):
    """Some runs of an experiment ended before their last step."""


def require_complete(record: results.Results) -> None:
    """Raises ``RunsStoppedError`` if a run of a record ended before its last step.

    Args:
      record: of an experiment.

    Raises:
      RunsStoppedError: naming all of them.
    """
    stopped = [f"{r.method}, seed {r.seed}: {r.stopped}" for r in record.runs if r.stopped]
    if stopped:
        raise RunsStoppedError("Some runs ended early.\n" + "\n".join(stopped))


def list_runs(
    methods: Sequence[Method | Sequence[Method]],
    seeds: Sequence[int],
    *,
    from_data: Collection[str] = (),
) -> tuple[list[Method], dict[str, Trial]]:
    """The runs of an experiment, each with a name for its files.

    Args:
      methods: what to compare; a sequence among them (a grid) counts as its elements.
      seeds: a run for each.
      from_data: hyperparameters that the experiment gives the methods that need them.

    Returns:
      All methods, and the runs by name.

    Raises:
      ValueError: if there is nothing to run, something else than a method, a method that lacks a
        hyperparameter, or two runs would have the same name.
    """
    seeds = checks.seeds("seeds", seeds)
    listed = "methods and grids, such as [@average/Method(), @ldro/grid()]"
    checks.sequence("methods", methods, listed)
    settings: list[Method] = []
    entries: Any = methods
    for entry in entries:
        for method in entry if isinstance(entry, (list, tuple)) else [entry]:
            checks.require(isinstance(method, Method), "methods", f"a list of {listed}", entry)
            lacking = weighting.lacking(method.weighting, method.hyperparameters)
            if lacking := [name for name in lacking if name not in from_data]:
                raise ValueError(
                    f"methods: {method.name!r} lacks {', '.join(lacking)} in its hyperparameters, "
                    f"{dict(method.hyperparameters)}."
                )
            settings.append(method)
    checks.sequence("methods", settings, listed)
    times = collections.Counter(method.name for method in settings)
    runs_of = {
        names.run_label(method, seed, several=times[method.name] > 1): Trial(method, seed)
        for seed in seeds
        for method in settings
    }
    if len(runs_of) < len(settings) * len(seeds):
        raise ValueError(
            "methods must each have their own name or setting, since the runs are named by them, "
            f"but they are {[m.name for m in settings]}."
        )
    return settings, dict(zip(names.file_names(runs_of), runs_of.values(), strict=True))


def programs_of(settings: Iterable[Method], first: Program) -> dict[tuple[Any, ...], Program]:
    """The programs that some methods need, each traced, so that what doesn't fit is found at once.

    Args:
      settings: the methods.
      first: a program of any method for the same model and data.

    Returns:
      Programs by :meth:`Method.compile_key`.

    Raises:
      ValueError: if a method can't be trained on this data.
    """
    first.check()
    programs = {}
    for method in settings:
        if (key := method.compile_key()) not in programs:
            try:
                programs[key] = first.engine.program(method)
                programs[key].check()
            except Exception as error:
                said = errors.reason(error)
                raise ValueError(f"methods: {method.name!r} can't be trained. {said}") from error
    return programs


def train_all(
    trials: Mapping[str, tuple[Trial, Trial]],
    first: Program,
    schedule: Schedule,
    output_dir: pathlib.Path,
    record: Callable[[Sequence[results.Run]], results.Results],
    *,
    programs: dict[tuple[Any, ...], Program],
    together: int = 1,
    label: str | None = None,
    accepted: Callable[[], None] | None = None,
) -> list[results.Run]:
    """Trains all runs of an experiment that an earlier start hasn't finished.

    What is there of these runs is compared with what they are now before anything is trained.

    Args:
      trials: by name, each run as it is recorded, and with what only the data can tell.
      first: a program of any method.
      schedule: lengths and intervals.
      output_dir: where their records and checkpoints are.
      record: makes the record of some runs.
      programs: those that are made already, by :meth:`Method.compile_key`.
      together: how many runs to train at a time.
      label: for the progress bar; by default how many runs are finished.
      accepted: called when nothing that is there is refused, and before anything is trained.

    Returns:
      The runs, in the order of their names.

    Raises:
      OtherRunError: if a record or a checkpoint was made with something else.
    """
    files = {name: output_dir / "runs" / f"{name}.json" for name in trials}
    for _, trial in trials.values():
        if (key := trial.method.compile_key()) not in programs:
            programs[key] = first.engine.program(trial.method)
    program_of = {n: programs[t.method.compile_key()] for n, (_, t) in trials.items()}
    finished, identities = finished_lib.take(trials, program_of, schedule, output_dir, accepted)
    left = {name: trial for name, (_, trial) in trials.items() if name not in finished}
    waiting = groups.split(left, together, output_dir / "checkpoints")
    while waiting:
        group = waiting.popleft()
        key = next(iter(group.values())).method.compile_key()
        done = label or f"{len(finished)}/{len(trials)}"
        try:
            runs = _train(group, programs[key], schedule, output_dir, done)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error) or len(group) == 1:
                raise
            half = len(group) // 2
            logging.warning(
                "%d runs at a time don't fit into memory, so it goes on with %d.",
                len(group),
                len(group) - half,
            )
            members = list(group)
            for part in (members[half:], members[:half]):
                waiting.appendleft({n: group[n] for n in part})
            continue
        for name, run in zip(group, runs, strict=True):
            settings = trials[name][0].method.settings()
            finished[name] = dataclasses.replace(run, hyperparameters=settings)
            if processes.is_first():
                finished_lib.save_run(record([finished[name]]), identities[name], files[name])
    return [finished[name] for name in trials]


def _train(
    group: Mapping[str, Trial],
    program: Program,
    schedule: Schedule,
    output_dir: pathlib.Path,
    done: str,
) -> list[results.Run]:
    trials = list(group.values())
    first = f"{trials[0].method.name}, seed {trials[0].seed}"
    label = f"[{done}] {first}" + (f" and {len(group) - 1} more" if len(group) > 1 else "")
    total = schedule.train_steps * len(group)
    folder = output_dir / "checkpoints"
    groups.note(group, folder)
    stacked = isinstance(program, StackedProgram)
    is_shown = printing.is_terminal()
    with _Bar(total=total, desc=label, unit="step", disable=not is_shown) as progress:
        runs = loop.train(
            program,
            trials,
            schedule,
            checkpoint_dir=folder / groups.folder(group),
            tensorboard_dirs=[output_dir / "tensorboard" / name for name in group],
            progress=progress,
            origin=groups.origin(group, folder) if stacked else None,
        )
    if not is_shown and processes.is_first():
        printing.say(f"{label}: {recording.progress_text(recording.Record(runs[-1]))}")
    return runs


class _Bar(tqdm.tqdm):
    """A progress bar whose lines are printed as far as somebody listens."""

    @classmethod
    def write(cls, s: str, file: Any = None, end: str = "\n", nolock: bool = False) -> None:
        """Prints a line above the bar."""
        del file, end
        with cls.external_write_mode(nolock=nolock):
            printing.say(s)

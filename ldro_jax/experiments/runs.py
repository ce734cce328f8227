"""The runs of an experiment: listed and checked before anything is written, and trained."""

import collections
import dataclasses
import hashlib
import itertools
import pathlib
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import tqdm
from absl import logging

from ldro_jax import checks, processes, weighting
from ldro_jax.experiments import finished as finished_lib
from ldro_jax.records import results
from ldro_jax.training import loop
from ldro_jax.training.engine import Program, Trial
from ldro_jax.training.method import Method
from ldro_jax.training.schedule import Schedule

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
    names = collections.Counter(method.name for method in settings)
    runs_of = {
        run_name(method, seed, several=names[method.name] > 1): Trial(method, seed)
        for seed in seeds
        for method in settings
    }
    if len(runs_of) < len(settings) * len(seeds):
        raise ValueError(
            "methods must each have their own name or setting, since the runs are named by them, "
            f"but they are {[m.name for m in settings]}."
        )
    return settings, runs_of


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
                programs[key] = first.for_method(method)
                programs[key].check()
            except (TypeError, ValueError) as error:
                raise ValueError(f"methods: {method.name!r} can't be trained. {error}") from error
    return programs


def check_description(name: str, description: str, schedule: Schedule) -> None:
    """Checks what every experiment is given.

    Args:
      name: of the experiment.
      description: of the experiment.
      schedule: lengths and intervals.

    Raises:
      ValueError: if one of these is of another type.
    """
    checks.text("name", name)
    checks.require(isinstance(description, str), "description", "a text", description)
    checks.instance("schedule", schedule, Schedule, "@Schedule()")


def run_name(method: Method, seed: int, *, several: bool = False) -> str:
    """A name for files: the method's, without what a file system may not like.

    Args:
      method: of the run.
      seed: of the run.
      several: whether there are several settings of the method.

    Returns:
      The name.
    """
    setting = "".join(f"-{k}={v}" for k, v in method.settings().items()) if several else ""
    return f"{re.sub(r'[^A-Za-z0-9._=-]+', '_', method.name + setting)}-seed{seed}"


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
            programs[key] = first.for_method(trial.method)
    program_of = {n: programs[t.method.compile_key()] for n, (_, t) in trials.items()}
    finished, identities = finished_lib.take(trials, program_of, schedule, output_dir, accepted)
    waiting = _groups({n: t for n, (_, t) in trials.items() if n not in finished}, together)
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
            names_of = list(group)
            for part in (names_of[half:], names_of[:half]):
                waiting.appendleft({n: group[n] for n in part})
            continue
        for name, run in zip(group, runs, strict=True):
            settings = trials[name][0].method.settings()
            finished[name] = dataclasses.replace(run, hyperparameters=settings)
            if processes.is_first():
                finished_lib.save_run(record([finished[name]]), identities[name], files[name])
    return [finished[name] for name in trials]


def _groups(trials: Mapping[str, Trial], size: int) -> collections.deque[dict[str, Trial]]:
    """Which runs to train together: those that share a program, at most so many."""
    if size == 1:  # in the order they are listed, so that an unfinished sweep has whole seeds
        return collections.deque({name: trial} for name, trial in trials.items())
    sharing: dict[tuple, dict[str, Trial]] = {}
    for name, trial in trials.items():
        sharing.setdefault(trial.method.compile_key(), {})[name] = trial
    return collections.deque(
        dict(part) for names in sharing.values() for part in _chunks(names.items(), size)
    )


def _chunks(items: Iterable, size: int) -> Iterator[tuple]:
    items = iter(items)
    while chunk := tuple(itertools.islice(items, size)):
        yield chunk


def _train(
    group: Mapping[str, Trial],
    program: Program,
    schedule: Schedule,
    output_dir: pathlib.Path,
    done: str,
) -> list[results.Run]:
    names, trials = list(group), list(group.values())
    folder = names[0]
    if len(group) > 1:
        folder = "group-" + hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]
    first = f"{trials[0].method.name}, seed {trials[0].seed}"
    label = f"[{done}] {first}" + (f" and {len(group) - 1} more" if len(group) > 1 else "")
    total = schedule.train_steps * len(group)
    with tqdm.tqdm(total=total, desc=label, unit="step") as progress:
        return loop.train(
            program,
            trials,
            schedule,
            checkpoint_dir=output_dir / "checkpoints" / folder,
            tensorboard_dirs=[output_dir / "tensorboard" / name for name in names],
            progress=progress,
        )

"""What an experiment trains: its runs and their programs, checked before anything is written."""

import collections
import pathlib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from absl import logging

from ldro_jax import checks, paths, weighting
from ldro_jax.records import json_types, results
from ldro_jax.training import identity as identity_lib
from ldro_jax.training import processes
from ldro_jax.training.method import Method
from ldro_jax.training.program import Trial
from ldro_jax.training.schedule import Schedule

# Programs are made with it first, so that errors of a model or of batches are no method's.
AVERAGE = Method("Average", "average")


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


def programs_of(settings: Iterable[Method], first: Any) -> dict[tuple[Any, ...], Any]:
    """The programs that some methods need, each traced, so that what doesn't fit is found at once.

    Args:
      settings: the methods.
      first: a program of any method for the same model and data.

    Returns:
      Programs by :meth:`Method.program`.

    Raises:
      ValueError: if a method can't be trained on this data.
    """
    first.check()
    programs = {}
    for method in settings:
        if (key := method.program()) not in programs:
            try:
                programs[key] = first.for_method(method)
                programs[key].check()
            except (TypeError, ValueError) as error:
                raise ValueError(f"methods: {method.name!r} can't be trained. {error}") from error
    return programs


def finished_run(
    file: pathlib.Path, trial: Trial, num_steps: int, identity: Mapping[str, Any]
) -> results.Run | None:
    """The record of a run that an earlier start of the experiment finished.

    One that can't be read, or is that of another run, is moved aside.

    Args:
      file: where it would be.
      trial: the method and the seed.
      num_steps: of the run.
      identity: what tells its data from other data, in plain JSON types.

    Returns:
      The run, or ``None`` if there is none that can be used.

    Raises:
      ValueError: if it was made with other data.
    """
    if not file.exists():
        return None
    try:
        found = results.load_results(file)
        run = found.runs[0]
    except FileNotFoundError:  # another process has just moved it
        return None
    except (results.ResultsError, IndexError) as error:
        reason = str(error) or "it holds no run"
    else:
        identity_lib.check(f"The record {file}", found.data, json_types.plain(identity))
        ours = (trial.method.name, json_types.plain(trial.method.settings()), trial.seed, num_steps)
        theirs = (run.method, dict(run.hyperparameters), run.seed, run.num_steps)
        if theirs == ours:
            return run
        reason = f"It is that of another run: {theirs} instead of {ours}."
    logging.warning("The record %s can't be used, so the run is trained again. %s", file, reason)
    if processes.is_first():
        logging.warning("It is now %s.", paths.move_aside(file))
    return None


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

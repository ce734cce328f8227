"""The runs of an experiment: listed and checked before anything is written, trained, reported."""

import collections
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import jax
import tqdm
from absl import logging

from ldro_jax import reporting, weighting
from ldro_jax.experiments import finished as finished_lib
from ldro_jax.experiments import groups, names
from ldro_jax.records import output_dir as output_dir_lib
from ldro_jax.records import relative, results
from ldro_jax.runtime import checks, errors, printing, processes
from ldro_jax.training import fingerprint, loop, recording
from ldro_jax.training.engine import Program, Trial
from ldro_jax.training.method import Method
from ldro_jax.training.schedule import Schedule
from ldro_jax.training.stacked import StackedProgram

# Programs are made with it first, so that errors of a model or of batches are no method's.
AVERAGE = Method("Average", "average")


class RunsStoppedError(RuntimeError):
    """Some runs of an experiment ended before their last step."""


def list_runs(
    methods: Sequence[Method | Sequence[Method]],
    seeds: Sequence[int],
    *,
    from_data: Collection[str] = (),
) -> tuple[list[Method], dict[str, Trial]]:
    """The methods of an experiment, and its runs, each with a name for its files.

    Args:
      methods: what to compare; a sequence among them (a grid) counts as its elements.
      seeds: a run for each.
      from_data: hyperparameters that the experiment gives the methods that need them.

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


class Programs:
    """The programs of an experiment, one for all methods with the same ``compile_key()``.

    Args:
      first: the program of any method, for the model and the data of the experiment.
    """

    def __init__(self, first: Program) -> None:
        self._first = first
        self._made = {first.method.compile_key(): first}

    def of(self, method: Method) -> Program:
        """The program that trains a method."""
        key = method.compile_key()
        if key not in self._made:
            self._made[key] = self._first.engine.program(method)
        return self._made[key]

    def check(self, methods: Iterable[Method]) -> None:
        """Traces the programs of some methods, so that what doesn't fit is found at once.

        Raises:
          ValueError: if the model, the batches or a method can't be trained on this data.
        """
        self._first.check()
        for method in methods:
            if method.compile_key() in self._made:
                continue
            try:
                self.of(method).check()
            except Exception as error:
                said = errors.reason(error)
                raise ValueError(f"methods: {method.name!r} can't be trained. {said}") from error


class Experiment:
    """Where some runs go and how they are recorded.

    Args:
      output_dir: for their records and checkpoints, and the report.
      schedule: lengths and intervals.
      record: makes the record of some runs.
      config_text: the configuration that ``config.gin`` holds in the end; without it the file is
        left as it is.
      callback: called after each evaluation, see :func:`ldro_jax.experiments.compare.compare`.
    """

    output_dir: pathlib.Path
    schedule: Schedule

    def __init__(
        self,
        output_dir: pathlib.Path,
        schedule: Schedule,
        record: Callable[[Sequence[results.Run]], results.Results],
        config_text: str | None = None,
        callback: Callable[..., Any] | None = None,
    ):
        self.output_dir, self.schedule, self._record = output_dir, schedule, record
        self._config_text, self._callback, self._has_failed = config_text, callback, False
        self._before = output_dir_lib.finished(output_dir, config_text)
        self._told: set[str] = set()

    def train(
        self,
        trials: Mapping[str, tuple[Trial, Trial]],
        programs: Programs,
        *,
        together: int = 1,
        label: str | None = None,
    ) -> list[results.Run]:
        """Trains all runs that an earlier start hasn't finished.

        What is there of these runs is compared with what they are now before anything is trained.

        Args:
          trials: by name, each run as it is recorded, and with what only the data can tell.
          programs: of their methods.
          together: the most runs to train at a time.
          label: for the progress bar; by default how many runs are finished.

        Returns:
          The runs, in the order of their names.

        Raises:
          OtherRunError: if a record or a checkpoint was made with something else.
        """
        identities = {
            name: fingerprint.of(programs.of(resolved.method), self.schedule, [recorded])
            for name, (recorded, resolved) in trials.items()
        }
        resolved = {name: trial for name, (_, trial) in trials.items()}
        labels = _labels({name: trial for name, (trial, _) in trials.items()}, self.schedule)
        with output_dir_lib.going_on(self.output_dir, self._config_text) as accept:
            finished, old_names = finished_lib.take(
                identities, resolved, self.schedule.train_steps, self.output_dir
            )
            accept()
            finished_lib.rename(self.output_dir, old_names)
            left = {name: trial for name, trial in resolved.items() if name not in finished}
            waiting = groups.split(left, together, self.output_dir / "checkpoints")
            while waiting:
                group = waiting.popleft()
                program = programs.of(next(iter(group.values())).method)
                done = label or f"{len(finished)}/{len(trials)}"
                tell = []
                if self._callback is not None:
                    tell = [functools.partial(self._tell, labels[x], group[x].seed) for x in group]
                try:
                    runs = self._train(group, program, done, tell)
                except jax.errors.JaxRuntimeError as error:
                    if "RESOURCE_EXHAUSTED" not in str(error) or len(group) == 1:
                        raise
                    waiting.extendleft(_halves(group))
                    continue
                for name, run in zip(group, runs, strict=True):
                    settings = trials[name][0].method.settings()
                    finished[name] = dataclasses.replace(run, hyperparameters=settings)
                    if processes.is_first():
                        file = self.output_dir / "runs" / f"{name}.json"
                        record = self._record([finished[name]])
                        finished_lib.save_run(record, identities[name], file)
        return [finished[name] for name in trials]

    def _train(
        self,
        group: Mapping[str, Trial],
        program: Program,
        done: str,
        tell: Sequence[recording.Tell],
    ) -> list[results.Run]:
        trials = list(group.values())
        first = f"{trials[0].method.name}, seed {trials[0].seed}"
        label = f"[{done}] {first}" + (f" and {len(group) - 1} more" if len(group) > 1 else "")
        total = self.schedule.train_steps * len(group)
        folder = self.output_dir / "checkpoints"
        groups.note(group, folder)
        self._tell_cost(program)
        stacked = isinstance(program, StackedProgram)
        is_shown = printing.is_terminal()
        with _Bar(total=total, desc=label, unit="step", disable=not is_shown) as progress:
            runs = loop.train(
                program,
                trials,
                self.schedule,
                checkpoint_dir=folder / groups.folder(group),
                tensorboard_dirs=[self.output_dir / "tensorboard" / name for name in group],
                progress=progress,
                origin=groups.origin(group, folder) if stacked else None,
                tell=tell,
            )
        if not is_shown and processes.is_first():
            printing.say(f"{label}: {recording.progress_text(recording.Record(runs[-1]))}")
        return runs

    def _tell(self, method: str, seed: int, step: int, numbers: dict[str, float]) -> None:
        """Calls the callback. What it raises is told once, and costs no training."""
        assert self._callback is not None
        try:
            self._callback(method=method, seed=seed, step=step, numbers=numbers)
        except Exception:
            if not self._has_failed:
                logging.exception(
                    "The callback failed; the training goes on. It is called after each evaluation "
                    "as before, and further errors of it aren't shown."
                )
            self._has_failed = True

    def _tell_cost(self, program: Program) -> None:
        """Says once of each method what measuring the interaction costs, where that is much."""
        cost = program.cost()
        if cost and program.method.name not in self._told and processes.is_first():
            self._told.add(program.method.name)
            printing.say(f"{program.method.name}: {cost}")

    def report(
        self,
        runs: Sequence[results.Run],
        config_text: str,
        sections: Callable[[results.Results], Sequence[tuple[str, str, Any]]] = lambda record: (),
    ) -> results.Results:
        """Writes the record and the report, unless both are there already.

        Args:
          runs: all runs of the experiment.
          config_text: the configuration as the report shows it.
          sections: makes further sections of the report from the record.

        Returns:
          The record. Of an experiment that was finished before it is the one that is there, which
          says when and where the numbers were made.

        Raises:
          RunsStoppedError: naming the runs that ended before their last step.
        """
        record = self._record(runs)
        if self._before is not None and _same(record, self._before):
            record = self._before
            if processes.is_first():
                printing.say(
                    f"The experiment in {self.output_dir} is finished; look at its report.html."
                )
        elif processes.is_first():
            reporting.finish(record, self.output_dir, config_text, sections(record))
        stopped = [f"{r.method}, seed {r.seed}: {r.stopped}" for r in runs if r.stopped]
        if stopped:
            raise RunsStoppedError("Some runs ended early.\n" + "\n".join(stopped))
        return dataclasses.replace(record, directory=self.output_dir)


def _same(after: results.Results, before: results.Results) -> bool:
    """Whether two records are the same but for when and where they were made."""
    records = (dataclasses.replace(x, versions={}, device={}, occasion={}) for x in (after, before))
    one, other = map(results.to_record, records)
    return one == other


def _labels(trials: Mapping[str, Trial], schedule: Schedule) -> dict[str, str]:
    """By name of a run its method, with what differs where that has several settings."""
    runs = {name: recording.empty_run(trial, schedule) for name, trial in trials.items()}
    names = {id(run): name for name, run in runs.items()}
    of_label = relative.groups(runs.values()).items()
    return {names[id(run)]: label for label, group in of_label for run in group}


def _halves(group: Mapping[str, Trial]) -> tuple[dict[str, Trial], ...]:
    """The runs of a group that doesn't fit into memory, in two groups, the last runs first."""
    members, half = list(group.items()), len(group) // 2
    logging.warning(
        "%d runs at a time don't fit into memory, so it goes on with %d.",
        *(len(members), len(members) - half),
    )
    return dict(members[half:]), dict(members[:half])


class _Bar(tqdm.tqdm):
    """A progress bar whose lines never fail the program."""

    @classmethod
    def write(cls, s: str, file: Any = None, end: str = "\n", nolock: bool = False) -> None:
        """Prints a line above the bar."""
        del file, end
        with cls.external_write_mode(nolock=nolock):
            printing.say(s)

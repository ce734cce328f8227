"""Trains one model after another for an experiment whose models differ in their data."""

import dataclasses
import pathlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import optax

from ldro_jax.experiments import compare as compare_lib
from ldro_jax.experiments import names
from ldro_jax.experiments import runs as runs_lib
from ldro_jax.problems import grouped
from ldro_jax.problems.arrays import ArrayProblem
from ldro_jax.records import kept, results
from ldro_jax.tasks.grouped import GroupedData
from ldro_jax.training.batches import Batches
from ldro_jax.training.engine import Program, Trial
from ldro_jax.training.method import Method
from ldro_jax.training.schedule import Schedule
from ldro_jax.training.stacked import StackedProgram


def label(name: str, setting: Mapping[str, Any]) -> str:
    """What the runs of a setting are called."""
    inside = ", ".join(f"{key}={value}" for key, value in setting.items())
    return f"{name} ({inside})" if inside else name


@dataclasses.dataclass(frozen=True)
class Job:
    """What is trained with several seeds.

    Attributes:
      name: of the approach.
      method: how tasks are weighed.
      setting: what tells it from others of its name.
      problem: what is trained.
      optimizer: by default that of the experiment.
      steps: by default those of the schedule.
      files: the name that its files have; by default that of the approach.
      form: what jobs have in common that differ in rates, rows and first parameters alone.
    """

    name: str
    method: Method
    setting: Mapping[str, Any]
    problem: ArrayProblem
    form: Hashable
    optimizer: optax.GradientTransformation | None = None
    steps: int | None = None
    files: str | None = None

    @property
    def recorded(self) -> Method:
        """The method under the name that its files have."""
        return dataclasses.replace(self.method, name=label(self.files or self.name, self.setting))

    @property
    def compiled_as(self) -> Hashable:
        """What jobs have in common that one program trains."""
        return self.form, self.method.compile_key(), self.problem.task_names


class Trainings:
    """Trains models on data with groups, each a run of one experiment.

    Args:
      data: by seed, examples and their groups; all of the same classes and groups.
      model: ``(num_classes=...)`` to a model.
      optimizer: of each model that has none of its own.
      batches: how they are drawn.
      schedule: lengths and intervals.
    """

    data: Mapping[int, GroupedData]
    seeds: list[int]
    model: Callable[..., Any]
    optimizer: optax.GradientTransformation
    schedule: Schedule

    def __init__(
        self,
        data: Mapping[int, GroupedData],
        model: Callable[..., Any],
        optimizer: optax.GradientTransformation,
        *,
        batches: Batches,
        schedule: Schedule,
    ) -> None:
        self.data, self.seeds, self.model = data, list(data), model
        self.optimizer, self.schedule, self._batches = optimizer, schedule, batches
        self._to_experiment: Callable[[Schedule], runs_lib.Experiment] | None = None
        self._output_dir: pathlib.Path | None = None
        self._task_names: tuple[str, ...] = ()
        self._done = 0
        # What is made once for all data of a form.
        self._problems: dict[Hashable, ArrayProblem] = {}
        self._programs: dict[Hashable, StackedProgram] = {}
        self._checked: set[Hashable] = set()

    def begin(
        self,
        output_dir: pathlib.Path,
        to_experiment: Callable[[Schedule], runs_lib.Experiment],
        task_names: Sequence[str],
    ) -> None:
        """Says where runs go from now on, and the tasks whose weights are recorded."""
        self._output_dir, self._to_experiment = output_dir, to_experiment
        self._task_names = tuple(task_names)

    def problem(
        self,
        data: GroupedData,
        known: str,
        objective: Any = None,
        model: Callable[..., Any] | None = None,
    ) -> ArrayProblem:
        """Makes the problem of some data; see :func:`ldro_jax.problems.groups`."""
        names, splits = grouped.divided(data, known)
        key = known, objective, model, data.prepare, tuple(names)
        if key in self._problems:
            return self._problems[key].with_splits(splits)
        made = (model or self.model)(num_classes=len(data.class_names))
        self._problems[key] = grouped.groups(data, made, known=known, objective=objective)
        return self._problems[key]

    def _program(self, job: Job) -> tuple[Program, Method]:
        """What trains a job, and its method with what only the data can tell."""
        method = compare_lib.resolved(job.recorded, job.problem, {})
        if (known := self._programs.get(job.compiled_as)) is not None:
            return known.on(known.engine.on(job.problem)), method
        optimizer = job.optimizer or self.optimizer
        program = compare_lib.make_program(job.problem, optimizer, self._batches, method)
        if isinstance(program, StackedProgram):
            self._programs[job.compiled_as] = program
        return program, method

    def check(self, job: Job) -> None:
        """Traces what would be trained; raises ``ValueError`` for what doesn't fit.

        Once for all jobs that one program trains.
        """
        if job.compiled_as in self._checked:
            return
        self._checked.add(job.compiled_as)
        program, _ = self._program(job)
        program.check()
        program.check_evaluation()

    def train(self, job: Job, seeds: Sequence[int]) -> dict[int, results.Run]:
        """Trains a job with some seeds, as far as that isn't done.

        Returns:
          By seed, the record of each.
        """
        assert self._to_experiment is not None
        schedule = self.schedule
        if job.steps is not None:
            times = {"eval_interval": job.steps, "checkpoint_interval": job.steps}
            schedule = dataclasses.replace(schedule, train_steps=job.steps, **times)
        program, method = self._program(job)
        labels = [names.run_label(job.recorded, seed) for seed in seeds]
        trials = [(Trial(job.recorded, seed), Trial(method, seed)) for seed in seeds]
        programs = runs_lib.Programs(program)
        together = compare_lib.runs_together(program, schedule, len(trials))
        named = dict(zip(names.file_names(labels), trials, strict=True))
        runs = self._to_experiment(schedule).train(
            named, programs, together=together, label=str(self._done)
        )
        self._done += len(runs)
        return {run.seed: self._recorded(job, run) for run in runs}

    def first_models(self, job: Job, seeds: Sequence[int]) -> dict[int, Any]:
        """Trains models that others begin from.

        Returns:
          By seed, their parameters at the end.

        Raises:
          RunsStoppedError: if one of them ended early.
          FileNotFoundError: if one is finished, and its checkpoint gone.
        """
        runs = self.train(job, seeds)
        name = job.recorded.name
        if stopped := [
            f"{name}, seed {s}: {run.stopped}" for s, run in runs.items() if run.stopped
        ]:
            raise runs_lib.RunsStoppedError("Some models ended early.\n" + "\n".join(stopped))
        return {seed: self._parameters(job, seed) for seed in runs}

    def _recorded(self, job: Job, run: results.Run) -> results.Run:
        # As it is read after a restart: numbers in records are rounded.
        run = results.run_from_record(results.run_to_record(run))
        run = dataclasses.replace(run, method=job.name, hyperparameters=dict(job.setting))
        if job.problem.task_names == self._task_names:
            return run
        # Of other tasks than those that the record speaks of.
        return dataclasses.replace(
            run, **dict.fromkeys(("weights", "losses", "interaction", "diagnostics", "descent"))
        )

    def _parameters(self, job: Job, seed: int) -> Any:
        """What a job came to, at the end of its training."""
        assert self._output_dir is not None
        try:
            return kept.load(
                self._output_dir,
                method=job.recorded.name,
                seed=seed,
                step="last",
                problem=job.problem,
            )
        except FileNotFoundError as error:
            (file,) = names.file_names([names.run_label(job.recorded, seed)])
            raise FileNotFoundError(
                f"{job.recorded.name} with seed {seed} is finished, but its parameters, which the "
                f"next training needs, aren't kept in {self._output_dir / 'checkpoints'}. Delete "
                f"{self._output_dir / 'runs' / file}.json to train it again."
            ) from error

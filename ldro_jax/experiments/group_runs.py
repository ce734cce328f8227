"""Models of groups of tasks: trained, a program for all groups of a size, and what they came to."""

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import optax

from ldro_jax import grouping
from ldro_jax.experiments import compare as compare_lib
from ldro_jax.experiments import names
from ldro_jax.experiments import runs as runs_lib
from ldro_jax.grouping import gain as gains_lib
from ldro_jax.grouping.gain import Group
from ldro_jax.problems.base import Problem
from ldro_jax.problems.subset import Subset
from ldro_jax.records import results
from ldro_jax.training.batches import Batches
from ldro_jax.training.engine import Trial
from ldro_jax.training.method import Method
from ldro_jax.training.schedule import Schedule
from ldro_jax.training.stacked import StackedEngine

LOSS = "loss"


class Choice(NamedTuple):
    """Groups that were chosen with one seed.

    Attributes:
      way: how they were chosen.
      max_groups: how many were asked for, at most; ``None`` where the way says it.
      seed: with which that was measured.
      groups: tuples of tasks.
    """

    way: str
    max_groups: int | None
    seed: int
    groups: tuple[Group, ...]


class Models:
    """Trains groups of tasks of a problem, and all of them.

    Args:
      problem: with its rows on the device.
      optimizer: of each model.
      batches: rows of all tasks.
      schedule: of each run.
      method: how tasks are weighed.

    Raises:
      ValueError: if the rows aren't on one device, or can't be shared out evenly among the tasks.
    """

    problem: Problem
    method: Method

    def __init__(
        self,
        problem: Problem,
        optimizer: optax.GradientTransformation,
        batches: Batches,
        schedule: Schedule,
        method: Method,
    ):
        self.problem, self._optimizer, self._batches = problem, optimizer, batches
        self._schedule, self.method = schedule, method
        whole = compare_lib.make_program(problem, optimizer, batches, runs_lib.AVERAGE)
        if not isinstance(whole.engine, StackedEngine):
            raise ValueError(
                "Groups of tasks are trained on one device that holds the rows: the problem must "
                "have them in memory, Batches.layout must be None, and there must be one process."
            )
        owned, num_tasks = problem.labels is None, problem.num_tasks
        if owned and (batches.sampler != "balanced" or batches.size % num_tasks):
            raise ValueError(
                "A group has the rows of its tasks: Batches.sampler must be 'balanced', and "
                f"Batches.size a multiple of the {num_tasks} tasks, but they are "
                f"{batches.sampler!r} and {batches.size}."
            )
        self._programs = {num_tasks: runs_lib.Programs(whole)}

    def check(self, methods: Sequence[Method]) -> None:
        """Traces what will be trained; raises ``ValueError`` for what doesn't fit."""
        whole = self._programs[self.problem.num_tasks]
        whole.check([self._resolved(method) for method in (self.method, *methods)])
        for size in (1, 2):
            self._of_size(size).check([self._resolved(self.method, tuple(range(size)))])
        whole.of(self._resolved(self.method)).check_evaluation()

    def _resolved(self, method: Method, group: Group | None = None) -> Method:
        """The method with what only the data can tell, for some tasks or all."""
        some = self.problem if group is None else Subset(self.problem, group)
        return compare_lib.resolved(method, some, {})

    def _of_size(self, size: int) -> runs_lib.Programs:
        """The programs for groups of a size."""
        if size not in self._programs:
            batches = self._batches
            if self.problem.labels is None:
                rows = batches.size // self.problem.num_tasks
                batches = dataclasses.replace(batches, size=rows * size)
            some = Subset(self.problem, range(size))
            engine = StackedEngine(some, self._optimizer, batches)
            self._programs[size] = runs_lib.Programs(engine.program(runs_lib.AVERAGE))
        return self._programs[size]

    def train(
        self, experiment: runs_lib.Experiment, wanted: Iterable[tuple[Group, int]]
    ) -> dict[tuple[Group, int], results.Run]:
        """Trains groups, each with a seed, those of a size with one program.

        Returns:
          The record of each group and seed. That of all tasks is another one's, and left out.
        """
        by_size: dict[int, list[tuple[Group, int]]] = collections.defaultdict(list)
        for group, seed in dict.fromkeys(wanted):
            by_size[len(group)].append((group, seed))
        by_size.pop(self.problem.num_tasks, None)
        found = {}
        for size, some in sorted(by_size.items()):
            trials = {}
            for group, seed in some:
                name = "+".join(self.problem.task_names[task] for task in group)
                method = dataclasses.replace(self.method, name=name)
                own = self._resolved(method, group)
                trials[group, seed] = Trial(method, seed, group), Trial(own, seed, group)
            found |= self._train(experiment, self._of_size(size), trials)
        return found

    def train_whole(
        self, experiment: runs_lib.Experiment, method: Method, seeds: Sequence[int]
    ) -> dict[int, results.Run]:
        """Trains all tasks together; the record of each seed."""
        own = self._resolved(method)
        trials = {seed: (Trial(method, seed), Trial(own, seed)) for seed in seeds}
        return self._train(experiment, self._programs[self.problem.num_tasks], trials)

    def _train(
        self,
        experiment: runs_lib.Experiment,
        programs: runs_lib.Programs,
        trials: Mapping[Any, tuple[Trial, Trial]],
    ) -> dict[Any, results.Run]:
        # By the numbers of the tasks, so that it is the same in every call, and no other group's.
        labels = [
            names.run_label(trial.method, trial.seed)
            if trial.tasks is None
            else f"group_{'_'.join(map(str, trial.tasks))}-seed{trial.seed}"
            for trial, _ in trials.values()
        ]
        named = dict(zip(names.file_names(labels), trials.values(), strict=True))
        first = programs.of(next(iter(trials.values()))[1].method)
        together = compare_lib.runs_together(first, self._schedule, len(trials))
        runs = experiment.train(named, programs, together=together)
        if stopped := [f"{r.method}, seed {r.seed}: {r.stopped}" for r in runs if r.stopped]:
            raise runs_lib.RunsStoppedError("Some models ended early.\n" + "\n".join(stopped))
        # As they are read after a restart: numbers in records are rounded.
        runs = [results.run_from_record(results.run_to_record(run)) for run in runs]
        return dict(zip(trials, runs, strict=True))


class Measured:
    """What the models came to.

    Args:
      problem: whose tasks they are.

    Attributes:
      runs: the record of each group and seed.
      tracked: of each affinity, by name, its kind and the record of each seed.
    """

    problem: Problem
    everything: tuple[int, ...]

    def __init__(self, problem: Problem) -> None:
        self.problem, self.everything = problem, tuple(range(problem.num_tasks))
        self.runs: dict[tuple[Group, int], results.Run] = {}
        self.tracked: dict[str, tuple[str, dict[int, results.Run]]] = {}

    def losses(self, group: Group, seed: int) -> list[float]:
        """The loss of each member on validation, at the end of training."""
        per_task = at_end(self.runs[group, seed], "validation", LOSS).per_task
        return [per_task[self.problem.task_names[task]] for task in group]

    def gains(self, seed: int) -> dict[Group, np.ndarray]:
        """What the members of each group gain that was trained with a seed."""
        groups = [group for group, other in self.runs if other == seed]
        return gains_lib.gains({group: self.losses(group, seed) for group in groups})

    def affinities(self, seed: int) -> dict[str, np.ndarray]:
        """By name, what was measured with a seed while all tasks were trained together.

        Raises:
          ValueError: if a pair of tasks was never measured.
        """
        found = {}
        for name, (kind, runs) in self.tracked.items():
            series = runs[seed].affinity
            assert series is not None
            found[name] = matrix = series.values[-1, grouping.KINDS.index(kind)]
            without = ~np.isfinite(matrix) & ~np.eye(len(matrix), dtype=bool)
            if without.any():
                tasks = [self.problem.task_names[task] for task in np.argwhere(without)[0]]
                raise ValueError(
                    f"The affinity {name!r} of {tasks[1]!r} to {tasks[0]!r} has no value with seed "
                    f"{seed}: whenever it was measured, a gradient was zero or not finite, or the "
                    "loss not positive. Leave that task out, or take another affinity."
                )
        return found

    def serves(self, choice: Choice) -> list[Group]:
        """For each task the group that has it with the lowest loss on validation."""
        found: list[Group] = [()] * self.problem.num_tasks
        least = [np.inf] * self.problem.num_tasks
        for group in choice.groups:
            for task, loss in zip(group, self.losses(group, choice.seed), strict=True):
                if not found[task] or loss < least[task]:
                    found[task], least[task] = group, loss
        return found

    def seeds(self) -> list[int]:
        """All seeds."""
        return sorted({seed for _, seed in self.runs})

    def share(self, group: Group) -> float:
        """What training a group costs, in trainings of all tasks together."""
        return len(group) / self.problem.num_tasks if self.problem.labels is None else 1.0

    def measuring(self, name: str) -> float:
        """What a training that measures an affinity took, in trainings that don't."""
        _, runs = self.tracked[name]
        plain = [self.runs[self.everything, seed].seconds_per_step for seed in runs]
        ours = [run.seconds_per_step for run in runs.values()]
        return float(np.median(np.array(ours, float)) / np.median(np.array(plain, float)))


def at_end(run: results.Run, split: str, metric: str) -> results.Evaluation:
    """What a run came to: at its best step where that was tested, otherwise at its last."""
    tested = [e.step for e in run.evaluations if e.split == "test"]
    found = [e for e in run.evaluations if e.split == split and e.metric == metric]
    at_step = [e for e in found if e.step == tested[-1]] if tested else found
    return (at_step or found)[-1]

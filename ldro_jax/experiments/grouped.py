"""Which tasks belong together: groups chosen in several ways, trained, and compared.

All tasks are trained together while their affinities are measured, groups are chosen by these, and
each group is trained. They are compared with all tasks in one model, a model for each task, random
groups, and where there are few tasks the best of all groups. Every seed is such a procedure from
its beginning: its groups are chosen by what was measured with this seed.
"""

import dataclasses
import itertools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import optax

from ldro_jax import grouping, interaction
from ldro_jax.experiments import compare as compare_lib
from ldro_jax.experiments import runs as runs_lib
from ldro_jax.experiments.arguments import Directories, Report
from ldro_jax.experiments.group_runs import LOSS, Choice, Measured, Models
from ldro_jax.grouping import gain as gains_lib
from ldro_jax.grouping.gain import ALL, ALONE, Gains
from ldro_jax.problems.base import Problem
from ldro_jax.problems.in_memory import InMemory
from ldro_jax.problems.subset import Subset
from ldro_jax.records import results
from ldro_jax.runtime import checks, paths
from ldro_jax.training.batches import Batches
from ldro_jax.training.method import Method
from ldro_jax.training.schedule import Schedule

RANDOM = "Random groups"
PAIRS, FITTED, BEST = "Trained pairs", "Regression", "Best of all groups"

# All groups of more tasks are too many to choose from, or to train.
_MOST_TO_FIT, _MOST_TO_TRAIN = 12, 10
# Groups that a regression is made from, at most.
_MEASURED_TO_FIT = 50


@dataclasses.dataclass(frozen=True)
class Affinity:
    """A way to measure how tasks affect each other while all are trained together.

    Attributes:
      name: how tables call it.
      kind: "first order" or "cosine"; see :mod:`ldro_jax.grouping.affinities`.
      interval: every how many steps to measure it. Where the method uses the interaction, it is
        measured as often, and in the geometry, as the method says, and it can't be by steps.
      step_size: of steps that are taken for each task, as TAG does, for their losses; by default
        none is, and it is the first order.
      geometry: "euclidean", or "optimizer" for that of the optimizer.

    Raises:
      ValueError: if one of these isn't what it must be.
    """

    name: str
    kind: str = "first order"
    interval: int = 10
    step_size: float | None = None
    geometry: str = "euclidean"

    def __post_init__(self) -> None:
        checks.text("name", self.name)
        checks.one_of("kind", self.kind, grouping.KINDS)
        checks.integer("interval", self.interval)
        checks.one_of("geometry", self.geometry, ("euclidean", "optimizer"))
        if self.step_size is not None:
            checks.number("step_size", self.step_size, "(0, inf)")
            by_steps = self.kind == "first order"
            checks.require(by_steps, "kind", "'first order' with a step_size", self.kind)

    def tracking(self, method: Method) -> Method:
        """The method, which trains as before and measures this on the way.

        Raises:
          ValueError: if it would have to measure something else than it does.
        """
        options: dict[str, Any] = {}
        name = f"{ALL}, measured"
        if method.uses_interaction:
            own = self.step_size is None and self.geometry in ("euclidean", method.geometry)
            if not own or method.uses_products:
                raise ValueError(
                    f"affinities: {self.name!r} must be measured as {method.name!r} measures the "
                    "interaction it weighs by: without a step_size, in its geometry, and as a "
                    "matrix, not by products."
                )
        else:
            options = {"interaction_interval": self.interval, "geometry": self.geometry}
            name += f" every {self.interval} steps"
            name += ", in the optimizer's geometry" if self.geometry == "optimizer" else ""
        if self.step_size is not None:
            options["interaction"] = interaction.lookahead(self.step_size)
            name += f", by steps of {self.step_size!r}"
        tracked = grouping.tracking(method.weighting)
        return dataclasses.replace(method, name=name, weighting=tracked, **options)


@dataclasses.dataclass(frozen=True)
class Choices:
    """Which ways to choose groups are compared.

    Attributes:
      affinities: what is measured while all tasks are trained together.
      max_groups: numbers of groups, at most, to choose.
      pairs: train all pairs of tasks: their gains are an affinity of their own, and what the others
        are compared with.
      every_group: train all groups, of at most ten tasks, and choose the best of them.
      random: train random groups, too, others with each seed.

    Raises:
      ValueError: if one of these isn't what it must be.
    """

    affinities: Sequence[Affinity]
    max_groups: Sequence[int] = (2, 3, 4)
    pairs: bool = True
    every_group: bool = False
    random: bool = True

    def __post_init__(self) -> None:
        checks.sequence("affinities", self.affinities, "affinities, such as [@tag/Affinity()]")
        for affinity in self.affinities:
            checks.instance("affinities", affinity, Affinity, "@tag/Affinity()")
        called = [affinity.name for affinity in self.affinities]
        reserved = {ALL, ALONE, RANDOM, PAIRS, FITTED, BEST}
        differ = len(set(called)) == len(called) and not reserved & set(called)
        checks.require(differ, "affinities", "affinities with names of their own", called)
        checks.sequence("max_groups", self.max_groups, "numbers, such as (2, 3, 4)")
        for number in self.max_groups:
            checks.integer("max_groups", number)
        checks.flag("pairs", self.pairs)
        differ = len(set(self.max_groups)) == len(self.max_groups)
        checks.require(differ, "max_groups", "numbers that differ", list(self.max_groups))
        checks.flag("every_group", self.every_group)
        checks.flag("random", self.random)


def compare_groups(
    problem: Problem | Callable[..., Problem],
    method: Method,
    choices: Choices,
    seeds: Sequence[int],
    optimizer: optax.GradientTransformation,
    *,
    schedule: Schedule,
    batches: Batches,
    output_dir: str | os.PathLike[str] | Directories,
    report: Report = Report("groups", select_by="average"),  # noqa: B008
) -> results.Results:
    """Chooses groups of tasks in several ways, trains a model for each group, and compares.

    A task that is in several groups is reported from the one whose loss on validation is lowest at
    the end. Groups are chosen by losses, which problems of arrays measure; another problem needs a
    metric of the name "loss".

    Runs that are finished are kept, and one that was interrupted goes on, as with
    :func:`ldro_jax.compare`. The parameters of a group are those of
    ``load(output_dir, method="TASK+TASK", seed=..., step="last")``.

    Args:
      problem: what is trained, with its rows on the device; or a function of ``data_dir``.
      method: how tasks are weighed in every model, such as ``Method("Average", "average")``. One
        that takes ``sizes`` gets those of the tasks in a group, and is compiled for each.
      choices: the ways to choose groups.
      seeds: a whole procedure for each.
      optimizer: of each model.
      schedule: lengths and intervals of each run.
      batches: rows of all tasks; with rows of one task each, a group has its share of them.
      output_dir: where everything goes; or a :class:`Directories`.
      report: name and description of the experiment.

    Returns:
      The record, with the ways to choose as methods and the number of groups as their setting. It
      has no parameters of its own.

    Raises:
      FileExistsError: if the directory holds something else than an experiment, or is in use.
      OtherRunError: if it holds one of these runs that was made with something else.
      RunsStoppedError: if losses of a run never became finite again.
      ValueError: if an argument is not what it must be.
    """
    where = Directories.of(output_dir)
    compare_lib.check_parts(schedule=schedule, batches=batches, report=report)
    checks.instance("choices", choices, Choices, "@Choices()")
    checks.instance("method", method, Method, "@average/Method()")
    _, listed = runs_lib.list_runs([method], seeds, from_data=("sizes",))
    seeds = [trial.seed for trial in listed.values()]
    made = _with_loss(compare_lib.make_problem(problem, where.data, schedule))
    _check(made, method, choices, schedule)
    models = Models(made, optimizer, batches, schedule, method)
    models.check([affinity.tracking(method) for affinity in choices.affinities])
    config_text = where.config_text or compare_lib.configuration(
        "compare_groups",
        problem=type(made).__name__,
        method=compare_lib.described(method),
        choices=choices,
        seeds=seeds,
        schedule=schedule,
        batches=batches,
    )
    with compare_lib.opened(where, config_text, problem=made, optimizer=optimizer) as opened:
        ready, kept_text = opened
        ready()
        experiment = runs_lib.Experiment(
            paths.absolute(where.output),
            schedule,
            lambda runs: _record(made, runs, report),
            kept_text,
        )
        measured = _measure(models, experiment, choices, seeds)
        chosen = [choice for seed in seeds for choice in _choose(choices, measured, seed)]
        wanted = [(group, choice.seed) for choice in chosen for group in choice.groups]
        measured.runs |= models.train(experiment, wanted)
        runs = [_assembled(measured, choice) for choice in chosen]
        return experiment.report(
            runs, config_text, lambda record: _sections(record, measured, choices, chosen)
        )


def _with_loss(problem: Problem) -> Problem:
    if isinstance(problem, InMemory):
        problem = problem.with_loss()
    lower = [m.name for m in problem.metrics if m.direction(problem.task_names) is False]
    if LOSS not in lower:
        raise ValueError(
            f"problem must have a metric of the name {LOSS!r}, lower being better, by which groups "
            f"are chosen, but those where lower is better are {lower}."
        )
    return problem


def _check(problem: Problem, method: Method, choices: Choices, schedule: Schedule) -> None:
    num_tasks = problem.num_tasks
    if problem.measured_names is not None:
        raise ValueError(
            "problem must be measured on each of its tasks, but it is on "
            f"{list(problem.measured_names)}."
        )
    if num_tasks < 3:
        raise ValueError(f"problem must have three tasks or more to group, but it has {num_tasks}.")
    if max(choices.max_groups) > num_tasks:
        raise ValueError(
            f"Choices.max_groups must be at most the number of tasks, {num_tasks}, but it is "
            f"{list(choices.max_groups)}."
        )
    if choices.every_group and num_tasks > _MOST_TO_TRAIN:
        raise ValueError(
            f"Choices.every_group trains all groups of at most {_MOST_TO_TRAIN} tasks, but the "
            f"problem has {num_tasks}. Leave it False."
        )
    if schedule.patience is not None:
        raise ValueError(
            "Schedule.patience must be None, as groups are compared at the same steps, but it is "
            f"{schedule.patience}."
        )
    if "validation" not in problem.splits:
        raise ValueError("problem must have the split 'validation', by which groups are chosen.")
    if schedule.scores and type(problem).score is not Problem.score:
        raise ValueError(
            "Schedule.test must be 'last' or 'always' for a problem with a score of its own, which "
            f"is of all tasks, but it is {schedule.test!r}."
        )


def _measure(
    models: Models, experiment: runs_lib.Experiment, choices: Choices, seeds: Sequence[int]
) -> Measured:
    """Trains all that groups are chosen by."""
    measured = Measured(models.problem)
    num_tasks = len(measured.everything)
    most = num_tasks - 1 if choices.every_group else 2 if choices.pairs else 1
    groups = gains_lib.every_group(num_tasks, 1, most)
    measured.runs |= models.train(experiment, itertools.product(groups, seeds))
    plain = dataclasses.replace(models.method, name=ALL)
    for seed, run in models.train_whole(experiment, plain, seeds).items():
        measured.runs[measured.everything, seed] = run
    # Several kinds come from one training.
    known: dict[str, dict[int, results.Run]] = {}
    for affinity in choices.affinities:
        method = affinity.tracking(models.method)
        if method.name not in known:
            known[method.name] = models.train_whole(experiment, method, seeds)
        measured.tracked[affinity.name] = affinity.kind, known[method.name]
    return measured


def _choose(choices: Choices, measured: Measured, seed: int) -> Iterator[Choice]:
    """The groups of every way to choose them, with what was measured with one seed."""
    num_tasks = len(measured.everything)
    gains = measured.gains(seed) if choices.pairs or choices.every_group else {}
    alone = tuple((task,) for task in measured.everything)
    yield Choice(ALL, None, seed, (measured.everything,))
    yield Choice(ALONE, None, seed, alone)
    affinities = measured.affinities(seed)
    tables: dict[str, Any] = {}
    nothing = {group: np.zeros(1) for group in alone}
    if choices.pairs:
        pairs = {group: gains[group] for group in gains if len(group) == 2}
        if num_tasks <= _MOST_TO_FIT and len(pairs) >= gains_lib.FEWEST:
            first, groups = next(iter(affinities.values())), gains_lib.every_group(num_tasks)
            tables[FITTED] = nothing | gains_lib.fitted(first, _some(pairs, seed), groups)
    if choices.every_group:
        tables[BEST] = nothing | gains
    for number in choices.max_groups:
        for name, affinity in affinities.items():
            yield Choice(name, number, seed, grouping.select(affinity, number).groups)
        if choices.pairs:
            affinity = gains_lib.of_pairs(gains, num_tasks)
            yield Choice(PAIRS, number, seed, grouping.select(affinity, number, alone=0.0).groups)
        for name, table in tables.items():
            yield Choice(name, number, seed, grouping.select_groups(table, number).groups)
        if choices.random:
            order = np.random.default_rng([seed, number]).permutation(num_tasks)
            parts = np.array_split(order, number)
            groups = tuple(sorted(tuple(sorted(map(int, part))) for part in parts))
            yield Choice(RANDOM, number, seed, groups)


def _some(pairs: Gains, seed: int) -> Gains:
    """As many groups as ETAP's regression is made from, at most."""
    order = np.random.default_rng(seed).permutation(len(pairs))[:_MEASURED_TO_FIT]
    return {group: pairs[group] for group in (list(pairs)[place] for place in order)}


def _assembled(measured: Measured, choice: Choice) -> results.Run:
    """The record of several models as that of one: each task from the group that serves it best."""
    problem, serves = measured.problem, measured.serves(choice)
    runs = {group: measured.runs[group, choice.seed] for group in choice.groups}
    evaluations = []
    for together in zip(*(run.evaluations for run in runs.values()), strict=True):
        of_group, names = dict(zip(runs, together, strict=True)), problem.task_names
        (metric,) = (metric for metric in problem.metrics if metric.name == together[0].metric)
        evaluation = results.summarise_evaluation(
            # The best step of each differs, where that is tested.
            step=max(each.step for each in together),
            split=together[0].split,
            metric=metric.name,
            task_names=names,
            values=[of_group[g].per_task[n] for n, g in zip(names, serves, strict=True)],
            higher_is_better=metric.direction(names),
        )
        evaluations.append(evaluation)
    return results.Run(
        method=choice.way,
        seed=choice.seed,
        num_steps=max(run.num_steps for run in runs.values()),
        hyperparameters={} if choice.max_groups is None else {"groups": choice.max_groups},
        seconds_per_step=sum(run.seconds_per_step or math.nan for run in runs.values()),
        evaluations=evaluations,
    )


def _sections(
    record: results.Results, measured: Measured, choices: Choices, chosen: Sequence[Choice]
) -> list[tuple[str, str, Any]]:
    """What the report says besides how the ways compare."""
    try:
        from ldro_jax.reporting import groups as groups_report
    except ImportError:  # without the extra "plots" there is no report either
        return []
    seeds, names = measured.seeds(), measured.problem.task_names

    def found(some: Sequence[int]) -> tuple[dict[str, np.ndarray], Gains]:
        """Mean affinities and gains over some seeds."""
        gains = gains_lib.mean([measured.gains(seed) for seed in some])
        each = [measured.affinities(seed) for seed in some]
        means = {name: np.mean([x[name] for x in each], axis=0) for name in measured.tracked}
        if choices.pairs:
            means[PAIRS] = gains_lib.of_pairs(gains, len(names))
        return means, gains

    groups: dict[tuple[str, int | None], list[tuple[tuple[int, ...], ...]]] = {}
    for choice in chosen:
        groups.setdefault((choice.way, choice.max_groups), []).append(choice.groups)
    return groups_report.sections(
        record,
        groups={
            way: [[[names[t] for t in g] for g in c] for c in all_] for way, all_ in groups.items()
        },
        costs={
            way: (
                float(np.mean([sum(map(measured.share, c)) for c in all_])),
                _search(measured, choices, way[0]),
            )
            for way, all_ in groups.items()
        },
        affinities=found(seeds)[0],
        halves=[found(seeds[::2]), found(seeds[1::2] or seeds)],
        measuring={name: measured.measuring(name) for name in measured.tracked},
    )


def _search(measured: Measured, choices: Choices, way: str) -> float:
    """What was trained to choose the groups, in trainings of all tasks together."""
    num_tasks = len(measured.everything)
    most = {PAIRS: 2, FITTED: 2, BEST: num_tasks - 1}.get(way, 0)
    trained = sum(map(measured.share, gains_lib.every_group(num_tasks, 1, most)))
    if way in measured.tracked or way == FITTED:
        name = way if way in measured.tracked else choices.affinities[0].name
        trained += measured.measuring(name)
    return trained


def _record(problem: Problem, runs: Sequence[results.Run], report: Report) -> results.Results:
    """The record of runs of the same tasks, whichever of the problem's they are."""
    names = list(runs[0].evaluations[0].per_task)
    some = Subset(problem, [problem.task_names.index(name) for name in names])
    return compare_lib.make_record(some, runs, report)

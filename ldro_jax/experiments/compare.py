"""Comparing methods: every method with every seed on one problem, and the report."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax

from ldro_jax import weighting
from ldro_jax.experiments import references as references_lib
from ldro_jax.experiments import runs as runs_lib
from ldro_jax.experiments.arguments import Directories, Report
from ldro_jax.problems.base import Problem
from ldro_jax.records import outline, provenance, results
from ldro_jax.records import output_dir as output_dir_lib
from ldro_jax.runtime import checks, paths
from ldro_jax.training.batches import Batches
from ldro_jax.training.engine import Program, Trial
from ldro_jax.training.meshed import MeshedEngine, MeshedProgram
from ldro_jax.training.method import Method
from ldro_jax.training.schedule import Schedule
from ldro_jax.training.stacked import StackedEngine


def compare(
    problem: Problem | Callable[..., Problem],
    methods: Sequence[Method | Sequence[Method]],
    seeds: Sequence[int],
    optimizer: optax.GradientTransformation,
    *,
    schedule: Schedule,
    batches: Batches,
    output_dir: str | os.PathLike[str] | Directories,
    report: Report = Report(),  # noqa: B008
    callback: Callable[..., Any] | None = None,
) -> results.Results:
    """Trains a problem with several methods and seeds, and reports how they compare.

    A run that is finished is kept in ``runs/``, and one that was interrupted goes on from its
    newest checkpoint, so the same call after an interruption ends with the same numbers. The next
    call may have other seeds, methods, metrics and report, another layout, and more steps, as these
    change no number of the runs that are there. Anything else that is different, down to a number
    in the optimizer's closure, is refused.

    Args:
      problem: what is trained; or a function of ``data_dir`` that makes it.
      methods: what to compare; the first is the baseline. A sequence among them (a grid) counts as
        its elements. A method that takes ``sizes`` gets those of the problem, and one that takes
        ``reference_losses`` those of the references, where they aren't given.
      seeds: a run for each.
      optimizer: chained after each method's weighting. Parameters that it leaves as they are
        (``optax.set_to_zero``, or :func:`ldro_jax.ldro.only`) keep the values of
        :meth:`Problem.init`, and count in no interaction.
      schedule: lengths and intervals.
      batches: how rows are drawn, taken in parts, and spread over devices: ``Batches(30)`` has 30
        of them. Random batches change the noise, not the objective: tasks count by their weights
        either way. For the mean over all rows, as plain training has it, compare with the method
        "erm".
      output_dir: where everything goes; or a :class:`Directories`, which says besides where the
        data is, and whether to overwrite.
      report: name and description of the experiment, what decides which settings are shown, and
        models of one task each to compare with.
      callback: called after each evaluation as ``callback(method=…, seed=…, step=…, numbers=…)``,
        where ``numbers`` are those of TensorBoard by name, such as ``"test/accuracy/worst"`` and
        ``"weight/TASK"``; by the first of several processes. ``method`` is as in the report. What
        it raises is logged once, and training goes on. No number of a run depends on it, so the
        next call may have another.

    Returns:
      The record, as it is in ``results.json``.

    Raises:
      FileExistsError: if the directory holds something else than an experiment, or is in use.
      OtherRunError: if it holds one of these runs that was made with something else; a
        ``ValueError``.
      PreemptedError: after SIGTERM or SIGHUP, when the state is saved, within about ten seconds; in
        the main thread, where Python handles signals. The same call goes on from there.
      RunsStoppedError: at the end, after the report, if some runs never recovered from losses that
        are not finite, or had losses below zero that their method can't take; and again whenever
        the same is asked for, since the record stays as it is.
      ValueError: if there is nothing to run, an argument is not what it must be, or two runs would
        have the same name.
    """
    where = Directories.of(output_dir)
    check_parts(schedule=schedule, batches=batches, report=report)
    if callback is not None:
        arguments = "method", "seed", "step", "numbers"
        checks.function("callback", callback, *arguments, example="@my.callback")
    settings, runs_of = runs_lib.list_runs(methods, seeds, from_data=weighting.FROM_DATA)
    references_lib.check(report.references, settings)
    made = make_problem(problem, where.data, schedule)
    first = make_program(made, optimizer, batches, runs_lib.AVERAGE)
    together = runs_together(first, schedule, len(runs_of))
    # Those with references are made again when these are known.
    unknown = dict.fromkeys(made.task_names, 0.0)
    programs = runs_lib.Programs(first)
    programs.check([resolved(method, made, unknown) for method in settings])
    output_path = paths.absolute(where.output)
    config_text = where.config_text or configuration(
        "compare",
        problem=type(made).__name__,
        methods=[described(method) for method in settings],
        seeds=list(seeds),
        schedule=schedule,
        batches=batches,
        **({"frozen": first.engine.frozen} if first.engine.frozen else {}),
    )
    with opened(where, config_text, problem=made, optimizer=optimizer) as (ready, kept_text):
        first.check_evaluation()
        losses, perplexities = references_lib.load(
            report.references, made, Directories(output_path, where.data, ready=ready)
        )
        trials = {
            run_name: (trial, Trial(resolved(trial.method, made, losses or unknown), trial.seed))
            for run_name, trial in runs_of.items()
        }
        more = {"references": perplexities, "task_sizes": _sizes(made)}
        experiment = runs_lib.Experiment(
            output_path,
            schedule,
            lambda runs: make_record(made, runs, report, **more),
            kept_text,
            callback,
        )
        return experiment.report(experiment.train(trials, programs, together=together), config_text)


@contextlib.contextmanager
def opened(
    where: Directories, config_text: str, **parts: Any
) -> Iterator[tuple[Callable[[], None], str]]:
    """The directory of an experiment, looked at, and closed in the end.

    Args:
      where: directories of the experiment.
      config_text: its configuration.
      **parts: arguments by name, for an error to name what differs in them.

    Yields:
      What to call when all is checked and before anything is written, and the configuration that is
      kept.
    """
    if where.ready is not None:
        yield where.ready, config_text
        return
    kept_text = _with_outlines(config_text, **parts)
    output = output_dir_lib.OutputDir(where.output, kept_text, overwrite=where.overwrite)
    output.check()
    with contextlib.closing(output):
        yield output.claim, kept_text


def check_parts(**parts: Any) -> None:
    """Raises ``ValueError`` unless a schedule, batches and a report are of their classes."""
    kinds = {"schedule": Schedule, "batches": Batches, "report": Report}
    for name, part in parts.items():
        checks.instance(name, part, kinds[name], f"@{kinds[name].__name__}()")


def make_problem(
    problem: Problem | Callable[..., Problem], data_dir: str | None, schedule: Schedule
) -> Problem:
    """The problem, made with ``data_dir`` if it is a function.

    Raises:
      ValueError: if it isn't a problem, or lacks a split that the schedule has measured.
    """
    if callable(problem):
        checks.function("problem", problem, "data_dir", example="@classification")
        problem = problem(data_dir=data_dir)
    expected = "a Problem or a function of data_dir that makes one, such as @classification"
    checks.require(isinstance(problem, Problem), "problem", expected, problem)
    problem.check_names()
    problem.check_rows()
    if schedule.patience is not None and "validation" not in problem.splits:
        raise ValueError(
            "patience must be None for a problem without the split 'validation', but it is "
            f"{schedule.patience}."
        )
    for split in ("validation", "test") if schedule.test != "always" else ():
        if split not in problem.splits:
            raise ValueError(
                f"test must be 'always' for a problem without the split {split!r}, but it is "
                f"{schedule.test!r}."
            )
    return problem


def make_program(
    problem: Problem,
    optimizer: optax.GradientTransformation,
    batches: Batches,
    method: Method,
) -> Program:
    """The program of the engine that suits a problem.

    Raises:
      ValueError: if something doesn't fit.
    """
    if batches.layout is None and problem.on_device is not None and jax.process_count() == 1:
        return StackedEngine(problem, optimizer, batches).program(method)
    return MeshedEngine(problem, optimizer, batches).program(method)


def make_record(
    problem: Problem, runs: Sequence[results.Run], report: Report, **more: Any
) -> results.Results:
    """The record of some runs of a problem on this machine, with ``more`` of its fields."""
    names = list(problem.measured)
    directions = {metric.name: metric.direction(names) for metric in problem.metrics}
    metric = problem.metrics[0].name
    return results.Results(
        experiment=report.name,
        description=report.description,
        select_by=report.select_by,
        task_names=names,
        metric=metric,
        higher_is_better=bool(directions[metric]),
        directions=directions,
        runs=runs,
        versions=provenance.versions(),
        device=provenance.device(),
        occasion=provenance.occasion(),
        data=problem.identity,
        trained_names=[] if problem.measured_names is None else list(problem.task_names),
        **more,
    )


def runs_together(program: Program, schedule: Schedule, num_runs: int) -> int:
    """How many runs to train at a time."""
    asked = program.batches.runs_together
    alone = isinstance(program, MeshedProgram) or schedule.test == "best"
    if alone and (asked or 1) > 1:
        raise ValueError(
            "Batches.runs_together must be 1 for runs on a mesh or with test='best', but it is "
            f"{asked}."
        )
    if alone or (asked is None and jax.default_backend() == "cpu"):
        return 1
    return asked or num_runs


def resolved(method: Method, problem: Problem, losses: Mapping[str, float]) -> Method:
    """The method with what only the data and the references can tell."""
    known: dict[str, Any] = {"reference_losses": tuple(losses.values())}
    if problem.sizes is not None:
        sizes = np.asarray(problem.sizes)
        known["sizes"] = tuple((sizes / sizes.sum()).tolist())
    lacking = weighting.from_data(method.weighting, method.hyperparameters)
    for name in lacking:
        if name not in known:
            raise ValueError(
                f"methods: {method.name!r} needs {name} in its hyperparameters, because the "
                "problem doesn't know them."
            )
    given = {**method.hyperparameters, **{name: known[name] for name in lacking}}
    return dataclasses.replace(method, hyperparameters=given)


def _sizes(problem: Problem) -> dict[str, float]:
    if problem.sizes is None:
        return {}
    return dict(zip(problem.task_names, np.asarray(problem.sizes).tolist(), strict=True))


def described(method: Method) -> dict[str, Any]:
    """A method as the directory's configuration holds it."""
    return {
        "name": method.name,
        "weighting": weighting.described(method.weighting),
        **method.settings(),
    }


def _with_outlines(config_text: str, **parts: Any) -> str:
    """A configuration with what some arguments are made of, for an error to name what differs."""
    lines = [x for name, part in parts.items() for x in outline.lines(f"# {name}", part)]
    return "\n".join([config_text.rstrip("\n"), *lines, ""])


def configuration(called: str, **arguments: Any) -> str:
    """The arguments of a call from Python, as the directory's configuration holds them."""
    lines = [f"{called}.{name} = {value!r}" for name, value in arguments.items()]
    return "\n".join([f"run.experiment = @{called}", *lines]) + "\n"

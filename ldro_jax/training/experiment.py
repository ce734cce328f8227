"""Experiments: every method with every seed on the same tasks, and a report of it all."""

import collections
import hashlib
import itertools
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import optax
import tqdm
from absl import logging
from flax import linen as nn

from ldro_jax import checks, reporting
from ldro_jax.records import provenance, results
from ldro_jax.reporting import tables
from ldro_jax.tasks import base, sampling
from ldro_jax.training import loop, processes
from ldro_jax.training import runs as runs_lib
from ldro_jax.training.method import Method
from ldro_jax.training.program import Program, Trial
from ldro_jax.training.schedule import Schedule


class RunsStoppedError(RuntimeError):
    """Some runs of an experiment ended before their last step."""


def multitask_classification(
    *,
    output_dir: pathlib.Path,
    data_dir: str | None,
    config_text: str,
    name: str,
    description: str,
    load_data: Callable[..., base.MultitaskData],
    model: Callable[..., nn.Module],
    methods: Sequence[Method | Sequence[Method]],
    seeds: Sequence[int],
    optimizer: optax.GradientTransformation,
    batch_size: int,
    schedule: Schedule,
    sampler: str = "balanced",
    runs_together: int | None = None,
    ready: Callable[[], None] | None = None,
) -> results.Results:
    """Trains a classifier on many tasks with several methods, and compares them.

    A run that is finished is kept in ``runs/``, and one that was interrupted goes on from its
    newest checkpoint, so the same command after an interruption ends with the same numbers.

    Args:
      output_dir: where everything goes; it exists.
      data_dir: passed to ``load_data``.
      config_text: the resolved configuration, for the report.
      name: short name of the experiment.
      description: a paragraph for the report.
      load_data: ``(data_dir=...) -> MultitaskData``.
      model: ``(num_classes=...) -> flax.linen.Module``.
      methods: what to compare; the first is the baseline. A sequence among them (a grid) counts as
        its elements.
      seeds: a run for each.
      optimizer: chained after each method's weighting.
      batch_size: examples of all tasks in a batch.
      schedule: lengths and intervals.
      sampler: see :class:`~ldro_jax.training.program.Program`.
      runs_together: how many runs that differ in rates and seeds alone to train at a time, as one
        program; halved while they don't fit into memory. By default all of them on an accelerator,
        and one on CPU, where it makes no difference to the speed.
      ready: called once, when all is checked and before anything is written.

    Returns:
      The record, as it is in ``results.json``.

    Raises:
      RunsStoppedError: at the end, after the report, if some runs never recovered from losses that
        are not finite.
      ValueError: if there is nothing to run, an argument is not what it must be, two runs would
        have the same name, or several processes run it together.
    """
    processes.require_one()
    runs_lib.check_description(name, description, schedule)
    checks.function("load_data", load_data, "data_dir", example="@digits.load")
    checks.function("model", model, "num_classes", example="@MLP")
    checks.instance("optimizer", optimizer, optax.GradientTransformation, "@optax.sgd()")
    checks.integer("batch_size", batch_size)
    checks.one_of("sampler", sampler, sorted(sampling.SAMPLERS))
    settings, runs_of = runs_lib.list_runs(methods, seeds)
    if runs_together is None:
        runs_together = 1 if jax.default_backend() == "cpu" else len(runs_of)
    checks.integer("runs_together", runs_together)
    data = load_data(data_dir=data_dir)
    gives_data = "a function that gives a MultitaskData, such as @digits.load"
    checks.require(isinstance(data, base.MultitaskData), "load_data", gives_data, load_data)
    network = model(num_classes=data.num_classes)
    gives_module = "a function that gives a flax.linen.Module, such as @MLP"
    checks.require(isinstance(network, nn.Module), "model", gives_module, model)
    first = Program(
        runs_lib.AVERAGE,
        data,
        network,
        optimizer,
        batch_size=batch_size,
        sampler=sampler,
        schedule=schedule,
    )
    programs = runs_lib.programs_of(settings, first)
    if ready is not None:
        ready()

    def record(runs):
        return results.Results(
            experiment=name,
            description=description,
            task_names=list(data.task_names),
            metric="accuracy",
            higher_is_better=True,
            runs=runs,
            versions=provenance.versions(),
            device=provenance.device(),
            data=data.identity,
        )

    def earlier(run_name):
        file, trial = files[run_name], runs_of[run_name]
        return runs_lib.finished_run(file, trial, schedule.train_steps, data.identity)

    files = {run_name: output_dir / "runs" / f"{run_name}.json" for run_name in runs_of}
    finished = {n: run for n in files if (run := earlier(n)) is not None}
    waiting = _groups({n: t for n, t in runs_of.items() if n not in finished}, runs_together)
    while waiting:
        group = waiting.popleft()
        try:
            runs = _train(group, programs, output_dir, f"{len(finished)}/{len(runs_of)}")
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
        for run_name, run in zip(group, runs, strict=True):
            results.save_results(record([run]), files[run_name])
            finished[run_name] = run
    return finish(record([finished[n] for n in runs_of]), output_dir, config_text)


def _groups(trials: Mapping[str, Trial], size: int) -> collections.deque[dict[str, Trial]]:
    """Which runs to train together: those that share a program, at most so many."""
    if size == 1:  # in the order they are listed, so that an unfinished sweep has whole seeds
        return collections.deque({name: trial} for name, trial in trials.items())
    sharing: dict[tuple, dict[str, Trial]] = {}
    for name, trial in trials.items():
        sharing.setdefault(trial.method.program(), {})[name] = trial
    return collections.deque(
        dict(part) for names in sharing.values() for part in _chunks(names.items(), size)
    )


def _chunks(items: Iterable, size: int) -> Iterator[tuple]:
    items = iter(items)
    while chunk := tuple(itertools.islice(items, size)):
        yield chunk


def _train(group, programs, output_dir, done) -> list[results.Run]:
    names, trials = list(group), list(group.values())
    program = programs[trials[0].method.program()]
    folder = names[0]
    if len(group) > 1:
        folder = "group-" + hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]
    first = f"{trials[0].method.name}, seed {trials[0].seed}"
    label = f"[{done}] {first}" + (f" and {len(group) - 1} more" if len(group) > 1 else "")
    total = program.schedule.train_steps * len(group)
    with tqdm.tqdm(total=total, desc=label, unit="step") as progress:
        return loop.train(
            program,
            trials,
            checkpoint_dir=output_dir / "checkpoints" / folder,
            tensorboard_dirs=[output_dir / "tensorboard" / name for name in names],
            progress=progress,
        )


def finish(
    record: results.Results,
    output_dir: pathlib.Path,
    config_text: str,
    extra_sections: Sequence[tuple[str, str, Any]] = (),
) -> results.Results:
    """Writes ``results.json``, the figures and the report, and prints the table.

    Args:
      record: what came out.
      output_dir: where everything goes.
      config_text: the resolved configuration.
      extra_sections: further sections of the report, see :func:`ldro_jax.reporting.write_report`.

    Returns:
      The record.

    Raises:
      RunsStoppedError: if a run ended early, after everything is written.
    """
    try:
        reporting.write_report(
            record, output_dir, config_text=config_text, extra_sections=extra_sections
        )
    except ImportError as error:
        logging.warning("No report is written: %s", error)
    # Last, because a directory that has it counts as finished.
    results.save_results(record, output_dir / "results.json")
    print(tables.headline_text(record))
    print(f"Everything is in {output_dir}; look at {output_dir / 'report.html'}.")
    require_complete(record)
    return record


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

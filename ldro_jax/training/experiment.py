"""Experiments: every method with every seed on the same tasks, and a report of it all."""

import collections
import dataclasses
import importlib.metadata
import os
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax
import tqdm
from absl import logging
from flax import linen as nn

from ldro_jax import reporting
from ldro_jax.reporting import results, tables
from ldro_jax.tasks import base
from ldro_jax.training import loop
from ldro_jax.training.method import Method


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
    schedule: loop.Schedule,
    sampler: str = "balanced",
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
      sampler: see :class:`~ldro_jax.training.loop.Program`.

    Returns:
      The record, as it is in ``results.json``.

    Raises:
      RunsStoppedError: at the end, after the report, if some runs never recovered from losses that
        are not finite.
      ValueError: if there is nothing to run, or two runs would have the same name.
    """
    if isinstance(seeds, int) or not all(isinstance(seed, int) for seed in seeds):
        raise ValueError(f"The seeds must be integers, such as (0, 1, 2), but they are {seeds!r}.")
    settings = [m for entry in methods for m in ([entry] if isinstance(entry, Method) else entry)]
    if not settings or not seeds:
        raise ValueError("An experiment needs at least one method and one seed.")
    names = collections.Counter(method.name for method in settings)
    runs_of = {
        _run_name(method, seed, several=names[method.name] > 1): (method, seed)
        for seed in seeds
        for method in settings
    }
    if len(runs_of) < len(settings) * len(seeds):
        raise ValueError(
            "Two runs have the same name. Give each method its own name or setting, and list each "
            f"seed once: methods {list(names)}, seeds {list(seeds)}."
        )
    data = load_data(data_dir=data_dir)
    # Once for all methods.
    data = dataclasses.replace(
        data, **jax.device_put({name: getattr(data, name) for name in ("train", *loop.SPLITS)})
    )
    programs: dict[tuple, loop.Program] = {}
    for method in settings:
        if method.program() in programs:
            programs[method.program()].with_method(method)
            continue
        programs[method.program()] = loop.Program(
            method,
            data,
            model(num_classes=data.num_classes),
            optimizer,
            batch_size=batch_size,
            sampler=sampler,
            schedule=schedule,
        )

    def record(runs):
        return results.Results(
            experiment=name,
            description=description,
            task_names=list(data.task_names),
            metric="accuracy",
            higher_is_better=True,
            runs=runs,
            versions=versions(),
            device=device(),
        )

    runs = []
    for index, (run_name, (method, seed)) in enumerate(runs_of.items(), 1):
        file = output_dir / "runs" / f"{run_name}.json"
        if (finished := _finished_run(file)) is not None:
            runs.append(finished)
            continue
        label = f"[{index}/{len(runs_of)}] {method.name}, seed {seed}"
        with tqdm.tqdm(total=schedule.train_steps, desc=label, unit="step") as progress:
            run = loop.train(
                programs[method.program()].with_method(method),
                seed,
                checkpoint_dir=output_dir / "checkpoints" / run_name,
                tensorboard_dir=output_dir / "tensorboard" / run_name,
                progress=progress,
            )
        results.save_results(record([run]), file)
        runs.append(run)
    return finish(record(runs), output_dir, config_text)


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
    stopped = [f"{r.method}, seed {r.seed}: {r.stopped}" for r in record.runs if r.stopped]
    if stopped:
        raise RunsStoppedError("Some runs ended early.\n" + "\n".join(stopped))
    return record


def versions() -> dict[str, str]:
    """Versions of the packages that numbers depend on.

    Returns:
      Versions by package name; packages that aren't installed are left out.
    """
    found = {}
    for package in ("ldro-jax", "jax", "jaxlib", "flax", "optax", "numpy"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def device() -> dict[str, Any]:
    """What the numbers were computed on.

    Returns:
      Platform, kind and count of the devices, and the number of processor cores.
    """
    first = jax.devices()[0]
    return {
        "platform": first.platform,
        "kind": first.device_kind,
        "count": jax.device_count(),
        "cpu_cores": os.cpu_count(),
    }


def _finished_run(file: pathlib.Path) -> results.Run | None:
    if not file.exists():
        return None
    try:
        return results.load_results(file).runs[0]
    except (results.ResultsError, IndexError) as error:
        logging.warning("The record of a finished run can't be used, so it runs again. %s", error)
        return None


def _run_name(method: Method, seed: int, *, several: bool) -> str:
    """A name for files: the method's, without what a file system may not like."""
    setting = "".join(f"-{k}={v}" for k, v in method.settings().items()) if several else ""
    return f"{re.sub(r'[^A-Za-z0-9._=-]+', '_', method.name + setting)}-seed{seed}"

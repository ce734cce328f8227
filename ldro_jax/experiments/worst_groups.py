"""The worst group: ways to train with groups that are known, in part or not at all, compared."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import optax

from ldro_jax.experiments import approaches as approaches_lib
from ldro_jax.experiments import compare as compare_lib
from ldro_jax.experiments import runs as runs_lib
from ldro_jax.experiments.approaches import DFR, JTT, Approach, Way
from ldro_jax.experiments.arguments import Directories, Report
from ldro_jax.experiments.trainings import Trainings
from ldro_jax.records import results
from ldro_jax.runtime import checks, paths
from ldro_jax.tasks.grouped import GroupedData
from ldro_jax.tasks.grouped.variants import EVERYTHING, of_class, with_totals
from ldro_jax.training.batches import Batches
from ldro_jax.training.schedule import Schedule

__all__ = ["DFR", "JTT", "Approach", "Way", "compare_worst_groups"]


def compare_worst_groups(
    data: GroupedData | Callable[..., GroupedData],
    approaches: Sequence[Way],
    seeds: Sequence[int],
    optimizer: optax.GradientTransformation,
    *,
    model: Callable[..., Any],
    schedule: Schedule,
    batches: Batches,
    output_dir: str | os.PathLike[str] | Directories,
    report: Report = Report("worst_groups"),  # noqa: B008
    resample: bool = False,
) -> results.Results:
    """Trains on data with groups in several ways, and compares average and worst group.

    All runs are evaluated on validation and test at each evaluation, and the report shows for each
    approach the setting and the checkpoint that are best on validation: by the worst group, by the
    average, and by the worst class, which needs no groups there.

    Runs that are finished are kept, and one that was interrupted goes on, as with
    :func:`ldro_jax.compare`. The parameters of one are those of ``load(output_dir, method="JTT
    (first steps=50, factor=20)", seed=0, step="last")``.

    Args:
      data: examples with classes and attributes; or a function of ``data_dir`` that loads them.
      approaches: what to compare, the first with all others.
      seeds: a run of each setting of each approach for each; also what is drawn for it, such as a
        balanced subset.
      optimizer: of each approach that has none of its own.
      model: ``(num_classes=...)`` to a model from inputs to logits ``[R, classes]``.
      schedule: lengths and intervals of each run.
      batches: rows of a batch, the same number of each group or class that training knows.
      output_dir: where everything goes; or a :class:`Directories`.
      report: name and description of the experiment. Its ``select_by`` is for the parts of the
        report that speak of the end of training.
      resample: whether each seed has data of its own, so that differences between seeds are also
        those between samples; ``data`` is then called with ``seed`` as well. By default all have
        the same.

    Returns:
      The record, with approaches as methods and the groups to evaluate as tasks.

    Raises:
      FileExistsError: if the directory holds something else than an experiment, or is in use.
      OtherRunError: if it holds one of these runs that was made with something else.
      RunsStoppedError: if losses of a run never became finite again.
      ValueError: if an argument is not what it must be.
    """
    where = Directories.of(output_dir)
    compare_lib.check_parts(schedule=schedule, batches=batches, report=report)
    always = schedule.test == "always" and schedule.patience is None
    expected = "one with test='always' and without patience, as checkpoints are chosen afterwards"
    checks.require(always, "schedule", expected, schedule)
    checks.sequence("approaches", approaches, "approaches, such as [@erm/Approach(), @JTT()]")
    for approach in approaches:
        checks.instance("approaches", approach, Way, "@erm/Approach()")
    approaches_lib.check_names(approaches)
    checks.function("model", model, "num_classes", example="@MLP")
    seeds = checks.seeds("seeds", seeds)
    own = _load(data, seeds, where.data, resample=resample)
    # The same object stays the same for all seeds.
    extended = {id(x): with_totals(x) for x in own.values()}
    trainings = Trainings(
        {seed: extended[id(x)] for seed, x in own.items()},
        model,
        optimizer,
        batches=batches,
        schedule=schedule,
    )
    first = own[seeds[0]]
    problem = trainings.problem(trainings.data[seeds[0]], "groups")
    for approach in approaches:
        try:
            approach.check(trainings)
        except ValueError as error:
            raise ValueError(f"approaches: {approach.name!r} can't be trained. {error}") from error
    config_text = where.config_text or compare_lib.configuration(
        "compare_worst_groups",
        approaches=[approach.described for approach in approaches],
        seeds=seeds,
        schedule=schedule,
        batches=batches,
    )
    with compare_lib.opened(where, config_text, problem=problem, optimizer=optimizer) as opened:
        ready, kept_text = opened
        ready()
        output_path = paths.absolute(where.output)

        def record(runs):
            return compare_lib.make_record(problem, runs, report, task_sizes=_sizes(first))

        def experiment(schedule):
            return runs_lib.Experiment(output_path, schedule, record, kept_text)

        trainings.begin(output_path, experiment, problem.task_names)
        runs = [run for approach in approaches for run in approach.train(trainings)]
        return experiment(schedule).report(
            runs, config_text, lambda record: _sections(record, own, trainings.data, approaches)
        )


def _load(
    data: GroupedData | Callable[..., GroupedData],
    seeds: Sequence[int],
    data_dir: str | None,
    *,
    resample: bool,
) -> dict[int, GroupedData]:
    """The data of each seed, checked."""
    checks.flag("resample", resample)
    expected = "what tasks.grouped.spurious_digits() gives"
    if not callable(data):
        checks.instance("data", data, GroupedData, expected)
        checks.require(not resample, "resample", "False for data that is loaded", resample)
        return dict.fromkeys(seeds, data)
    needed = ("data_dir", "seed") if resample else ("data_dir",)
    checks.function("data", data, *needed, example="@spurious_digits")
    if not resample:
        found = dict.fromkeys(seeds, data(data_dir=data_dir))
    else:
        found = {seed: data(data_dir=data_dir, seed=seed) for seed in seeds}
    for each in found.values():
        checks.instance("data", each, GroupedData, expected)
    names = {(each.group_names, each.evaluation_names) for each in found.values()}
    checks.require(len(names) == 1, "data", "of the same groups with each seed", sorted(names))
    # What is compiled for one seed serves the others.
    inputs = {
        tuple((*x.inputs.shape[1:], str(x.inputs.dtype)) for x in (d.train, d.validation, d.test))
        for d in found.values()
    }
    expected = "of the same shape and dtype with each seed"
    checks.require(len(inputs) == 1, "inputs of data", expected, sorted(inputs, key=str))
    return found


def _sizes(data: GroupedData) -> dict[str, float]:
    """Training examples of each group to evaluate, where they are known."""
    if data.evaluation is not None or data.training_shares is None:
        return {}
    sizes = np.rint(data.training_shares * len(data.train.classes))
    return dict(zip(data.group_names, sizes.tolist(), strict=True))


def _sections(
    record: results.Results,
    own: Mapping[int, GroupedData],
    data: Mapping[int, GroupedData],
    approaches: Sequence[Way],
) -> list[tuple[str, str, Any]]:
    """What the report says besides how the approaches compare at the end of training.

    ``own`` is the data as it was loaded, ``data`` with all that is measured.
    """
    try:
        from ldro_jax.reporting import worst_groups as worst_groups_report
    except ImportError:  # without the extra "plots" there is no report either
        return []
    groups = {
        seed: worst_groups_report.Groups(
            own[seed].evaluation_names,
            _average(x, "validation"),
            _average(x, "test"),
            _by_training_shares(own[seed]),
            _classes(x),
        )
        for seed, x in data.items()
    }
    return worst_groups_report.sections(
        record, groups, {approach.name: approach.knows for approach in approaches}
    )


def _average(data: GroupedData, split: str) -> dict[str, float]:
    """What each group counts in the average over the examples of a split."""
    if data.evaluation is not None:
        return {EVERYTHING: 1.0}
    sizes = data.counts(split)
    return dict(zip(data.group_names, (sizes / sizes.sum()).tolist(), strict=True))


def _classes(data: GroupedData) -> list[dict[str, float]]:
    """What each group counts in the accuracy of each class on validation."""
    if data.evaluation is not None:
        return [{of_class(name): 1.0} for name in data.class_names]
    sizes = data.counts("validation").reshape(len(data.class_names), -1)
    shares = sizes / sizes.sum(axis=1, keepdims=True)
    groups = np.reshape(data.group_names, sizes.shape)
    return [
        dict(zip(g.tolist(), s.tolist(), strict=True)) for g, s in zip(groups, shares, strict=True)
    ]


def _by_training_shares(data: GroupedData) -> dict[str, float] | None:
    """What each group counts in an average by the shares of training, where these are known."""
    if data.evaluation is not None or data.training_shares is None:
        return None
    return dict(zip(data.group_names, data.training_shares.tolist(), strict=True))

"""The saved record of an experiment: what was run, and what came out.

One experiment is one `results.json`: some methods, each over some seeds, on the same tasks. Tables,
figures and the report are pure functions of this record, so they can be made again, long after the
training, on a machine without an accelerator.

Evaluations are columns of a table. The numbers of each evaluation and task would be slow and large
in JSON, so `arrays` of each run holds them: the text (base64) of a file that `numpy.load` reads. In
it are `weights/steps` and `weights/values`, the same of every other series, and `per_task/NUMBER`,
a row for each evaluation whose tasks are `per_task[NUMBER]`; `per_task` of an evaluation is this
number. All is in one file, so that no second one can be lost or disagree with it.

In JSON a number that is not finite is `null`, and comes back as NaN. Records of format 1, which had
all numbers in JSON, are read as well.
"""

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ldro_jax.records import arrays, relative, shown, tidy
from ldro_jax.records import best as best_lib
from ldro_jax.records.files import ResultsError, read_json, write_json
from ldro_jax.records.json_types import plain
from ldro_jax.runtime import paths

FORMAT = 2
# The formats that are read.
FORMATS = (1, FORMAT)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The metric of every task at one step of one run.

    Attributes:
      step: training steps done before this evaluation.
      split: "train", "validation" or "test".
      metric: what was measured, e.g. "accuracy".
      per_task: the value of each task, by task name; NaN where it is not finite.
      average: the plain mean over the tasks.
      worst: the value of the worst task.
      worst_task: the name of the worst task.
    """

    step: int
    split: str
    metric: str
    per_task: Mapping[str, float]
    average: float
    worst: float
    worst_task: str


@dataclasses.dataclass(frozen=True, eq=False)
class Series:
    """Arrays logged at some training steps.

    Attributes:
      steps: integers, shape [S].
      values: floats, shape [S, N] (one number per task) or [S, N, N] (one per pair of tasks).

    Raises:
      ValueError: if there is not one value per step.
    """

    steps: Any
    values: Any

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", np.asarray(self.steps, dtype=np.int64).reshape(-1))
        object.__setattr__(self, "values", np.asarray(self.values, dtype=np.float64))
        found = self.values.shape[0] if self.values.ndim else None
        if found != len(self.steps):
            raise ValueError(
                f"A series needs one value per step: found {len(self.steps)} steps and values of "
                f"shape {self.values.shape}."
            )

    def __repr__(self) -> str:
        return f"<Series: {len(self.steps)} steps, values {list(self.values.shape)}>"


@dataclasses.dataclass(frozen=True)
class Run:
    """One training run: one method, one setting, one seed.

    Attributes:
      method: the name shown in tables and figures, e.g. "L-DRO".
      hyperparameters: what tells this setting from others of the same method.
      seed: the seed; runs of different methods with the same seed are compared as a pair.
      num_steps: training steps asked for.
      weighting: the method's name in the library, if it has one.
      seconds_per_step: the time of one training step, or None.
      evaluations: in the order of their steps.
      weights: the weight of every task over training, values [S, N], or None.
      signal: the share of each task's squared minibatch gradient that is signal, values [S, N], NaN
        where it wasn't measured yet; or None.
      losses: the training loss of every task, values [S, N], or None.
      interaction: the raw Gram matrix `A_ij = <grad_i, grad_j>`, values [S, N, N], or None.
      diagnostics: the numbers of `ldro_jax.transform.diagnostics.NAMES` at some steps, values
        [S, 4], or None.
      descent: by how much each loss was to fall so far, to first order and for a learning rate of
        1, values [S, N]; or None.
      affinity: what tasks do to each other, the mean so far, values [S, K, N, N] for the K kinds
        of `ldro_jax.grouping.KINDS`, the affected task in the row; None unless it was tracked.
      path: what the problem observed of the model after every step, values [S, D], or None.
      nonfinite_losses: how many non-finite losses each task had, by name; tasks with none left out.
      unmeasured_interactions: how often the interactions of each task could not be measured, by
        name: its gradient was not finite or its norm too large or too small; tasks with none left
        out.
      negative_losses: how often the loss of each task was below zero though the method needs
        positive ones, by name; tasks with none left out.
      unsolved_steps: in how many steps the method gave no weights: its solver ended without a
        solution, and they were the best that it had; or they weren't finite, and stayed.
      stopped: the error that ended the run before its last step, or None.
      early_stop: the step at which the schedule's patience ended the run, or None.
    """

    method: str
    seed: int
    num_steps: int
    hyperparameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seconds_per_step: float | None = None
    evaluations: Sequence[Evaluation] = ()
    weights: Series | None = None
    signal: Series | None = None
    losses: Series | None = None
    interaction: Series | None = None
    diagnostics: Series | None = None
    descent: Series | None = None
    affinity: Series | None = None
    path: Series | None = None
    nonfinite_losses: Mapping[str, int] = dataclasses.field(default_factory=dict)
    unmeasured_interactions: Mapping[str, int] = dataclasses.field(default_factory=dict)
    negative_losses: Mapping[str, int] = dataclasses.field(default_factory=dict)
    unsolved_steps: int = 0
    stopped: str | None = None
    early_stop: int | None = None
    weighting: str = ""

    def __repr__(self) -> str:
        end = f", ended at step {self.early_stop}" if self.early_stop is not None else ""
        end += f", stopped: {self.stopped}" if self.stopped else ""
        return (
            f"<Run of {self.method!r}, {dict(self.hyperparameters)}, seed {self.seed}: "
            f"{self.num_steps} steps, {len(self.evaluations)} evaluations{end}>"
        )


@dataclasses.dataclass(frozen=True)
class Results:
    """One experiment: its runs and where they were made.

    Attributes:
      experiment: a short name.
      description: one paragraph in plain words.
      task_names: the tasks, in the order of every [N] array; or what was measured, where that is
        something else.
      trained_names: the tasks, where other things were measured; then these are those of every
        array.
      metric: the metric that is compared, e.g. "accuracy" or "perplexity".
      higher_is_better: the direction of `metric`; where that of its tasks differs, true, as average
        and worst value then are those of values with a minus where lower is better.
      runs: all runs.
      versions: package versions by name.
      device: `platform`, `kind` and `count` of the accelerator, `cpu_cores` and `processor`.
      occasion: `date` and `command` of the call that made it, and the library's `commit` if it is
        known.
      references: by split, then by task name, the value of `metric` that a model has which was
        trained on that task alone; NaN, or left out, where there is no such model.
      task_sizes: how much training data each task has, by name, e.g. in tokens.
      select_by: "worst" or "average": what on validation decides which setting of each method the
        report shows.
      data: what tells the data from other data of the same tasks.
      directions: of each metric, by name, whether higher is better; by task where they differ.
      directory: where it is, which isn't a part of the record.

    Raises:
      ValueError: if `select_by` is neither.
    """

    experiment: str
    task_names: Sequence[str]
    metric: str
    higher_is_better: bool
    runs: Sequence[Run]
    description: str = ""
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    device: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    occasion: Mapping[str, str] = dataclasses.field(default_factory=dict)
    references: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    task_sizes: Mapping[str, float] = dataclasses.field(default_factory=dict)
    select_by: str = "worst"
    data: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    directions: Mapping[str, bool | Mapping[str, bool]] = dataclasses.field(default_factory=dict)
    trained_names: Sequence[str] = ()
    directory: Path | None = dataclasses.field(default=None, compare=False)

    @property
    def tasks(self) -> Sequence[str]:
        """The tasks that were trained, in the order of every [N] array."""
        return self.trained_names or self.task_names

    def __post_init__(self) -> None:
        if self.select_by not in ("worst", "average"):
            raise ValueError(
                f"Expected select_by to be 'worst' or 'average'; found {self.select_by!r}."
            )

    def direction(self, metric: str) -> bool | Mapping[str, bool]:
        """Whether higher values of a metric are better; by task where they differ.

        Of a further metric in a record that doesn't say, it is that in which its worst values are
        the worst.
        """
        if metric in self.directions:
            return self.directions[metric]
        if metric == self.metric:
            return self.higher_is_better
        ours = (e for run in self.runs for e in run.evaluations if e.metric == metric)
        return not any(e.worst > e.average for e in ours)

    def best(self, method: str | None = None) -> "best_lib.Best":
        """The run that was best on validation by `select_by`, of all or of one method.

        Its ``params`` are what it was tested with, as :func:`ldro_jax.load` gives them.

        Raises:
          ValueError: if no run of that method has finished with a value on validation.
        """
        return best_lib.of(self, method)

    def delta_p(self, *, baseline: str | None = None) -> "relative.DeltaP | None":
        """Δp of each method to a baseline; see :func:`ldro_jax.records.relative.delta_p`."""
        return relative.delta_p(self, baseline=baseline)

    def to_frame(self, *, per_task: bool = True) -> Any:
        """A pandas ``DataFrame`` of all evaluations.

        The columns are method, setting (the method, with what differs where it has several
        settings), one for each hyperparameter, seed, finished (whether the run reached its end),
        step, split, metric, task and value. Those of a compact record lack the tasks of all but the
        last evaluations.

        Args:
          per_task: one row for each task. Otherwise one for each evaluation, with average, worst
            and worst_task in place of task and value: among the tasks these would be counted twice.

        Raises:
          ImportError: if pandas isn't installed, which the extras ``trainer`` and ``plots`` bring.
        """
        return tidy.frame(self, per_task=per_task)

    def to_csv(self, path: str | os.PathLike[str], *, per_task: bool = True) -> Path:
        """Writes :meth:`to_frame` as a CSV file, without the index, and returns its path."""
        return tidy.write_csv(self, path, per_task=per_task)

    def to_latex(self, *, baseline: str | None = None) -> str:
        r"""The table of the report's summary, a ``tabular`` for the package ``booktabs``.

        Each method has one setting, the best on validation, as in the report. The best of a column
        is bold, and ± is the standard deviation over seeds.

        Args:
          baseline: what Δp and the time of a step are relative to; by default the method that
            trains on the average loss.

        Raises:
          ValueError: if there is no method of the name ``baseline``.
        """
        from ldro_jax import reporting  # which is above records, and makes the same table

        return reporting.summary(self, baseline=baseline).latex()

    def __repr__(self) -> str:
        return shown.line(self)

    def __str__(self) -> str:
        return shown.table(self).text()

    def _repr_html_(self) -> str:
        return shown.table(self).html()


def summarise_evaluation(
    step: int,
    split: str,
    metric: str,
    task_names: Sequence[str],
    values: Sequence[float] | np.ndarray,
    higher_is_better: bool | Mapping[str, bool],
) -> Evaluation:
    """Makes an evaluation entry from one value per task.

    A value that is not finite is worse than any number: that task is the worst one, and neither the
    average nor the worst value is a number. Of equal worst values the first task is named.

    Args:
      step: training steps done.
      split: "train", "validation" or "test".
      metric: the name of what was measured.
      task_names: the N names.
      values: the N values, in the same order.
      higher_is_better: False for losses and perplexities; by task where they differ. Average and
        worst are then those of the values with a minus where lower is better.

    Returns:
      The evaluation.

    Raises:
      ValueError: if there is not exactly one value per task, or there is no task.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.shape != (len(task_names),) or not len(task_names):
        raise ValueError(
            f"Expected one value for each of the {len(task_names)} tasks; found values of shape "
            f"{array.shape}."
        )
    array = np.where(np.isfinite(array), array, np.nan)
    goodness = relative.signs(higher_is_better, task_names) * array
    worst = int(np.argmax(np.where(np.isnan(array), np.inf, -goodness)))
    compared = goodness if isinstance(higher_is_better, Mapping) else array
    return Evaluation(
        step=int(step),
        split=split,
        metric=metric,
        per_task=dict(zip(task_names, array.tolist(), strict=True)),
        average=float(np.mean(compared)),
        worst=float(compared[worst]),
        worst_task=task_names[worst],
    )


def save_results(
    results: Results, path: str | os.PathLike[str], more: Mapping[str, Any] | None = None
) -> Path:
    """Writes a record; a reader sees either the old file or the whole new one.

    Args:
      results: the record.
      path: the file, usually `.../results.json`; missing folders are made.
      more: plain types to keep beside it, which `load_results` passes over.

    Returns:
      The path written.
    """
    path = paths.make(path)
    write_json({"format": FORMAT, **to_record(results), **(more or {})}, path)
    return path


def to_record(results: Results) -> dict[str, Any]:
    """A record as plain JSON types: the same for records that a file would not tell apart."""
    record = plain(dataclasses.replace(results, runs=()))
    return {**record, "runs": [run_to_record(run) for run in results.runs]}


def run_to_record(run: Run) -> dict[str, Any]:
    """A run as plain JSON types, also one that isn't finished; `run_from_record` takes it."""
    tables: dict[tuple[str, ...], list[list[float]]] = {}
    for e in run.evaluations:
        tables.setdefault(tuple(e.per_task), []).append(list(e.per_task.values()))
    numbers = {tasks: number for number, tasks in enumerate(tables)}
    columns = {
        name: plain([getattr(e, name) for e in run.evaluations])
        for name in ("step", "split", "metric", "average", "worst", "worst_task")
    }
    columns["per_task"] = [numbers[tuple(e.per_task)] for e in run.evaluations]
    stored = {f"per_task/{i}": np.array(t, np.float64) for i, t in enumerate(tables.values())}
    for name in _SERIES:
        if (series := getattr(run, name)) is not None:
            stored |= {f"{name}/steps": series.steps, f"{name}/values": series.values}
    empty = dataclasses.replace(run, evaluations=(), **dict.fromkeys(_SERIES))
    record = {
        k: v for k, v in plain(empty).items() if k not in _SERIES and (k, v) != ("weighting", "")
    }
    return {
        **record,
        "evaluations": columns,
        "per_task": [list(tasks) for tasks in tables],
        "arrays": arrays.to_text(stored),
    }


def run_from_record(record: Mapping[str, Any]) -> Run:
    """A run from `run_to_record`; every `null` among its numbers is NaN."""
    _check_types(record, _RUN_TYPES)
    stored = arrays.from_text(record["arrays"]) if "arrays" in record else {}
    parts = {name: _series(name, record, stored) for name in _SERIES}
    rows = [
        iter([dict(zip(names, row, strict=True)) for row in stored[f"per_task/{i}"].tolist()])
        for i, names in enumerate(record.get("per_task", ()))
    ]
    table = record["evaluations"]
    if isinstance(table, dict):
        table = [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]
    evaluations = [_evaluation(e, rows) for e in table]
    return Run(**{**_known(Run, record), **parts, "evaluations": evaluations})


def load_results(path: str | os.PathLike[str]) -> Results:
    """Reads a record written by `save_results`; every `null` among its numbers is NaN.

    Raises:
      FileNotFoundError: if there is no such file.
      ResultsError: if it is not valid JSON, has another format number, or lacks a part.
    """
    record = read_json(path, *FORMATS)
    try:
        _check_types(record, _RESULTS_TYPES)
        parts = {
            "runs": [run_from_record(run) for run in record["runs"]],
            "references": {k: _numbers(v) for k, v in record.get("references", {}).items()},
            "task_sizes": _numbers(record.get("task_sizes", {})),
        }
        return Results(**{**_known(Results, record), **parts}, directory=paths.make(path).parent)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        detail = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ResultsError(
            f"Expected a complete results record in {path}; found a part that does not fit: "
            f"{detail}. Run the experiment again, or repair that part by hand."
        ) from error


def _known(cls, record):
    """The keyword arguments of `cls` in a record; a key from a later minor version is ignored."""
    return {f.name: record[f.name] for f in dataclasses.fields(cls) if f.name in record}


_RESULTS_TYPES = {
    "experiment": str,
    "task_names": list,
    "metric": str,
    "higher_is_better": bool,
    "runs": list,
}
_SERIES = (
    *("weights", "signal", "losses", "interaction"),
    *("diagnostics", "descent", "affinity", "path"),
)
_RUN_TYPES = {"method": str, "seed": int, "num_steps": int, "evaluations": list | dict}


def _check_types(record, types):
    for name, kind in types.items():
        if not isinstance(record[name], kind):
            raise TypeError(f"{name} is of type {type(record[name]).__name__}")


def _evaluation(record, rows):
    numbers = {"average": _number(record["average"]), "worst": _number(record["worst"])}
    known, tasks = _known(Evaluation, record), record["per_task"]
    per_task = next(rows[tasks]) if isinstance(tasks, int) else _numbers(tasks)
    return Evaluation(**{**known, **numbers, "per_task": per_task})


def _series(name, record, stored):
    steps, values = (stored.get(f"{name}/{part}") for part in ("steps", "values"))
    if steps is None and record.get(name):
        steps, values = record[name]["steps"], record[name]["values"]
    if steps is None or not len(steps):
        return None
    # As a float array, None becomes NaN.
    return Series(steps, np.array(values, dtype=np.float64))


def _numbers(record):
    return {name: _number(value) for name, value in record.items()}


def _number(value):
    return math.nan if value is None else float(value)

"""The saved record of an experiment: what was run, and what came out.

One experiment is one `results.json`: some methods, each over some seeds, on the same tasks. Tables,
figures and the report are pure functions of this record, so they can be made again, long after the
training, on a machine without an accelerator.

Evaluations are columns of a table. What there is of every evaluation and task would be slow and
large in JSON: these arrays are held by `arrays` of each run, the text (base64) of a file that
`numpy.load` reads: `weights/steps` and `weights/values`, the same of every other series, and
`per_task/NUMBER`, a row for each evaluation whose tasks are `per_task[NUMBER]`; `per_task` of an
evaluation is this number. One file has no second one to disagree with, or to be lost.

In JSON a number that is not finite is `null`, and comes back as NaN. Records of format 1, which had
all numbers in JSON, are read as well.
"""

import dataclasses
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ldro_jax.records import arrays
from ldro_jax.records.files import ResultsError, read_json, write_json
from ldro_jax.records.json_types import plain
from ldro_jax.records.record import Evaluation, Results, Run, Series
from ldro_jax.records.record import summarise_evaluation as summarise_evaluation
from ldro_jax.runtime import paths

FORMAT = 2
# Those that are read.
FORMATS = (1, FORMAT)


def save_results(
    results: Results, path: str | os.PathLike, more: Mapping[str, Any] | None = None
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
    record = {k: v for k, v in plain(empty).items() if k not in _SERIES}
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


def load_results(path: str | os.PathLike) -> Results:
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
        return Results(**{**_known(Results, record), **parts})
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
_SERIES = ("weights", "losses", "interaction", "diagnostics", "descent", "path")
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

"""The saved record of an experiment: what was run, and what came out.

One experiment is one `results.json`: some methods, each over some seeds, on the same tasks. Tables,
figures and the report are pure functions of this record, so they can be made again, long after the
training, on a machine without an accelerator.

A number that is not finite is stored as `null` (JSON has no NaN) and comes back as NaN.
"""

import dataclasses
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ldro_jax import paths
from ldro_jax.records.files import ResultsError, read_json, write_json
from ldro_jax.records.json_types import plain
from ldro_jax.records.record import Evaluation, Results, Run, Series, summarise_evaluation

__all__ = [
    "Evaluation",
    "Results",
    "ResultsError",
    "Run",
    "Series",
    "load_results",
    "run_from_record",
    "run_to_record",
    "save_results",
    "summarise_evaluation",
]

FORMAT = 1


def save_results(
    results: Results, path: str | os.PathLike, more: Mapping[str, Any] | None = None
) -> Path:
    """Writes a record, so that a reader sees either the old file or the whole new one.

    Args:
      results: the record.
      path: the file, usually `.../results.json`; missing folders are made.
      more: plain types to keep beside it, which `load_results` passes over.

    Returns:
      The path written.
    """
    path = paths.make(path)
    write_json({"format": FORMAT, **plain(results), **(more or {})}, path)
    return path


def run_to_record(run: Run) -> dict[str, Any]:
    """A run as plain JSON types, for a checkpoint.

    Args:
      run: the run so far.

    Returns:
      What `run_from_record` takes.
    """
    return plain(run)


def run_from_record(record: Mapping[str, Any]) -> Run:
    """A run from its record.

    Args:
      record: from `run_to_record`, or one of the runs of a results file.

    Returns:
      The run; every `null` among its numbers is NaN.
    """
    return _run(record)


def load_results(path: str | os.PathLike) -> Results:
    """Reads a record written by `save_results`.

    Args:
      path: the file.

    Returns:
      The record; every `null` among the numbers is NaN.

    Raises:
      FileNotFoundError: if there is no such file.
      ResultsError: if it is not valid JSON, has another format number, or lacks a part.
    """
    record = read_json(path, FORMAT)
    try:
        _check_types(record, _RESULTS_TYPES)
        parts = {
            "runs": [_run(r) for r in record["runs"]],
            "references": {k: _numbers(v) for k, v in record.get("references", {}).items()},
            "task_sizes": _numbers(record.get("task_sizes", {})),
        }
        return Results(**{**_known(Results, record), **parts})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
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
_RUN_TYPES = {"method": str, "seed": int, "num_steps": int, "evaluations": list}


def _check_types(record, types):
    for name, kind in types.items():
        if not isinstance(record[name], kind):
            raise TypeError(f"{name} is of type {type(record[name]).__name__}")


def _run(record):
    _check_types(record, _RUN_TYPES)
    parts = {name: _series(record.get(name)) for name in _SERIES}
    evaluations = [_evaluation(e) for e in record["evaluations"]]
    return Run(**{**_known(Run, record), **parts, "evaluations": evaluations})


def _evaluation(record):
    numbers = {"average": _number(record["average"]), "worst": _number(record["worst"])}
    known = _known(Evaluation, record)
    return Evaluation(**{**known, **numbers, "per_task": _numbers(record["per_task"])})


def _series(record):
    if not record or not len(record["steps"]):
        return None
    # As a float array, None becomes NaN.
    return Series(record["steps"], np.array(record["values"], dtype=np.float64))


def _numbers(record):
    return {name: _number(value) for name, value in record.items()}


def _number(value):
    return math.nan if value is None else float(value)

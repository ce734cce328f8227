"""A record as a table of pandas, a row for each value, which `groupby` takes as it is."""

import os
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ldro_jax.records import json_types, relative
from ldro_jax.runtime import paths

if TYPE_CHECKING:
    from ldro_jax.records.results import Results

_RUN = ("method", "setting", "seed", "finished", "step", "split", "metric")
_TASK = ("task", "value")
_OVERALL = ("average", "worst", "worst_task")


def frame(results: "Results", *, per_task: bool) -> Any:
    """See :meth:`ldro_jax.records.results.Results.to_frame`."""
    import pandas as pd  # it takes half a second, and a core install lacks it

    values = _TASK if per_task else _OVERALL
    by_label = relative.groups(results.runs)
    names = dict.fromkeys(n for runs in by_label.values() for n in runs[0].hyperparameters)
    # One that has the name of a column gets another.
    named = {n: f"hyperparameter_{n}" if n in (*_RUN, *_TASK, *_OVERALL) else n for n in names}
    columns = [*_RUN[:2], *named.values(), *_RUN[2:], *values]
    rows = []
    for label, runs in by_label.items():
        settings = [_scalar(runs[0].hyperparameters.get(name)) for name in names]
        for run in runs:
            start = (run.method, label, *settings, run.seed, run.stopped is None)
            for e in run.evaluations:
                ends = e.per_task.items() if per_task else [(e.average, e.worst, e.worst_task)]
                rows += [(*start, e.step, e.split, e.metric, *end) for end in ends]
    return pd.DataFrame(rows, columns=columns)


def write_csv(results: "Results", path: str | os.PathLike[str], *, per_task: bool) -> pathlib.Path:
    """See :meth:`ldro_jax.records.results.Results.to_csv`."""
    file = paths.make(path)
    paths.write(file, frame(results, per_task=per_task).to_csv(index=False))
    return file


def _scalar(value: Any) -> Any:
    """A hyperparameter as rows can be grouped by: lists and dictionaries are texts."""
    value = json_types.plain(value)
    return str(value) if isinstance(value, list | Mapping) else value

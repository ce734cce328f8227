"""Records of several experiments on the same tasks, put together for one report."""

import collections
import dataclasses
from collections.abc import Mapping
from typing import Any

from ldro_jax.records import provenance
from ldro_jax.records.json_types import plain
from ldro_jax.records.results import Results

# So many of the tasks that one record lacks are named.
_NAMED = 3


def join(records: Mapping[str, Results]) -> Results:
    """Puts the runs of several records into one.

    A method that several of them have gets the name of the record behind its own. What is shown
    besides the runs is that of the first record, where they differ.

    Args:
      records: by a name that tells one from another, such as that of its directory.

    Raises:
      ValueError: unless tasks, data, metric and its direction are the same; it says what differs.
    """
    names, (first, *others) = list(records), records.values()
    for name, other in zip(names[1:], others, strict=True):
        if differs := _differences(first, other):
            raise ValueError(
                f"{names[0]} and {name} can't be compared, because they have other "
                f"{'; other '.join(differs)}."
            )
    found = collections.Counter(m for r in records.values() for m in {x.method for x in r.runs})
    runs = [
        dataclasses.replace(run, method=f"{run.method} ({name})") if found[run.method] > 1 else run
        for name, record in records.items()
        for run in record.runs
    ]
    description = f"Runs of {', '.join(names)}, put together."
    machines = ", ".join(f"{provenance.machine(r.device)} ({n})" for n, r in records.items())
    if not (on_one := all(other.device == first.device for other in others)):
        description += " They were made on other devices, so the times of their steps say little."
    return dataclasses.replace(
        first,
        experiment=", ".join(dict.fromkeys(r.experiment for r in records.values())),
        description=description,
        runs=runs,
        versions=_each({name: record.versions for name, record in records.items()}),
        device=first.device if on_one else {"described": machines},
        occasion=_each({name: record.occasion for name, record in records.items()}),
        references=next((r.references for r in records.values() if any(r.references.values())), {}),
        task_sizes=next((r.task_sizes for r in records.values() if r.task_sizes), {}),
        directions={k: v for r in (*others[::-1], first) for k, v in r.directions.items()},
        directory=None,
    )


def _differences(one: Results, other: Results) -> list[str]:
    """What keeps two records from being compared, in words."""
    parts = {
        "tasks": (list(one.task_names), list(other.task_names)),
        "trained tasks": (list(one.tasks), list(other.tasks)),
        "metrics": (one.metric, other.metric),
        "directions of it": (one.direction(one.metric), other.direction(other.metric)),
    }
    if one.data and other.data:  # earlier versions didn't write it down
        keys = sorted({*one.data, *other.data} - {"task_names"})
        parts["data"] = ({k: one.data.get(k) for k in keys}, {k: other.data.get(k) for k in keys})
    if parts["trained tasks"] == parts["tasks"]:
        del parts["trained tasks"]
    return [
        f"{name} ({_only(ours, theirs)} and {_only(theirs, ours)})"
        for name, (ours, theirs) in parts.items()
        if plain(ours) != plain(theirs)
    ]


def _only(mine: Any, others: Any) -> str:
    """A value, of lists and dictionaries what the other one lacks."""
    if isinstance(mine, list) and isinstance(others, list):
        left = [x for x in mine if x not in others] or (mine if set(mine) == set(others) else [])
        more = f" and {len(left) - _NAMED} more" if len(left) > _NAMED else ""
        return ", ".join(map(str, left[:_NAMED])) + more or "no other"
    if isinstance(mine, Mapping) and isinstance(others, Mapping):
        left = {k: v for k, v in mine.items() if plain(others.get(k)) != plain(v)}
        return ", ".join(f"{k} {v}" for k, v in left.items())
    if isinstance(mine, bool):
        return "higher is better" if mine else "lower is better"
    return str(mine)


def _each(facts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Facts of some records: those that differ with the name of each record."""
    found: dict[str, Any] = {}
    for key in dict.fromkeys(k for each in facts.values() for k in each):
        values = {name: each.get(key) for name, each in facts.items()}
        same = len(set(map(str, values.values()))) == 1
        texts = [f"{value} ({name})" for name, value in values.items() if value is not None]
        found[key] = next(iter(values.values())) if same else ", ".join(texts)
    return found

"""The page of an experiment that trains: how far each run is, and the report so far."""

import collections
import dataclasses
import pathlib
import time
from collections.abc import Iterator

import pandas as pd
from absl import logging

from ldro_jax.records.results import Results
from ldro_jax.records.shown import Table
from ldro_jax.records.underway import Seen, Underway
from ldro_jax.reporting import comparison, frame, page, sections, statistics
from ldro_jax.reporting.page import Block, Section


def render(
    found: Underway,
    directory: pathlib.Path,
    now: float,
    *,
    reload: int | None = None,
    note: str = "",
) -> str:
    """The page.

    Args:
      found: what is on disk.
      directory: of the experiment.
      now: when that was looked at, in seconds since 1970.
      reload: after how many seconds a browser loads the page again.
      note: what is to be said besides.
    """
    title = found.record.experiment if found.record else directory.name
    said = f"{_written(now)}, from what is in {directory}."
    if found.is_finished:
        said += " The experiment is finished; its own report, report.html, is there."
    else:
        title += ", so far"
        said += "" if found.record else " Nothing is saved yet."
    said = " ".join(filter(None, [said, note]))
    progress = list(_progress(found))
    try:
        shown = list(_so_far(found.record)) if found.record else []
        return page.render(title, said, [*progress, *shown], reload=reload)
    except Exception as error:  # whatever so few numbers make pandas or matplotlib raise
        logging.warning("The page has no figures (%s: %s).", type(error).__name__, error)
        return page.render(title, said, progress, reload=reload)


def at(now: float, html: str, before: float) -> str:
    """The page with another time: nothing else has changed."""
    return html.replace(_written(before), _written(now), 1)


def _written(seconds: float) -> str:
    return f"Written {_clock(seconds)}"


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(seconds))


def _so_far(record: Results) -> Iterator[Section]:
    """The report so far, with the values on one split, since some runs have been tested already."""
    measured = [(e.split, e.metric) for run in record.runs for e in run.evaluations]
    rows = pd.DataFrame(measured, columns=["split", "metric"])
    split = frame.progress_split(rows[rows.metric == record.metric])
    runs = [
        dataclasses.replace(run, evaluations=[e for e in run.evaluations if e.split == split])
        for run in record.runs
    ]
    yield from sections.so_far(comparison.compare(dataclasses.replace(record, runs=runs)))


def _progress(found: Underway) -> Iterator[Section]:
    if found.record is None:
        return
    settings = frame.settings(seen.run for seen in found.runs)
    labels = {id(run): setting.label for setting in settings for run in setting.runs}
    begun = [seen for seen in found.runs if not seen.is_finished]
    done = collections.Counter(labels[id(x.run)] for x in found.runs if x.is_finished)
    blocks = []
    if begun:
        header = ["method", "seed", "step", "average", "worst task", "which task", "saved"]
        rows = [[labels[id(x.run)], *_row(x, found.record.metric)] for x in begun]
        blocks.append(Block("table", Table("", header, rows, (), (0, 5, 6))))
    if done:
        listed = ", ".join(f"{label} {n}" for label, n in done.items())
        blocks.append(Block("text", f"Finished runs: {listed}."))
    if not found.is_finished:
        note = "A run is here when it is first saved; what came after its last save isn't known."
        blocks.append(Block("note", note))
    yield Section("Runs", blocks)


def _row(seen: Seen, metric: str) -> list[str]:
    """How far a run is, with its newest values, on validation where there is such a split."""
    ours = [e for e in seen.run.evaluations if e.metric == metric]
    last = [e for e in ours if e.split == "validation"] or ours
    values = ["", "", ""]
    if last:
        numbers = last[-1].average, last[-1].worst
        decimals = statistics.decimals_for(numbers)
        values = [*(statistics.number(x, decimals) for x in numbers), last[-1].worst_task]
    return [str(seen.run.seed), f"{seen.step} of {seen.run.num_steps}", *values, _clock(seen.time)]

"""What is on disk of an experiment while it trains, read without disturbing it.

Finished runs are in ``runs/``, and the newest checkpoint of any other carries its record so far.
Nothing is locked, and what is moved or deleted meanwhile is left out.
"""

import ast
import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from absl import logging

from ldro_jax.records import files, kept, output_dir, results
from ldro_jax.records.results import Results, Run


@dataclasses.dataclass(frozen=True)
class Seen:
    """A run as it was saved last.

    Attributes:
      run: its record so far.
      step: the step of that.
      time: when it was saved, in seconds since 1970.
      is_finished: whether it is in ``runs/``.
    """

    run: Run
    step: int
    time: float
    is_finished: bool


@dataclasses.dataclass(frozen=True)
class Underway:
    """An experiment so far.

    Attributes:
      record: of all runs that are saved; ``None`` before the first is.
      runs: the same, with how far they are.
      is_finished: whether nothing is left to train.
    """

    record: Results | None
    runs: Sequence[Seen]
    is_finished: bool


def check(directory: pathlib.Path) -> None:
    """Raises ``FileNotFoundError`` unless a directory is that of an experiment."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        if output_dir.MARK in (directory / output_dir.CONFIG).read_text(errors="replace"):
            return
    raise FileNotFoundError(
        f"{directory} has no {output_dir.CONFIG} of an experiment. Name the output directory of "
        "one that has begun."
    )


def stamp(directory: pathlib.Path) -> dict[str, float]:
    """The files that :func:`read` depends on, and when each was written."""
    places = [directory / output_dir.CONFIG, directory / output_dir.RESULTS]
    places += directory.glob("runs/*.json")
    places += (place for place in directory.glob("checkpoints/*/*") if place.name.isdigit())
    return {str(place): time for place in places if (time := _time(place)) is not None}


def read(directory: pathlib.Path) -> Underway:
    """Reads what there is.

    Raises:
      OSError: if the directory can't be read.
    """
    final = directory / output_dir.RESULTS
    config, end = _time(directory / output_dir.CONFIG), _time(final)
    # A call with more to train writes another configuration first.
    if end is not None and (config is None or config <= end):
        with contextlib.suppress(OSError, files.ResultsError):
            record = results.load_results(final)
            runs = [Seen(x, _step(x), end, is_finished=True) for x in record.runs]
            return Underway(record, runs, is_finished=True)
    records = dict(_finished(directory))
    seen = [
        Seen(run, _step(run), time, is_finished=True)
        for time, record in records.values()
        for run in record.runs
    ]
    record = next((record for _, record in records.values()), None)
    for checkpoint in kept.newest(directory):
        try:
            found = _unfinished(checkpoint, [x.run for x in seen if x.is_finished])
            record = record or _about(directory, checkpoint, found[0].run)
        except Exception as error:  # it may be that of another version
            logging.warning(
                "%s can't be used (%s).", checkpoint.folder / str(checkpoint.step), error
            )
            continue
        seen += found
    seen = _newest_of_each(seen)
    if record is not None:
        record = dataclasses.replace(record, runs=[x.run for x in seen], directory=directory)
    return Underway(record, seen, is_finished=False)


def _finished(directory: pathlib.Path) -> Iterator[tuple[str, tuple[float, Results]]]:
    for file in sorted(directory.glob("runs/*.json")):
        time = _time(file)
        with contextlib.suppress(OSError, files.ResultsError):
            record = results.load_results(file)
            if time is not None and record.runs:
                yield file.stem, (time, record)


def _unfinished(checkpoint: kept.Kept, finished: Sequence[Run]) -> list[Seen]:
    time = _time(checkpoint.folder / str(checkpoint.step))
    if time is None:
        return []
    runs = [results.run_from_record(x) for x in checkpoint.payload["record"]["runs"]]
    return [
        Seen(_as_recorded(run, finished), run.early_stop or checkpoint.step, time, False)
        for run in runs
    ]


def _as_recorded(run: Run, finished: Sequence[Run]) -> Run:
    """A run without what only the data could tell of its settings, as records have them."""
    ours = run.hyperparameters.items()
    for other in finished:
        theirs = other.hyperparameters.items()
        if other.method == run.method and all(item in ours for item in theirs):
            return dataclasses.replace(run, hyperparameters=other.hyperparameters)
    return run


def _newest_of_each(seen: Sequence[Seen]) -> list[Seen]:
    """Of each run what is newest: it may be in several groups, and finished as a shorter one."""
    by_run: dict[tuple[Any, ...], Seen] = {}
    for each in seen:
        run = each.run
        key = run.method, run.seed, str(sorted(run.hyperparameters.items()))
        order = (each.run.num_steps, each.is_finished, each.step)
        before = by_run.get(key)
        if before is None or order > (before.run.num_steps, before.is_finished, before.step):
            by_run[key] = each
    return list(by_run.values())


def _about(directory: pathlib.Path, checkpoint: kept.Kept, run: Run) -> Results:
    """A record without runs, as far as a checkpoint tells what is measured."""
    first, identity = run.evaluations[0], checkpoint.identity
    directions: dict[str, Any] = {}
    for name, digest in identity["evaluation"].items():
        # Behind the digest; see ldro_jax.training.fingerprint.
        directions[name] = ast.literal_eval(digest.partition(" ")[2])
    measured, trained = list(first.per_task), identity["data"].get("task_names")
    direction = directions[first.metric]
    return Results(
        experiment=directory.name,
        task_names=measured,
        metric=first.metric,
        higher_is_better=bool(direction),
        runs=(),
        directions=directions,
        trained_names=[] if trained in (None, measured) else trained,
    )


def _step(run: Run) -> int:
    if run.stopped is None:
        return run.early_stop or run.num_steps
    return max((e.step for e in run.evaluations), default=0)


def _time(place: pathlib.Path) -> float | None:
    try:
        found: Any = place.stat()
    except OSError:
        return None
    # That of a path in cloud storage has another name.
    return found.st_mtime if hasattr(found, "st_mtime") else float(found.mtime)

"""What an earlier start of an experiment has left: records that are taken, and what is refused.

A run is taken or gone on with if all that its numbers depend on is what it was
(:mod:`ldro_jax.training.fingerprint`). Runs of other methods and seeds stay where they are.
"""

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from absl import logging

from ldro_jax.experiments import groups
from ldro_jax.records import files, results
from ldro_jax.records import identity as identity_lib
from ldro_jax.records import kept as kept_lib
from ldro_jax.runtime import paths, printing, processes
from ldro_jax.training import fingerprint
from ldro_jax.training.engine import Program, Trial
from ldro_jax.training.schedule import Schedule


def take(
    trials: Mapping[str, tuple[Trial, Trial]],
    programs: Mapping[str, Program],
    schedule: Schedule,
    output_dir: pathlib.Path,
    accepted: Callable[[], None] | None,
) -> tuple[dict[str, results.Run], dict[str, dict[str, Any]]]:
    """Takes the runs that are finished, and compares all that is there with what it is now.

    Args:
      trials: by name, each run as it is recorded, and with what only the data can tell.
      programs: of these runs, by name.
      schedule: lengths and intervals.
      output_dir: of the experiment.
      accepted: called when nothing that is there is refused, before anything is changed.

    Returns:
      The finished runs, and what the record of each run is known by.

    Raises:
      OtherRunError: if a record or a checkpoint was made with something else.
    """
    recorded, resolved = (
        {name: fingerprint.of(programs[name], schedule, [p[i]]) for name, p in trials.items()}
        for i in (0, 1)
    )
    finished: dict[str, results.Run] = {}

    def look(called):
        for name, file_name in called.items():
            file = _place(output_dir, "runs", file_name)
            run = finished_run(file, schedule.train_steps, recorded[name])
            if run is not None:
                finished[name] = run

    look({name: name for name in trials})
    old_names: dict[str, str] = {}
    if len(finished) < len(trials):
        checkpoints = list(kept_lib.newest(output_dir))
        old_names = _elsewhere(output_dir, recorded, resolved, checkpoints)
        look(old_names)
        begun = {name: x for name, x in resolved.items() if name not in finished}
        _check_checkpoints(checkpoints, schedule.train_steps, begun)
    if accepted is not None:
        accepted()
    _rename(output_dir, old_names)
    return finished, recorded


def save_run(record: results.Results, identity: Mapping[str, Any], file: pathlib.Path) -> None:
    """Writes the record of one run that is finished.

    Args:
      record: of this run alone.
      identity: see :func:`ldro_jax.training.fingerprint.of`.
      file: where to.
    """
    results.save_results(record, file, {"identity": identity})


def finished_run(
    file: pathlib.Path, num_steps: int, identity: Mapping[str, Any]
) -> results.Run | None:
    """The record of a run that an earlier start of the experiment finished.

    One that can't be read is moved aside.

    Args:
      file: where it would be.
      num_steps: of the run.
      identity: what it is known by; see :func:`ldro_jax.training.fingerprint.of`.

    Returns:
      The run, or ``None`` if there is none that can be used as it is.

    Raises:
      OtherRunError: if it is another run, was made with something else, or had more steps; or if a
        metric is to be measured and its parameters aren't kept.
    """
    if not file.exists():
        return None
    what = f"The record {file}"
    try:
        found = results.load_results(file)
        theirs = files.read_json(file, *results.FORMATS).get("identity", {})
        run = found.runs[0]
    except FileNotFoundError:  # another process has just moved it
        return None
    except (results.ResultsError, IndexError) as error:
        reason = str(error) or "it holds no run"
        logging.warning("%s can't be used, so the run is trained again. %s", what, reason)
        if processes.is_first():
            logging.warning("It is now %s.", paths.move_aside(file))
        return None
    changed = identity_lib.check(what, theirs, _plain(identity))
    if run.num_steps > num_steps:
        raise _longer(what, run.num_steps, num_steps)
    if run.num_steps < num_steps:
        return None  # it goes on from its checkpoint, and this record stays until then
    if not changed:
        return run
    new = [name for name in changed if name in identity["evaluation"]]
    if not new or run.stopped is not None:
        others = [e for e in run.evaluations if e.metric not in changed]
        return dataclasses.replace(run, evaluations=others)
    _require_parameters(what, file.parent.parent, identity["runs"], num_steps, new)
    return None


def _elsewhere(
    output_dir: pathlib.Path,
    identities: Mapping[str, Mapping[str, Any]],
    of_checkpoints: Mapping[str, Mapping[str, Any]],
    newest: Iterable[kept_lib.Kept],
) -> dict[str, str]:
    """Runs that are kept under other names, as when their method had one setting alone.

    Args:
      output_dir: of the experiment.
      identities: of the runs, by name, as their records have them.
      of_checkpoints: the same, as their checkpoints have them.
      newest: checkpoints that are there.

    Returns:
      From the name of a run to the one that it is kept under.
    """
    directory = output_dir / "runs"
    records = {identity_lib.key(ours["runs"][0]): name for name, ours in identities.items()}
    checkpoints = {identity_lib.key(ours["runs"][0]): name for name, ours in of_checkpoints.items()}
    found: dict[str, str] = {}
    for checkpoint in newest:
        runs = checkpoint.identity.get("runs", [])
        if len(runs) == 1 and (name := checkpoints.get(identity_lib.key(runs[0]))):
            found[name] = checkpoint.folder.name
    for file in sorted(directory.glob("*.json")) if directory.exists() else ():
        if file.stem in identities:
            continue
        with contextlib.suppress(OSError, results.ResultsError, KeyError, IndexError):
            run = files.read_json(file, results.FORMAT)["identity"]["runs"][0]
            if name := records.get(identity_lib.key(run)):
                found[name] = file.stem
    folders = ("runs", "checkpoints")
    return {
        name: old
        for name, old in found.items()
        # What is there under a run's own name comes first, and refuses it if it is another's.
        if old not in identities and not any(_place(output_dir, x, name).exists() for x in folders)
    }


def _rename(output_dir: pathlib.Path, names: Mapping[str, str]) -> None:
    """Gives what is kept of runs the names that they have now.

    Args:
      output_dir: of the experiment.
      names: see :func:`_elsewhere`.
    """
    # Not under the eyes of one that still looks for them.
    processes.wait_for_all("looked")
    for name, old in names.items() if processes.is_first() else ():
        for folder in ("checkpoints", "tensorboard", "runs"):
            path, target = (_place(output_dir, folder, x) for x in (old, name))
            # Logs may be there under both, of a run that had the one name, the other and the first.
            if path.exists() and not target.exists():
                path.rename(target)
    processes.wait_for_all("renamed")


def _place(output_dir: pathlib.Path, folder: str, name: str) -> pathlib.Path:
    return output_dir / folder / (f"{name}.json" if folder == "runs" else name)


def _check_checkpoints(
    newest: Iterable[kept_lib.Kept], num_steps: int, identities: Mapping[str, Mapping[str, Any]]
) -> None:
    """Compares the newest checkpoints of some runs with what these are now, before any is trained.

    Args:
      newest: checkpoints that are there.
      num_steps: of the runs.
      identities: of the runs that aren't finished, by name.

    Raises:
      OtherRunError: if one was made with something else, or has more steps.
    """
    newest = list(newest)
    runs = {identity_lib.key(ours["runs"][0]): ours for ours in identities.values()}
    there = {identity_lib.key(run) for one in newest for run in one.identity.get("runs", [])}
    for checkpoint in newest:
        what = f"The checkpoint of step {checkpoint.step} in {checkpoint.folder}"
        theirs = checkpoint.identity
        their_runs = theirs.get("runs", [])
        mine = [runs[key] for key in map(identity_lib.key, their_runs) if key in runs]
        # Its folder is that of our run, and would be taken for it.
        if (ours := identities.get(checkpoint.folder.name)) is not None:
            identity_lib.check(what, theirs, _plain(ours))
            mine.append(ours)
        # So it is with a run of a group that had the name of ours, unless ours is there as well.
        for name, run in zip(groups.names_in(checkpoint.folder), their_runs, strict=False):
            ours = identities.get(name)
            if ours is not None and identity_lib.key(ours["runs"][0]) not in there:
                identity_lib.check(what, {**theirs, "runs": [run]}, _plain(ours))
        for ours in mine:
            identity_lib.check(what, {**theirs, "runs": ours["runs"]}, _plain(ours))
        if mine and checkpoint.step > num_steps:
            raise _longer(what, checkpoint.step, num_steps)


def same(found: results.Results, before: results.Results | None) -> bool:
    """Whether an experiment comes to what is written already.

    Args:
      found: what it comes to.
      before: what is written, if it is.

    Returns:
      Whether all is the same but the versions and the device.
    """
    if before is None:
        return False
    records = (dataclasses.replace(x, versions={}, device={}) for x in (found, before))
    one, other = map(results.to_record, records)
    return one == other


def say(output_dir: pathlib.Path) -> None:
    """Says that an experiment is finished.

    Args:
      output_dir: of the experiment.
    """
    if processes.is_first():
        printing.say(f"The experiment in {output_dir} is finished; look at its report.html.")


def _longer(what: str, found: int, ours: int) -> identity_lib.OtherRunError:
    return identity_lib.OtherRunError(
        f"{what} has {found} steps, and train_steps is {ours} now. Train at least as long, choose "
        "another output_dir, or pass output_dir=Directories(…, overwrite=True) to delete what is "
        "there."
    )


def _plain(identity: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(identity))


def _require_parameters(what, output_dir, runs, num_steps, metrics) -> None:
    """Raises ``OtherRunError`` unless the last checkpoint of a run is kept."""
    steps = [
        checkpoint.step
        for checkpoint in kept_lib.newest(output_dir)
        if identity_lib.key(runs[0]) in map(identity_lib.key, checkpoint.identity.get("runs", []))
    ]
    if num_steps not in steps:
        raise identity_lib.OtherRunError(
            f"{what} lacks {', '.join(metrics)}, which is new or measured otherwise now, and no "
            f"checkpoint of its last step, {num_steps}, is kept to measure it with. "
            f"{identity_lib.ADVICE}"
        )

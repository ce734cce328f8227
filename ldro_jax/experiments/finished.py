"""What an earlier start of an experiment has left: records that are taken, and what is refused.

A run is taken or gone on with if all that its numbers depend on is what it was
(:mod:`ldro_jax.training.fingerprint`). Runs of other methods and seeds stay where they are.
"""

import contextlib
import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from ldro_jax.experiments import groups
from ldro_jax.records import files, results
from ldro_jax.records import identity as identity_lib
from ldro_jax.records import kept as kept_lib
from ldro_jax.runtime import processes
from ldro_jax.training import fingerprint
from ldro_jax.training.engine import Trial

# From the name of a run to what its record, or its checkpoint, must have been made with.
Identities = Mapping[str, Mapping[str, Any]]


def take(
    recorded: Identities, resolved: Mapping[str, Trial], num_steps: int, output_dir: pathlib.Path
) -> tuple[dict[str, results.Run], dict[str, str]]:
    """Takes the runs that are finished, and compares all that is there with what it is now.

    Args:
      recorded: what the record of each run must have been made with.
      resolved: the same runs with what only the data can tell, as checkpoints have them.
      num_steps: length of the runs.
      output_dir: of the experiment.

    Returns:
      The finished runs, and from the names of some runs to those that they are kept under.

    Raises:
      OtherRunError: if a record or a checkpoint was made with something else.
    """
    finished: dict[str, results.Run] = {}

    def look(file_names):
        for name, file_name in file_names.items():
            file = _place(output_dir, "runs", file_name)
            if (run := finished_run(file, num_steps, recorded[name])) is not None:
                finished[name] = run

    look({name: name for name in recorded})
    if len(finished) == len(recorded):
        return finished, {}
    newest = list(kept_lib.newest(output_dir))
    begun = {
        name: {**recorded[name], "runs": [fingerprint.of_run(trial)]}
        for name, trial in resolved.items()
    }
    old_names = _old_names(output_dir, recorded, begun, newest)
    look(old_names)
    unfinished = {name: x for name, x in begun.items() if name not in finished}
    _check_checkpoints(newest, num_steps, unfinished)
    return finished, old_names


def save_run(record: results.Results, identity: Mapping[str, Any], file: pathlib.Path) -> None:
    """Writes the record of one finished run, and its :func:`~ldro_jax.training.fingerprint.of`."""
    results.save_results(record, file, {"identity": identity})


def finished_run(
    file: pathlib.Path, num_steps: int, identity: Mapping[str, Any]
) -> results.Run | None:
    """The run that an earlier start of the experiment finished; ``None`` if it must be trained.

    A record that can't be read is moved aside.

    Args:
      file: where its record would be.
      num_steps: length of the run.
      identity: what it must have been made with; see :func:`ldro_jax.training.fingerprint.of`.

    Raises:
      OtherRunError: if it is another run, was made with something else, or had more steps; or if a
        metric is to be measured and its parameters aren't kept.
    """
    if (found := files.read_or_move_aside(file, _read)) is None:
        return None
    run, theirs = found
    what = f"The record {file}"
    changed = identity_lib.check(what, theirs, identity)
    identity_lib.check_length(what, run.num_steps, num_steps)
    if run.num_steps < num_steps:
        return None  # it goes on from its checkpoint, and this record stays until then
    if not changed:
        return run
    new = [name for name in changed if name in identity["evaluation"]]
    if not new or run.stopped is not None:
        others = [e for e in run.evaluations if e.metric not in changed]
        return dataclasses.replace(run, evaluations=others)
    key = _key(identity)
    # With others, one that has ended early is in their last checkpoint.
    newest, is_early = kept_lib.newest(file.parent.parent), run.early_stop is not None
    at_end = (x for x in newest if x.step == num_steps or is_early)
    if not any(key in checkpoint.keys for checkpoint in at_end):
        raise identity_lib.OtherRunError(
            f"{what} lacks {', '.join(new)}, which is new or measured otherwise now, and no "
            f"checkpoint of its last step, {num_steps}, is kept to measure it with. "
            f"{identity_lib.ADVICE}"
        )
    return None


def _read(file: pathlib.Path) -> tuple[results.Run, dict[str, Any]]:
    """The one run of a record, and what it was made with."""
    record = results.load_results(file)
    if not record.runs:
        raise results.ResultsError("It holds no run.")
    return record.runs[0], files.read_json(file, *results.FORMATS).get("identity", {})


def _old_names(
    output_dir: pathlib.Path,
    recorded: Identities,
    begun: Identities,
    newest: Sequence[kept_lib.Kept],
) -> dict[str, str]:
    """From names of runs to those that they are kept under, as when a method had one setting.

    Args:
      output_dir: of the experiment.
      recorded: what records must have been made with.
      begun: what checkpoints must have been made with.
      newest: checkpoints that are there.
    """
    directory = output_dir / "runs"
    by_record = {_key(ours): name for name, ours in recorded.items()}
    by_checkpoint = {_key(ours): name for name, ours in begun.items()}
    old_names: dict[str, str] = {}
    for checkpoint in newest:
        if len(checkpoint.keys) == 1 and (name := by_checkpoint.get(checkpoint.keys[0])):
            old_names[name] = checkpoint.folder.name
    for file in sorted(directory.glob("*.json")) if directory.exists() else ():
        if file.stem in recorded:
            continue
        with contextlib.suppress(OSError, results.ResultsError, KeyError, IndexError):
            theirs = files.read_json(file, results.FORMAT)["identity"]
            if name := by_record.get(_key(theirs)):
                old_names[name] = file.stem
    folders = ("runs", "checkpoints")
    return {
        name: old
        for name, old in old_names.items()
        # What is there under a run's own name comes first, and is refused if it is another's.
        if old not in recorded and not any(_place(output_dir, x, name).exists() for x in folders)
    }


def rename(output_dir: pathlib.Path, old_names: Mapping[str, str]) -> None:
    """Gives what is kept of runs the names that they have now."""
    # Another process may still look for the old ones.
    processes.wait_for_all("looked")
    for name, old in old_names.items() if processes.is_first() else ():
        for folder in ("checkpoints", "tensorboard", "runs"):
            path, target = (_place(output_dir, folder, x) for x in (old, name))
            # Logs may be there under both, of a run that had the one name, the other and the first.
            if path.exists() and not target.exists():
                path.rename(target)
    processes.wait_for_all("renamed")


def _place(output_dir: pathlib.Path, folder: str, name: str) -> pathlib.Path:
    return output_dir / folder / (f"{name}.json" if folder == "runs" else name)


def _key(identity: Mapping[str, Any]) -> str:
    """The key of the one run that an identity is of."""
    return identity_lib.key(identity["runs"][0])


def _check_checkpoints(newest: Sequence[kept_lib.Kept], num_steps: int, begun: Identities) -> None:
    """Compares checkpoints of unfinished runs with what these are now, before any is trained.

    Raises:
      OtherRunError: if one was made with something else, or has more steps.
    """
    by_key = {_key(ours): ours for ours in begun.values()}
    there = {key for checkpoint in newest for key in checkpoint.keys}
    for checkpoint in newest:
        what = f"The checkpoint of step {checkpoint.step} in {checkpoint.folder}"
        theirs = checkpoint.identity
        mine = [by_key[key] for key in checkpoint.keys if key in by_key]
        # Its folder is that of our run, and would be taken for it.
        if (ours := begun.get(checkpoint.folder.name)) is not None:
            identity_lib.check(what, theirs, ours)
            mine.append(ours)
        # So would a run of a group that had the name of ours, unless ours is there as well.
        for name, run in zip(groups.names_in(checkpoint.folder), checkpoint.runs, strict=False):
            ours = begun.get(name)
            if ours is not None and _key(ours) not in there:
                identity_lib.check(what, {**theirs, "runs": [run]}, ours)
        for ours in mine:
            identity_lib.check(what, {**theirs, "runs": ours["runs"]}, ours)
        if mine:
            identity_lib.check_length(what, checkpoint.step, num_steps)

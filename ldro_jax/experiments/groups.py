"""Which runs are trained together, and which checkpoints each can go on from.

Runs that are trained together have their checkpoints in one folder, which says whose they are. So
the next start finds the state of a run whatever group it is then trained in (the same runs, some of
them, or the run alone), and whatever the runs are called then.
"""

import collections
import itertools
import json
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ldro_jax.records import files, identity, kept
from ldro_jax.runtime import hashing
from ldro_jax.training import fingerprint
from ldro_jax.training.engine import Trial
from ldro_jax.training.progress import Origin

_FILE = "runs.json"


class _Begun(NamedTuple):
    """Runs that have checkpoints in one folder: its newest step, and the key of each run."""

    folder: pathlib.Path
    step: int
    keys: Sequence[str]

    @property
    def order(self) -> tuple[int, int]:
        """Of several groups with the same run, the greatest trained it last."""
        return self.step, -len(self.keys)


def folder(members: Mapping[str, Trial]) -> str:
    """The folder for the checkpoints of some runs, by their names."""
    if len(members) == 1:
        return next(iter(members))
    return "group-" + hashing.short("\n".join(map(_key, members.values())))


def note(members: Mapping[str, Trial], checkpoints: pathlib.Path) -> None:
    """Writes into the folder of a group which runs its checkpoints are of."""
    if len(members) > 1:
        runs = [fingerprint.of_run(trial) for trial in members.values()]
        noted = {"names": list(members), "runs": runs}
        files.write_json(noted, checkpoints / folder(members) / _FILE)


def names_in(path: pathlib.Path) -> list[str]:
    """The names that the runs of a group had; none if its file is damaged, or it is of one run."""
    return _noted(path).get("names", [])


def split(
    trials: Mapping[str, Trial], size: int, checkpoints: pathlib.Path
) -> collections.deque[dict[str, Trial]]:
    """Groups of runs that share a program and the checkpoints that they go on from.

    Args:
      trials: the runs that aren't finished, by name.
      size: the most runs in a group.
      checkpoints: where the folders of earlier groups are.

    Returns:
      The groups, in the order in which to train them.
    """
    if size == 1:  # in the order they are listed, so that an unfinished sweep has whole seeds
        return collections.deque({name: trial} for name, trial in trials.items())
    begun = _begun(checkpoints)
    sharing: dict[tuple, dict[str, Trial]] = {}
    for name, trial in trials.items():
        key = _key(trial)
        homes = [group for group in begun if key in group.keys]
        if steps := kept.steps_in(checkpoints / name):
            homes.append(_Begun(checkpoints / name, steps[-1], [key]))
        home = max(homes, key=lambda group: group.order).folder if homes else None
        sharing.setdefault((trial.method.compile_key(), home), {})[name] = trial
    return collections.deque(
        dict(part) for runs in sharing.values() for part in _chunks(runs.items(), size)
    )


def origin(members: Mapping[str, Trial], checkpoints: pathlib.Path) -> Origin | None:
    """The checkpoints of the group, other than these runs' own, that trained all of them last."""
    mine = [_key(trial) for trial in members.values()]
    others = (group for group in _begun(checkpoints) if group.folder.name != folder(members))
    holding = [group for group in others if set(mine) <= set(group.keys)]
    if not holding:
        return None
    group = max(holding, key=lambda group: group.order)
    runs = [json.loads(key) for key in group.keys]
    return Origin(group.folder, runs, [group.keys.index(key) for key in mine])


def _begun(checkpoints: pathlib.Path) -> list[_Begun]:
    """The groups that have a checkpoint."""
    paths = sorted(checkpoints.glob("group-*")) if checkpoints.exists() else ()
    folders = ((path, kept.steps_in(path), _noted(path).get("runs")) for path in paths)
    return [
        _Begun(path, steps[-1], [identity.key(run) for run in runs])
        for path, steps, runs in folders
        if steps and runs
    ]


def _noted(path: pathlib.Path) -> dict[str, Any]:
    try:
        return files.read_json(path / _FILE)
    except (OSError, files.ResultsError):
        return {}  # the runs of a damaged one begin anew in other groups


def _key(trial: Trial) -> str:
    return identity.key(fingerprint.of_run(trial))


def _chunks(items: Iterable, size: int) -> Iterator[tuple]:
    items = iter(items)
    while chunk := tuple(itertools.islice(items, size)):
        yield chunk

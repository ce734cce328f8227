"""Which runs are trained together, and which checkpoints each can go on from.

Runs that are trained together have their checkpoints in one folder, which says whose they are. So
the next start finds the state of a run whatever group it is then trained in: one of the same runs,
one of some of them, or alone.
"""

import collections
import hashlib
import itertools
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

from ldro_jax.records import files
from ldro_jax.training.engine import Trial
from ldro_jax.training.progress import Origin

_FILE = "runs.json"


def folder(names: Sequence[str]) -> str:
    """The folder for the checkpoints of some runs, by their names."""
    if len(names) == 1:
        return names[0]
    return "group-" + hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]


def note(names: Sequence[str], checkpoints: pathlib.Path) -> None:
    """Writes into the folder of a group whose checkpoints these are."""
    if len(names) > 1:
        files.write_json({"runs": list(names)}, checkpoints / folder(names) / _FILE)


def split(
    trials: Mapping[str, Trial], size: int, checkpoints: pathlib.Path
) -> collections.deque[dict[str, Trial]]:
    """Groups of runs that share a program and the checkpoints that they go on from.

    Args:
      trials: the runs that aren't finished, by name.
      size: how many to train together at most.
      checkpoints: where the folders of earlier groups are.

    Returns:
      The groups, in the order in which to train them.
    """
    if size == 1:  # in the order they are listed, so that an unfinished sweep has whole seeds
        return collections.deque({name: trial} for name, trial in trials.items())
    homes = [*_begun(checkpoints), *((n,) for n in trials if _has_steps(checkpoints / n))]
    sharing: dict[tuple, dict[str, Trial]] = {}
    for name, trial in trials.items():
        # The smallest is the last one that it was trained in.
        home = min((names for names in homes if name in names), key=len, default=())
        sharing.setdefault((trial.method.compile_key(), home), {})[name] = trial
    return collections.deque(
        dict(part) for runs in sharing.values() for part in _chunks(runs.items(), size)
    )


def origin(
    names: Sequence[str], trials: Mapping[str, Trial], checkpoints: pathlib.Path
) -> Origin | None:
    """The smallest group that holds some runs among others, if it has begun.

    Args:
      names: of the runs.
      trials: all of the experiment, by name.
      checkpoints: where the folders of earlier groups are.
    """
    holding = [g for g in _begun(checkpoints) if set(names) < set(g) <= set(trials)]
    if not holding:
        return None
    group = min(holding, key=len)
    chosen = [group.index(name) for name in names]
    return Origin(checkpoints / folder(group), [trials[name] for name in group], chosen)


def _begun(checkpoints: pathlib.Path) -> list[tuple[str, ...]]:
    """The runs of each group that has a checkpoint."""
    found = []
    for path in sorted(checkpoints.glob("group-*")) if checkpoints.exists() else ():
        try:
            names = tuple(files.read_json(path / _FILE)["runs"])
        except (OSError, KeyError, files.ResultsError):
            continue  # that of an earlier version, or damaged: its runs begin anew in other groups
        if path.name == folder(names) and _has_steps(path):
            found.append(names)
    return found


def _has_steps(path: pathlib.Path) -> bool:
    return path.exists() and any(step.name.isdigit() for step in path.iterdir())


def _chunks(items: Iterable, size: int) -> Iterator[tuple]:
    items = iter(items)
    while chunk := tuple(itertools.islice(items, size)):
        yield chunk

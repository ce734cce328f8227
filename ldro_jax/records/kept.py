"""The parameters that an experiment keeps: found by method, setting and seed, and loaded."""

# ruff: noqa: E402
from ldro_jax.runtime import extras

# Before what needs it is imported.
extras.need("orbax")

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from ldro_jax.records import copies, files, identity, json_types, orbax
from ldro_jax.runtime import checks, errors, paths


@dataclasses.dataclass(frozen=True)
class Kept:
    """A checkpoint of some runs.

    Attributes:
      folder: the folder of these runs.
      step: number of steps taken.
      payload: what is in it besides the state; see :mod:`ldro_jax.records.checkpoints`.
    """

    folder: pathlib.Path
    step: int
    payload: Mapping[str, Any]

    @property
    def identity(self) -> Mapping[str, Any]:
        """What it was made with; see :func:`ldro_jax.training.fingerprint.of`."""
        return self.payload.get("identity", {})

    @property
    def runs(self) -> Sequence[Mapping[str, Any]]:
        """Method, settings and seed of each of its runs."""
        return self.identity.get("runs", ())

    @property
    def keys(self) -> list[str]:
        """A text for each of its runs, see :func:`ldro_jax.records.identity.key`."""
        return [identity.key(run) for run in self.runs]


def steps_in(folder: pathlib.Path) -> list[int]:
    """The steps that a folder has checkpoints of, in order."""
    names: list[str] = []
    # Another process may have just moved the folder.
    with contextlib.suppress(FileNotFoundError):
        names += (path.name for path in folder.iterdir()) if folder.is_dir() else ()
    return sorted(int(name) for name in names if name.isdigit())


def newest(output_dir: pathlib.Path) -> Iterator[Kept]:
    """Yields the newest checkpoint that can be read, for each folder of an experiment."""
    directory = output_dir / "checkpoints"
    for folder in sorted(directory.iterdir()) if directory.exists() else ():
        for step in reversed(steps_in(folder)):
            if (payload := _payload(folder / str(step))) is not None:
                yield Kept(folder, step, payload)
                break


def read_payload(place: pathlib.Path) -> dict[str, Any]:
    """What is in a checkpoint besides the state.

    Raises:
      Exception: of any kind, where it is damaged.
    """
    record: Any = place / "record"
    payload = dict(ocp.JsonCheckpointHandler().restore(record))
    if payload.pop("checksum", None) != files.checksum(payload):
        raise ValueError("its record is not what was saved")
    return payload


def load(
    output_dir: str | os.PathLike[str],
    *,
    method: str | None = None,
    seed: int | None = None,
    settings: Mapping[str, Any] | None = None,
    step: int | str = "best",
    problem: Any = None,
) -> Any:
    """Loads the parameters of a run of :func:`ldro_jax.compare`.

    Args:
      output_dir: of the experiment, finished or not.
      method: the name of the run's method; may be left out where there is one method.
      seed: the run's seed; may be left out where there is one seed.
      settings: hyperparameters that tell the run from those of other settings of the method, some
        or all.
      step: ``"best"``, the step that was best on validation, of runs with
        ``Schedule(test="best")``; ``"last"``, the newest step there is; or a number.
      problem: what was trained. With it the parameters come in the tree that its ``init`` makes,
        which may have lists, tuples or classes of its own; without, in dictionaries.

    Returns:
      The parameters that the run is evaluated with, which are their mean with
      :func:`ldro_jax.ldro.averaged`, as NumPy arrays.

    Raises:
      FileNotFoundError: if there is no such run, or no checkpoint of that step.
      OSError: if it is damaged.
      ValueError: if there are several such runs, or an argument isn't what it must be.

    Example:
      >>> params = ldro_jax.load("/tmp/digits", method="L-DRO", seed=0)  # doctest: +SKIP
    """
    directory = paths.absolute(output_dir)
    found = find(
        directory, list(newest(directory)), method=method, seed=seed, settings=settings, step=step
    )
    params = _params(*found)
    return params if problem is None else _as_made(params, problem)


def find(
    directory: pathlib.Path,
    there: Sequence[Kept],
    *,
    method: str | None = None,
    seed: int | None = None,
    settings: Mapping[str, Any] | None = None,
    step: int | str = "best",
) -> tuple[Kept, int]:
    """The checkpoint of a run, and its place among the runs of that; see :func:`load`.

    Args:
      directory: of the experiment.
      there: its newest checkpoints.
      method: as :func:`load` takes it, like what follows.
      seed: the run's.
      settings: some or all of the run's.
      step: "best", "last" or a number.
    """
    if step not in ("best", "last"):
        step = checks.integer("step (a number, 'best' or 'last')", step)
    asked = {"method": method, "seed": seed, "settings": dict(settings or {})}
    fitting = [
        (checkpoint, index, run)
        for checkpoint in there
        for index, run in enumerate(checkpoint.runs)
        if _fits(run, asked)
    ]
    runs = {repr(run): run for *_, run in fitting}
    if not runs:
        known = [_described(run) for checkpoint in there for run in checkpoint.runs]
        raise FileNotFoundError(
            f"{directory} has no checkpoint of a run with {_described(asked)}. "
            f"{'Found: ' + '; '.join(known) if known else 'It has none at all'}."
        )
    if len(runs) > 1:
        raise ValueError(
            f"method, seed and settings must tell one run from others, but {len(runs)} have "
            f"{_described(asked)}: {'; '.join(map(_described, runs.values()))}."
        )
    # One that was trained in several groups has gone on in the last of them.
    checkpoint, index, _ = max(fitting, key=lambda one: one[0].step)
    if step != "last":
        checkpoint = _of_step(checkpoint, step)
    return checkpoint, index


def _payload(place: pathlib.Path) -> dict[str, Any] | None:
    if not place.exists():
        return None
    try:
        return read_payload(place)
    except Exception as error:  # whatever a damaged file makes Orbax raise
        logging.warning("%s can't be read (%s).", place / "record", error)
        return None


def _fits(run: Mapping[str, Any], asked: Mapping[str, Any]) -> bool:
    settings = {k: run["settings"].get(k) for k in asked["settings"]}
    return (
        asked["method"] in (None, run["method"])
        and asked["seed"] in (None, run["seed"])
        # As records have them, which round.
        and json_types.plain(settings) == json_types.plain(asked["settings"])
    )


def _described(run: Mapping[str, Any]) -> str:
    parts = {"method": run["method"], "seed": run["seed"], **run["settings"]}
    return ", ".join(f"{k}={v!r}" for k, v in parts.items() if v is not None) or "any method"


def _of_step(checkpoint: Kept, step: int | str) -> Kept:
    folder = checkpoint.folder
    if step == "best":
        best = checkpoint.payload["best"]
        if best is None:
            raise FileNotFoundError(
                f"No best checkpoint is kept in {folder}. Runs with Schedule(test='best') keep "
                f"one; step='last' gives that of step {checkpoint.step}."
            )
        step = int(best)
    if step == checkpoint.step:
        return checkpoint
    for place in _places(folder, int(step)):
        if (payload := _payload(place)) is not None:
            return Kept(folder, int(step), payload)
    raise FileNotFoundError(
        f"There is no checkpoint of step {step} in {folder} that can be read, but of "
        f"{steps_in(folder)}."
    )


def _places(folder: pathlib.Path, step: int) -> tuple[pathlib.Path, pathlib.Path]:
    """Where the checkpoint of a step is, and where its copy may be."""
    return folder / str(step), copies.place(folder, step)


def _params(checkpoint: Kept, index: int) -> Any:
    """The parameters of one run of a checkpoint, or of its copy if it is damaged."""
    folder, step = checkpoint.folder, checkpoint.step
    reason = ""
    for place in _places(folder, step):
        try:
            restored = _restored(place / "state") if place.exists() else None
        except Exception as error:  # whatever a damaged file makes Orbax raise
            restored, reason = None, errors.first_line(error)
        if restored is None:
            continue
        # Whoever saved them may have had another order of the same arrays.
        if sorted(identity.digest(restored)) == sorted(checkpoint.payload["state"]):
            # Runs that are trained together are stacked.
            params, together = _evaluated(restored), np.ndim(restored["step"]) == 1
            return jax.tree.map(lambda x: x[index], params) if together else params
        reason = "it is not what was saved"
    raise OSError(f"{folder / str(step) / 'state'} is damaged ({reason}).")


def _evaluated(state: Mapping[str, Any]) -> Any:
    """What a state is evaluated with: a mean of the parameters, where its optimizer keeps one.

    A state that was restored without its types holds dictionaries and lists.
    """
    stack = [state.get("opt_state")]
    while stack:
        node = stack.pop()
        if isinstance(node, Mapping):
            if {"averaged", "inner", "count"} <= set(node):
                return _merged(node["averaged"], state["params"])
            node = list(node.values())
        stack += node if isinstance(node, (list, tuple)) else []
    return state["params"]


def _merged(mean: Any, params: Any) -> Any:
    """The mean, and the parameters that it has nothing of."""
    if isinstance(params, Mapping):
        known = mean if isinstance(mean, Mapping) else {}
        return {name: _merged(known.get(name), value) for name, value in params.items()}
    return params if mean is None else mean


def _restored(state: Any) -> Any:
    """A state on the host, whatever it was saved from."""
    handler = ocp.PyTreeCheckpointHandler()
    shapes = handler.metadata(state).tree
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), shapes)
    with orbax.reads_come_to_an_end():
        return handler.restore(state, args=ocp.args.PyTreeRestore(restore_args=as_numpy))


def _as_made(params: Any, problem: Any) -> Any:
    from flax.core import meta

    shapes = meta.unbox(jax.eval_shape(problem.init, jax.random.key(0)))
    # By their names: the fields of a class are in its own order, and dictionaries are sorted.
    kept, expected = by_name(params), by_name(shapes)
    ours, theirs = ({n: list(x.shape) for n, x in part.items()} for part in (expected, kept))
    if ours != theirs:
        raise ValueError(
            f"problem must be what was trained, but its parameters have the shapes {ours}, and "
            f"those that are kept {theirs}."
        )
    return jax.tree.unflatten(jax.tree.structure(shapes), [kept[name] for name in expected])


def by_name(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by their names, such as "Dense_0/kernel"."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in leaves}

"""What a run writes into ``MODEL_DIR`` beside T5X's summaries.

``ldro_tasks.json`` names its tasks; ``ldro_run.json`` says how much it evaluated, and on what. T5X
itself is not needed here.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from ldro_jax.records import files
from ldro_jax.runtime import paths
from ldro_jax.t5x.names import RUN_FILE, TASKS_FILE

FORMAT = 1
_MACHINE = ("step", "device", "mesh", "versions")


@dataclasses.dataclass(frozen=True)
class RunFile:
    """The content of ``ldro_run.json``.

    Attributes:
      tokens: of the last evaluation, target tokens by task.
      batches: in how many batches they were.
      machines: what the run was made on, oldest first: ``step``, the one of the first evaluation
        there, ``device``, ``mesh`` and ``versions``; another entry where one of them changed.
      whole: whether these are all of the split of every task; None where it isn't known.
    """

    tokens: Mapping[str, int]
    batches: Mapping[str, int]
    machines: Sequence[Mapping[str, Any]]
    whole: bool | None = None


def read(model_dir: str) -> RunFile | None:
    """Reads the file of a run; None where there is none, as of T5X's own trainer.

    Raises ``ValueError`` if there is something else in it.
    """
    path = paths.make(model_dir) / RUN_FILE
    if not path.exists():
        return None
    record = files.read_json(path, FORMAT)
    try:
        tokens, batches = (
            {name: _count(count) for name, count in record[key].items()}
            for key in ("tokens", "batches")
        )
        machines = [{key: machine[key] for key in _MACHINE} for machine in record["machines"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise files.ResultsError(
            f"Expected tokens, batches and machines in {path}, but a part is missing or of another "
            f"kind ({error!r}). Remove the file: the run writes it anew when it evaluates."
        ) from error
    return RunFile(tokens, batches, machines, record.get("whole"))


def save(
    model_dir: str,
    *,
    step: int,
    tokens: Mapping[str, int],
    batches: Mapping[str, int],
    machine: Mapping[str, Any],
    whole: bool | None = None,
) -> None:
    """Writes what an evaluation came to; a reader sees the old file or the whole new one.

    Args:
      model_dir: the run's.
      step: of the evaluation.
      tokens: as in :class:`RunFile`.
      batches: as there.
      machine: ``device``, ``mesh`` and ``versions``, in plain types.
      whole: as there.
    """
    try:
        before = read(model_dir)
    except files.ResultsError:
        # It is no reason for a run to stop.
        before = None
    machines = [*before.machines] if before else []
    if not machines or {**machines[-1], "step": step} != {**machine, "step": step}:
        machines.append({"step": step, **machine})
    record = {"tokens": dict(tokens), "batches": dict(batches), "machines": machines}
    record |= {} if whole is None else {"whole": whole}
    files.write_json({"format": FORMAT, **record}, paths.make(model_dir) / RUN_FILE)


def read_tasks(model_dir: str) -> list[str] | None:
    """The names of the tasks in the order of the weights; None before a run with L-DRO has begun.

    Raises ``ValueError`` if there is something else in the file.
    """
    path = paths.make(model_dir) / TASKS_FILE
    if not path.exists():
        return None
    text = path.read_text(encoding="utf-8")
    try:
        names = json.loads(text)["tasks"]
    except (ValueError, TypeError, KeyError):
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(
            f"Expected the names of the tasks in {path}, but found {text[:80]!r}. Write them: "
            '{"tasks": ["NAME", "NAME"]}, in the order of seqio, by name.'
        )
    return names


def save_tasks(model_dir: str, names: Sequence[str]) -> None:
    """Keeps the names of the tasks, if none are kept: weights are known by position alone."""
    path = paths.make(model_dir) / TASKS_FILE
    if not path.exists():
        paths.write(path, json.dumps({"tasks": list(names)}))


def _count(value: Any) -> int:
    if int(value) < 1:
        raise ValueError(f"a count of {value}")
    return int(value)

"""What a run writes into ``MODEL_DIR`` beside T5X's summaries: how much it evaluated, and on what.

T5X itself is not needed here.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ldro_jax.records import files
from ldro_jax.runtime import paths
from ldro_jax.t5x.names import RUN_FILE

FORMAT = 1


@dataclasses.dataclass(frozen=True)
class RunFile:
    """The content of ``ldro_run.json``.

    Attributes:
      tokens: of the last evaluation, target tokens by task.
      batches: in how many batches they were.
      whole: whether these are all of the split of every task; None where it isn't known.
      machines: what the run was made on, oldest first: ``step``, the one of the first evaluation
        there, ``device``, ``mesh`` and ``versions``; another entry where one of them changed.
    """

    tokens: Mapping[str, int]
    batches: Mapping[str, int]
    machines: Sequence[Mapping[str, Any]]
    whole: bool | None = None


def load(model_dir: str) -> RunFile | None:
    """Reads what a run has written.

    Args:
      model_dir: the run's.

    Returns:
      The content; None where there is no such file, as of T5X's own trainer.

    Raises:
      ValueError: if there is something else in it.
    """
    path = paths.make(model_dir) / RUN_FILE
    if not path.exists():
        return None
    record = files.read_json(path, FORMAT)
    try:
        tokens, batches = (
            {n: _count(x) for n, x in record[key].items()} for key in ("tokens", "batches")
        )
        machines = [{key: m[key] for key in _MACHINE} for m in record["machines"]]
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
      tokens: target tokens by task.
      batches: number of batches by task.
      machine: ``device``, ``mesh`` and ``versions``, in plain types.
      whole: whether that was all of the split of every task, if it is known.
    """
    try:
        found = load(model_dir)
    except files.ResultsError:
        # It is no reason for a run to stop.
        found = None
    machines = [*found.machines] if found else []
    if not machines or {**machines[-1], "step": step} != {**machine, "step": step}:
        machines.append({"step": step, **machine})
    record = {"tokens": dict(tokens), "batches": dict(batches), "machines": machines}
    record |= {} if whole is None else {"whole": whole}
    files.write_json({"format": FORMAT, **record}, paths.make(model_dir) / RUN_FILE)


def _count(value: Any) -> int:
    if int(value) < 1:
        raise ValueError(f"a count of {value}")
    return int(value)


_MACHINE = ("step", "device", "mesh", "versions")

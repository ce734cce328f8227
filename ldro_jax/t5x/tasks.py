"""Which tasks rows are of: a mark on every row of a batch.

T5X hands rows from the data to the trainer without a word on where they came from. The mark says
it, so that rows of T5X's own mixtures, which hold several tasks each, are never taken for balanced
ones.
"""

import functools
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import ldro_jax.t5x.installed  # noqa: F401
from ldro_jax import measuring
from ldro_jax.t5x import checkpoints, run_file
from ldro_jax.tasks import drawing

MARK = "ldro_tasks"
# The probabilities that rows were drawn with, and rows to measure the interaction on.
SHARE, MEASURED = "ldro_share", "ldro_measured/"


def marks(names: Sequence[str], rows: int) -> np.ndarray:
    """The marks of rows in turn: for row r a checksum of the name of task ``r mod N``, int32."""
    one = [zlib.crc32(name.encode()) & 0x7FFFFFFF for name in names]
    return np.resize(np.array(one, np.int32), rows)


def unmarked(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The model's own features of a batch, ``[B, ...]``.

    Raises ``ValueError`` if its rows have no marks.
    """
    if MARK not in batch:
        raise ValueError(
            "LDROTrainer needs batches that hold every task in turn, but these don't say which "
            "task a row belongs to. Bind train.get_dataset_fn = @data.get_dataset, with data from "
            "ldro_jax.t5x."
        )
    return {name: x for name, x in batch.items() if not name.startswith("ldro_")}


def read(batch: Mapping[str, Any], names: Sequence[str]) -> measuring.Batch:
    """A batch as the data gives it.

    Args:
      batch: features ``[B, ...]``, with the marks of the rows.
      names: of the tasks, in order.

    Returns:
      Its rows are dictionaries of ``features`` and of ``number``, which row of the step each one
      is, int32 ``[B]``; a row has the same number in every pass over it.

    Raises:
      ValueError: if there are no marks.
    """
    features = unmarked(batch)
    size, num_tasks = batch[MARK].shape[0], len(names)
    drawn = measuring.Batch(numbered(features, size))
    apart = {k.removeprefix(MEASURED): x for k, x in batch.items() if k.startswith(MEASURED)}
    if SHARE in batch:
        expected = batch[SHARE][0] * size
        # A task that is never drawn has no rows to count.
        drawn = drawn._replace(expected=jnp.where(expected > 0, expected, 1))
    if apart:
        drawn = drawn._replace(measured=numbered(apart, size, first=size))
    if SHARE in batch or size % num_tasks:
        known = batch[MARK][:, None] == marks(names, num_tasks)[None]
        task = jnp.argmax(known, axis=1).astype(jnp.int32)
        places = functools.partial(drawing.places, task, num_tasks, -(-size // num_tasks))
        drawn = drawn._replace(tasks=task, by_task=places)
    return drawn


def numbered(features: Mapping[str, jax.Array], size: int, first: int = 0) -> dict[str, Any]:
    """So many rows of these features with their numbers, from ``first`` on."""
    return {"features": dict(features), "number": first + jnp.arange(size, dtype=jnp.int32)}


def check_rows(batch: Mapping[str, Any], names: Sequence[str]) -> None:
    """Checks that the rows of a batch on the devices are of the tasks, in turn if all have as many.

    Raises ``ValueError`` if they have no marks, or others.
    """
    in_turn = read(batch, names).tasks is None
    marked = jnp.asarray(batch[MARK])
    expected = marks(names, marked.size)
    # On several hosts each sees its own rows alone.
    for shard in marked.addressable_shards:
        right = shard.data == expected[shard.index] if in_turn else np.isin(shard.data, expected)
        if not np.all(right):
            raise ValueError(
                f"The rows of the data don't belong to the trainer's {len(names)} tasks in turn, "
                f"{', '.join(names)}. Bind data.task_names.mixture_or_task_name to the mixture "
                "that the run trains on, and leave the rows in the order of data.get_dataset."
            )


def check_names(model_dir: str, names: Sequence[str]) -> None:
    """Checks that a run has the tasks it began with, in their order, if it has begun.

    Raises ``ValueError`` if they are others, or can't be read.
    """
    saved = run_file.read_tasks(model_dir)
    if saved not in (None, list(names)):
        raise ValueError(
            f"The run in {model_dir} was begun with the tasks {', '.join(saved)}, but now they "
            f"are {', '.join(names)}. {checkpoints.with_other_tasks(model_dir)}"
        )

"""Which tasks a run has: their names in ``MODEL_DIR``, and a mark on every row of a batch.

T5X hands rows from the data to the trainer without a word on where they came from. The mark says
it, so that rows of T5X's own mixtures, which hold several tasks each, are never taken for balanced
ones.
"""

import ldro_jax.t5x.installed  # noqa: F401

# isort: split
import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorflow as tf

from ldro_jax.t5x.names import TASKS_FILE, saved_tasks

MARK = "ldro_tasks"


def marks(names: Sequence[str], rows: int) -> np.ndarray:
    """What ``batch["ldro_tasks"]`` must be.

    Args:
      names: of the tasks, in order.
      rows: R, a multiple of their number.

    Returns:
      int32 ``[R]``: for row r a checksum of the name of task ``r mod N``.
    """
    one = [zlib.crc32(name.encode()) & 0x7FFFFFFF for name in names]
    return np.resize(np.array(one, np.int32), rows)


def unmarked(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The features of the model.

    Args:
      batch: features ``[B, ...]``, with the marks of the rows.

    Returns:
      The same without the marks.

    Raises:
      ValueError: if there are none.
    """
    if MARK not in batch:
        raise ValueError(
            "LDROTrainer needs batches that hold every task in turn, but these don't say which "
            "task a row belongs to. Bind train.get_dataset_fn = @data.get_dataset, with data from "
            "ldro_jax.t5x."
        )
    return {name: feature for name, feature in batch.items() if name != MARK}


def check_rows(batch: Mapping[str, Any], names: Sequence[str]) -> None:
    """Checks that the rows of a batch on the devices belong to the tasks in turn.

    Args:
      batch: features ``[B, ...]`` with the marks of the rows.
      names: of the tasks, in order.

    Raises:
      ValueError: if there are no marks, or they are others.
    """
    unmarked(batch)
    found = jnp.asarray(batch[MARK])
    expected = marks(names, found.size)
    # On several hosts each sees its own rows alone.
    for shard in found.addressable_shards:
        if not np.array_equal(shard.data, expected[shard.index]):
            raise ValueError(
                f"The rows of the data don't belong to the trainer's {len(names)} tasks in turn, "
                f"{', '.join(names)}. Bind data.task_names.mixture_or_task_name to the mixture "
                "that the run trains on, and leave the rows in the order of data.get_dataset."
            )


def check_names(model_dir: str, names: Sequence[str]) -> None:
    """Checks that a run has the tasks it began with, if it has begun.

    Args:
      model_dir: the run's.
      names: of the tasks, in order.

    Raises:
      ValueError: if they are others, or can't be read.
    """
    path = f"{model_dir}/{TASKS_FILE}"
    if not tf.io.gfile.exists(path):
        return
    with tf.io.gfile.GFile(path) as file:
        found = saved_tasks(file.read(), path)
    if found != list(names):
        raise ValueError(
            f"The run in {model_dir} was begun with the tasks {', '.join(found)}, but now they "
            f"are {', '.join(names)}. Give it the tasks it began with, or another MODEL_DIR."
        )


def save_names(model_dir: str, names: Sequence[str]) -> None:
    """Keeps the names of the tasks, since weights are known by position alone.

    Args:
      model_dir: the run's.
      names: of the tasks, in order.
    """
    path = f"{model_dir}/{TASKS_FILE}"
    if jax.process_index() or tf.io.gfile.exists(path):
        return
    tf.io.gfile.makedirs(model_dir)
    # A file that is only half there would keep the run from going on.
    with tf.io.gfile.GFile(f"{path}.tmp", "w") as file:
        json.dump({"tasks": list(names)}, file)
    tf.io.gfile.rename(f"{path}.tmp", path, overwrite=True)

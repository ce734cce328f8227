"""The newest checkpoint of a run, looked at before T5X restores it: one line if it can't be."""

import json
import os
import re

import jax
import tensorflow as tf
import tensorstore as ts
from t5x import checkpoints

from ldro_jax.runtime import errors

_WEIGHTS = re.compile(r"state\.param_states\.weighting\.(.+\.)?weights")


def check_newest(model_dir: str, num_tasks: int, *, read: bool = True) -> None:
    """Checks that a run can go on from the newest checkpoint in its directory, if there is one.

    Args:
      model_dir: the run's.
      num_tasks: N.
      read: read all of it, each host a part, to find files that are missing or cut off. Altered
        bits in an array pass: the format has no checksum of them.

    Raises:
      ValueError: if it is damaged, if it is from a run without L-DRO, or if it has the weights of
        another number of tasks.
    """
    steps = checkpoints.all_steps(model_dir)
    if not steps:
        return
    newest = f"{model_dir}/checkpoint_{steps[-1]}"
    if tf.io.gfile.exists(f"{newest}/checkpoint"):
        # Written without Orbax. WeightedOptimizer looks at it when it is restored.
        return
    try:
        shapes = _shapes(newest, read)
    except (OSError, ValueError, KeyError, TypeError, tf.errors.OpError) as error:
        then = f"goes on from checkpoint_{steps[-2]}" if steps[1:] else "begins anew"
        raise ValueError(
            f"{newest}, the newest checkpoint of the run, is damaged ({errors.reason(error)}). "
            f"Move this directory away: the run then {then}."
        ) from error
    weights = [shape for name, shape in shapes.items() if _WEIGHTS.fullmatch(name)]
    if not weights:
        raise ValueError(without_weighting(newest))
    if weights[0] != (num_tasks,):
        raise ValueError(
            f"{newest}, the newest checkpoint of the run, has the weights of {weights[0][0]} "
            f"tasks, but now there are {num_tasks}. {with_other_tasks(model_dir)}"
        )


def with_other_tasks(model_dir: str) -> str:
    """For an error: how a run goes on with other tasks, such as a new language."""
    steps = checkpoints.all_steps(model_dir)
    if not steps:
        return "Give it the tasks it began with, or another MODEL_DIR."
    return (
        "Give it the tasks it began with. To train on other tasks from here on, start a run in "
        "another MODEL_DIR with T5X's finetune.gin, ldro_jax/t5x/finetune.gin and "
        f'INITIAL_CHECKPOINT_PATH = "{model_dir}/checkpoint_{steps[-1]}".'
    )


def without_weighting(path: str) -> str:
    """The error for a checkpoint that has no task weights."""
    return (
        f"{path} is a checkpoint of a run without L-DRO: it has no task weights, so that no run "
        "with L-DRO can go on from it. Give another MODEL_DIR. To begin with its parameters, add "
        "--gin_file=ldro_jax/t5x/warm_start.gin with INITIAL_CHECKPOINT_PATH; with its step and "
        "the state of its optimizer as well, T5X's finetune.gin and ldro_jax/t5x/finetune.gin."
    )


def _shapes(checkpoint: str, read_arrays: bool) -> dict[str, tuple[int, ...]]:
    """Shapes of the arrays of a checkpoint by name."""
    state = f"{checkpoint}/state"
    with tf.io.gfile.GFile(f"{state}/_METADATA") as file:
        json.load(file)["tree_metadata"]
    is_url = "://" in state
    base = f"{state}/" if is_url else {"driver": "file", "path": f"{os.path.abspath(state)}/"}
    database = {"driver": "ocdbt", "base": base}
    keys = ts.KvStore.open(database).result().list().result()
    names = sorted(key.decode().split("/")[0] for key in keys if key.endswith(b"/.zarray"))
    if not names:
        # Without its index the database counts as empty.
        raise ValueError(f"there are no arrays in {state}")
    shapes = {}
    for index, name in enumerate(names):
        kvstore = database | {"path": f"{name}/"}
        array = ts.open({"driver": "zarr", "kvstore": kvstore}, open=True).result()
        shapes[name] = tuple(array.shape)
        if read_arrays and index % jax.process_count() == jax.process_index():
            array.read().result()
    return shapes

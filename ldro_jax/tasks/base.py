"""Multitask data sets in memory, and task-major batches drawn from them.

A batch is a pure function of seed and step, so a run that is interrupted draws the same ones again.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Split(NamedTuple):
    """Examples of all tasks, padded to the largest.

    Attributes:
      inputs: ``[task, example, ...]``.
      labels: ``[task, example]``, int32.
      sizes: number of examples of each task, ``[task]``, int32; rows beyond are padding.
    """

    inputs: np.ndarray | jax.Array
    labels: np.ndarray | jax.Array
    sizes: np.ndarray | jax.Array


@dataclasses.dataclass(frozen=True)
class MultitaskData:
    """A classification data set of several tasks with a shared output layer.

    Attributes:
      task_names: one name for each task.
      num_classes: number of outputs.
      train: examples to train on.
      validation: examples to choose by.
      test: examples to report on.
    """

    task_names: tuple[str, ...]
    num_classes: int
    train: Split
    validation: Split
    test: Split

    def __post_init__(self):
        for name in ("train", "validation", "test"):
            split = getattr(self, name)
            shapes = (split.inputs.shape[:2], split.labels.shape, split.sizes.shape[:1])
            if shapes[0] != shapes[1] or split.inputs.shape[:1] != (self.num_tasks,):
                raise ValueError(
                    f"The {name} split must hold inputs [task, example, ...] and labels [task, "
                    f"example] for {self.num_tasks} tasks, but their shapes are "
                    f"{split.inputs.shape} and {split.labels.shape}."
                )
            empty = [n for n, s in zip(self.task_names, split.sizes, strict=True) if s < 1]
            if empty:
                raise ValueError(
                    f"Every task needs at least one {name} example, but these have none: "
                    f"{', '.join(empty)}. Leave them out, or give them data."
                )

    @property
    def num_tasks(self) -> int:
        """Number of tasks, N."""
        return len(self.task_names)


def batch_indices(
    key: jax.Array, start: jax.typing.ArrayLike, num_steps: int, sizes: np.ndarray, batch_size: int
) -> jax.Array:
    """Which examples make up the batches of a stretch of steps.

    Each task goes through its examples in a fresh random order in every epoch of its own, so tasks
    of different sizes are drawn at the same rate.

    Args:
      key: a key for the whole run; the result is a function of it and of the steps alone.
      start: the first step.
      num_steps: number of steps, a Python integer.
      sizes: examples of each task, a NumPy array ``[N]``.
      batch_size: examples to draw from each task in each step.

    Returns:
      Indices, int32 ``[step, task, example]``.
    """
    sizes = np.asarray(sizes)
    count = num_steps * batch_size
    # Epochs that a stretch can touch, for the smallest task; one more as it may start in the middle.
    num_epochs = count // int(sizes.min()) + 2

    def one_task(key, size):
        positions = jnp.asarray(start, jnp.int32) * batch_size + jnp.arange(count, dtype=jnp.int32)
        first = positions[0] // size

        def order(epoch):
            noise = jax.random.uniform(jax.random.fold_in(key, epoch), (int(sizes.max()),))
            padding = jnp.arange(noise.size, dtype=jnp.int32) >= size
            return jnp.argsort(jnp.where(padding, jnp.inf, noise))

        orders = jax.vmap(order)(first + jnp.arange(num_epochs, dtype=jnp.int32))
        return orders[positions // size - first, positions % size]

    keys = jax.random.split(key, sizes.size)
    indices = jax.vmap(one_task)(keys, jnp.asarray(sizes, jnp.int32))
    return indices.reshape(sizes.size, num_steps, batch_size).swapaxes(0, 1)


def take(split: Split, indices: jax.Array) -> dict[str, jax.Array]:
    """The examples of one task-major batch.

    Args:
      split: the examples.
      indices: ``[task, example]``, from :func:`batch_indices`.

    Returns:
      ``{"inputs": [task, example, ...], "labels": [task, example]}``.
    """
    rows = jnp.arange(indices.shape[0])[:, None]
    return {"inputs": split.inputs[rows, indices], "labels": split.labels[rows, indices]}

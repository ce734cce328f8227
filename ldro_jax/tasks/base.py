"""Multitask data sets in memory, and task-major batches drawn from them.

A batch is a pure function of seed and step, so a run that is interrupted draws the same ones again.
"""

import dataclasses
import functools
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
        # Metrics are kept by name, so one of two tasks of the same name would be lost.
        if len(set(self.task_names)) < self.num_tasks:
            raise ValueError(f"Every task needs its own name, but they are {self.task_names}.")
        for name in ("train", "validation", "test"):
            self._check_split(name, getattr(self, name))

    def _check_split(self, name: str, split: Split) -> None:
        shape = split.inputs.shape[:2]
        if (
            len(shape) != 2
            or split.labels.shape != shape
            or split.sizes.shape != shape[:1]
            or shape[0] != self.num_tasks
        ):
            raise ValueError(
                f"The {name} split must hold inputs [task, example, ...], labels [task, example] "
                f"and sizes [task] for {self.num_tasks} tasks, but their shapes are "
                f"{split.inputs.shape}, {split.labels.shape} and {split.sizes.shape}."
            )
        sizes, labels = np.asarray(split.sizes), np.asarray(split.labels)
        empty = [task for task, size in zip(self.task_names, sizes, strict=True) if size < 1]
        if empty:
            raise ValueError(
                f"Every task needs at least one {name} example, but these have none: "
                f"{', '.join(empty)}. Leave them out, or give them data."
            )
        if sizes.max() > shape[1]:
            raise ValueError(
                f"The {name} split has room for {shape[1]} examples of a task, but its sizes say "
                f"there are {sizes.max()}."
            )
        # JAX clamps an index that is out of range, so a wrong label would go unnoticed.
        real = labels[np.arange(shape[1]) < sizes[:, None]]
        if real.min() < 0 or real.max() >= self.num_classes:
            raise ValueError(
                f"The {name} labels must be from 0 to {self.num_classes - 1}, but they are from "
                f"{real.min()} to {real.max()}."
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
    positions = jnp.asarray(start, jnp.int32) * batch_size + jnp.arange(count, dtype=jnp.int32)

    def one_task(key, size, capacity, num_epochs):
        first = positions[0] // size

        def order(epoch):
            noise = jax.random.uniform(jax.random.fold_in(key, epoch), (capacity,))
            padding = jnp.arange(capacity, dtype=jnp.int32) >= size
            return jnp.argsort(jnp.where(padding, jnp.inf, noise))

        orders = jax.vmap(order)(first + jnp.arange(num_epochs, dtype=jnp.int32))
        return orders[positions // size - first, positions % size]

    keys = jax.random.split(key, sizes.size)
    indices = jnp.zeros((sizes.size, count), jnp.int32)
    # Tasks of similar size together: a small one has many epochs, and with padding to the largest
    # task each would be as long to sort as that one's. A program of its own for every size would be
    # as long to compile.
    scales = np.array([int(size).bit_length() for size in sizes])
    for scale in np.unique(scales):
        tasks = np.flatnonzero(scales == scale)
        draw = functools.partial(
            one_task,
            capacity=int(sizes[tasks].max()),
            # A stretch may start and end in the middle of an epoch.
            num_epochs=count // int(sizes[tasks].min()) + 2,
        )
        drawn = jax.vmap(draw)(keys[tasks], jnp.asarray(sizes[tasks], jnp.int32))
        indices = indices.at[tasks].set(drawn.astype(jnp.int32))
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

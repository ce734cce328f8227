"""Multitask data sets in memory."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np


class Split(NamedTuple):
    """Examples of all tasks, padded to the largest.

    Attributes:
      inputs: ``[task, example, ...]``.
      targets: ``[task, example, ...]``; labels, int32 ``[task, example]``, where they are classes.
      sizes: number of examples of each task, ``[task]``, int32; rows beyond are padding.
    """

    inputs: np.ndarray | jax.Array
    targets: np.ndarray | jax.Array
    sizes: np.ndarray | jax.Array


def content(arrays: Iterable[np.ndarray | jax.Array]) -> str:
    """Identifies data by what is in it.

    Args:
      arrays: all of it.

    Returns:
      16 hexadecimal digits.
    """
    digest = hashlib.blake2b(digest_size=8)
    for array in arrays:
        digest.update(np.asarray(array).tobytes())
    return digest.hexdigest()


def _unchanged(inputs: jax.Array) -> jax.Array:
    """Inputs that are stored as the model takes them."""
    return inputs


@dataclasses.dataclass(frozen=True)
class MultitaskData:
    """A classification data set of several tasks with a shared output layer.

    Attributes:
      task_names: one name for each task.
      num_classes: number of outputs.
      train: examples to train on.
      validation: examples to choose by.
      test: examples to report on.
      prepare: from inputs as they are stored, ``[..., example features]``, to those of the model;
        applied on the device to each batch, so that images can be stored as bytes.
      task_classes: which classes each task has, bool ``[task, class]``, if they differ. Accuracy
        is then also measured among the classes of the task alone.
    """

    task_names: tuple[str, ...]
    num_classes: int
    train: Split
    validation: Split
    test: Split
    prepare: Callable[[jax.Array], jax.Array] = _unchanged
    task_classes: np.ndarray | None = None

    def __post_init__(self):
        # Metrics are kept by name, so one of two tasks of the same name would be lost.
        if len(set(self.task_names)) < self.num_tasks:
            raise ValueError(f"Every task needs its own name, but they are {self.task_names}.")
        classes = self.task_classes
        if classes is not None and classes.shape != (self.num_tasks, self.num_classes):
            raise ValueError(
                f"task_classes must be [{self.num_tasks} tasks, {self.num_classes} classes], but "
                f"its shape is {classes.shape}."
            )
        for name in ("train", "validation", "test"):
            self._check_split(name, getattr(self, name))

    def _check_split(self, name: str, split: Split) -> None:
        shape = split.inputs.shape[:2]
        if (
            len(shape) != 2
            or split.targets.shape != shape
            or split.sizes.shape != shape[:1]
            or shape[0] != self.num_tasks
        ):
            raise ValueError(
                f"The {name} split must hold inputs [task, example, ...], labels [task, example] "
                f"and sizes [task] for {self.num_tasks} tasks, but their shapes are "
                f"{split.inputs.shape}, {split.targets.shape} and {split.sizes.shape}."
            )
        sizes, labels = np.asarray(split.sizes), np.asarray(split.targets)
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

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """What tells these examples from others of the same tasks, in plain JSON types."""
        return {
            "task_names": list(self.task_names),
            "sizes": np.asarray(self.train.sizes).tolist(),
            "content": content([*self.train, *self.validation, *self.test]),
        }

"""Multitask data sets in memory."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np

from ldro_jax.runtime import checks


class Split(NamedTuple):
    """Examples of all tasks, one task after another, so that a small task takes little room.

    Attributes:
      inputs: ``[E, ...]``, those of the first task, then those of the second, and so on.
      targets: ``[E, ...]``; labels, int32 ``[E]``, where they are classes.
      sizes: number of examples of each task, int32 ``[N]``; they sum to E.
    """

    inputs: np.ndarray | jax.Array
    targets: np.ndarray | jax.Array
    sizes: np.ndarray | jax.Array

    @classmethod
    def join(cls, tasks: Iterable[tuple[np.ndarray, np.ndarray]]) -> "Split":
        """Makes a split of the examples of each task.

        Args:
          tasks: inputs ``[examples, ...]`` and targets ``[examples, ...]`` of each task.

        Returns:
          The split.
        """
        inputs, targets = zip(*tasks, strict=True)
        sizes = np.array([len(array) for array in inputs], np.int32)
        return cls(np.concatenate(inputs), np.concatenate(targets), sizes)

    @property
    def starts(self) -> np.ndarray:
        """Where the examples of each task begin, int64 ``[N]``."""
        sizes = np.asarray(self.sizes, np.int64)
        return np.cumsum(sizes) - sizes

    def of(self, task: int) -> tuple[np.ndarray | jax.Array, np.ndarray | jax.Array]:
        """The examples of one task.

        Args:
          task: which one.

        Returns:
          Its inputs and targets, ``[examples, ...]``.
        """
        where = slice(self.starts[task], self.starts[task] + self.sizes[task])
        return self.inputs[where], self.targets[where]


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
        checks.sequence("task_names", self.task_names, "names, such as ('red', 'blue')")
        for name in self.task_names:
            checks.text("task_names", name)
        checks.integer("num_classes", self.num_classes)
        checks.function("prepare", self.prepare, example="inputs -> inputs")
        # Metrics are kept by name, so one of two tasks of the same name would be lost.
        if len(set(self.task_names)) < self.num_tasks:
            raise ValueError(f"Every task needs its own name, but they are {self.task_names}.")
        classes = self.task_classes
        if classes is not None and np.shape(classes) != (self.num_tasks, self.num_classes):
            raise ValueError(
                f"task_classes must be [{self.num_tasks} tasks, {self.num_classes} classes], but "
                f"its shape is {np.shape(classes)}."
            )
        for name in ("train", "validation", "test"):
            self._check_split(name, getattr(self, name))

    def _check_split(self, name: str, split: Split) -> None:
        checks.instance(name, split, Split, "Split.join([(inputs, targets), …])")
        for part, array in zip(split._fields, split, strict=True):
            is_array = (
                isinstance(array, (np.ndarray, jax.Array)) and array.dtype.kind not in "OUSMm"
            )
            checks.require(is_array, f"{name}.{part}", "an array of numbers", array)
        is_whole = np.issubdtype(split.targets.dtype, np.integer)
        checks.require(is_whole, f"{name}.targets", "classes as integers", split.targets.dtype)
        shapes = split.inputs.shape, split.targets.shape, split.sizes.shape
        if not (
            split.inputs.ndim
            and shapes[1:] == (split.inputs.shape[:1], (self.num_tasks,))
            and np.sum(split.sizes) == len(split.inputs)
        ):
            raise ValueError(
                f"The {name} split must hold inputs [examples, ...] and labels [examples] of "
                f"{self.num_tasks} tasks, one task after another, and sizes [tasks] that sum to "
                f"the number of examples, but their shapes are {shapes[0]}, {shapes[1]} and "
                f"{shapes[2]}, and the sizes sum to {np.sum(split.sizes)}. Split.join makes one "
                "of the examples of each task."
            )
        for part in ("inputs", "targets"):
            checks.on_device(name, part, getattr(split, part))
        sizes, labels = np.asarray(split.sizes), np.asarray(split.targets)
        empty = [task for task, size in zip(self.task_names, sizes, strict=True) if size < 1]
        if empty:
            raise ValueError(
                f"Every task needs at least one {name} example, but these have none: "
                f"{', '.join(empty)}. Leave them out, or give them data."
            )
        # JAX clamps an index that is out of range, so a wrong label would go unnoticed.
        if labels.min() < 0 or labels.max() >= self.num_classes:
            raise ValueError(
                f"The {name} labels must be from 0 to {self.num_classes - 1}, but they are from "
                f"{labels.min()} to {labels.max()}."
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

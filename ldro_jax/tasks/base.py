"""Multitask data sets in memory."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable
from typing import NamedTuple

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
        """Makes a split of inputs and targets of each task, both ``[examples, ...]``."""
        inputs, targets = zip(*tasks, strict=True)
        sizes = np.array([len(array) for array in inputs], np.int32)
        return cls(np.concatenate(inputs), np.concatenate(targets), sizes)

    @property
    def starts(self) -> np.ndarray:
        """Where the examples of each task begin, int64 ``[N]``."""
        sizes = np.asarray(self.sizes, np.int64)
        return np.cumsum(sizes) - sizes

    def of(self, task: int) -> tuple[np.ndarray | jax.Array, np.ndarray | jax.Array]:
        """Inputs and targets of one task, ``[examples, ...]``, by its number."""
        where = slice(self.starts[task], self.starts[task] + self.sizes[task])
        return self.inputs[where], self.targets[where]


def content(arrays: Iterable[np.ndarray | jax.Array]) -> str:
    """Identifies data by all that is in it: 16 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=8)
    for array in arrays:
        digest.update(np.asarray(array).tobytes())
    return digest.hexdigest()


def unchanged(inputs: jax.Array) -> jax.Array:
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
      measured_names: the tasks that ``validation`` and ``test`` have, the first of ``task_names``;
        ``None`` for all.
    """

    task_names: tuple[str, ...]
    num_classes: int
    train: Split
    validation: Split
    test: Split
    prepare: Callable[[jax.Array], jax.Array] = unchanged
    task_classes: np.ndarray | None = None
    measured_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        checks.names("task_names", self.task_names, "('red', 'blue')")
        checks.integer("num_classes", self.num_classes)
        checks.function("prepare", self.prepare, example="inputs -> inputs")
        classes = self.task_classes
        if classes is not None and np.shape(classes) != (self.num_tasks, self.num_classes):
            raise ValueError(
                f"task_classes must be [{self.num_tasks} tasks, {self.num_classes} classes], but "
                f"its shape is {np.shape(classes)}."
            )
        measured = self.task_names
        if self.measured_names is not None:
            measured = self.measured_names
            checks.names("measured_names", measured, "('red', 'blue')")
            is_first = tuple(measured) == tuple(self.task_names[: len(measured)])
            expected = f"the first of the tasks {list(self.task_names)}"
            checks.require(is_first, "measured_names", expected, list(measured))
        self._check_split("train", self.train, self.task_names)
        for name in ("validation", "test"):
            self._check_split(name, getattr(self, name), measured)

    def _check_split(self, name: str, split: Split, tasks: tuple[str, ...]) -> None:
        checks.instance(name, split, Split, "Split.join([(inputs, targets), …])")
        for part, array in split._asdict().items():
            is_array = isinstance(array, (np.ndarray, jax.Array))
            is_numeric = is_array and array.dtype.kind not in "OUSMm"
            checks.require(is_numeric, f"{name}.{part}", "an array of numbers", array)
            checks.on_device(name, part, array)
        inputs, labels, sizes = split.inputs, np.asarray(split.targets), np.asarray(split.sizes)
        is_whole = np.issubdtype(labels.dtype, np.integer)
        checks.require(is_whole, f"{name}.targets", "classes as integers", labels.dtype)
        if not (
            inputs.ndim
            and labels.shape == inputs.shape[:1]
            and sizes.shape == (len(tasks),)
            and sizes.sum() == len(inputs)
        ):
            raise ValueError(
                f"The {name} split must hold inputs [examples, ...] and labels [examples] of "
                f"{len(tasks)} tasks, one task after another, and sizes [tasks] that sum to "
                f"the number of examples, but their shapes are {inputs.shape}, {labels.shape} and "
                f"{sizes.shape}, and the sizes sum to {sizes.sum()}. Split.join makes one of the "
                "examples of each task."
            )
        if empty := [n for n, size in zip(tasks, sizes, strict=True) if size < 1]:
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

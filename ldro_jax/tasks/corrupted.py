"""Tasks that can't be learnt beside those of a data set, and labels that are wrong.

What a weighting does with them is measured on the tasks that can be learnt alone: whoever follows
the highest loss follows a hopeless task.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from ldro_jax.runtime import checks
from ldro_jax.tasks.base import MultitaskData, Split

WAYS = ("inputs", "labels")
_SPLITS = ("train", "validation", "test")


def corrupted(
    *,
    data_dir: str | None = None,
    load_data: Callable[..., MultitaskData],
    hopeless: int = 0,
    by: str = "inputs",
    label_noise: float = 0.0,
    noisy_tasks: Sequence[str] = (),
    leave_out: Sequence[str] = (),
    seed: int = 0,
) -> MultitaskData:
    """Loads a data set, and adds tasks that can't be learnt.

    Args:
      data_dir: passed to ``load_data``.
      load_data: ``(data_dir=...) -> MultitaskData``.
      hopeless: number of tasks to add, each with as many training examples as the tasks have on
        average. They aren't measured.
      by: why they can't be learnt: "inputs" are noise, of the mean and the standard deviation that
        inputs have at each place, or "labels" are drawn anew for inputs of the data. Labels are
        uniform in both.
      label_noise: share of the training labels of ``noisy_tasks`` that are drawn anew, uniformly;
        held-out labels stay as they are.
      noisy_tasks: names of these tasks.
      leave_out: names of tasks to leave out.
      seed: of all that is drawn.

    Raises:
      ValueError: if an argument isn't what it must be.
    """
    checks.function("load_data", load_data, "data_dir", example="@digits.load")
    data = load_data(data_dir=data_dir)
    checks.instance("load_data", data, MultitaskData, "a function such as @digits.load")
    checks.integer("hopeless", hopeless, low=0)
    checks.one_of("by", by, WAYS)
    checks.number("label_noise", label_noise, "[0, 1]")
    checks.seed("seed", seed)
    for name, some in (("noisy_tasks", noisy_tasks), ("leave_out", leave_out)):
        for task in some:
            checks.one_of(name, task, data.task_names)
    kept = [task for task, name in enumerate(data.task_names) if name not in leave_out]
    checks.require(kept, "leave_out", "not all tasks", list(leave_out))
    if data.task_classes is not None:
        raise ValueError(
            "load_data must load tasks that share their classes, as a hopeless task has no classes "
            "of its own, but its tasks have."
        )
    rng = np.random.default_rng(seed)
    names = [data.task_names[task] for task in kept]
    parts = {name: [_arrays(getattr(data, name), task) for task in kept] for name in _SPLITS}
    for place, name in enumerate(names):
        if name in noisy_tasks:
            inputs, labels = parts["train"][place]
            wrong = rng.permutation(len(labels))[: round(label_noise * len(labels))]
            labels = labels.copy()
            labels[wrong] = rng.integers(data.num_classes, size=len(wrong))
            parts["train"][place] = inputs, labels
    everything = np.concatenate([inputs for inputs, _ in parts["train"]])
    size = len(everything) // len(kept)
    for _ in range(hopeless):
        inputs = everything[rng.choice(len(everything), size=size, replace=False)]
        if by == "inputs":
            inputs = _noise(everything, size, rng)
        parts["train"].append((inputs, rng.integers(data.num_classes, size=size, dtype=np.int32)))
    return dataclasses.replace(
        data,
        task_names=(*names, *(f"hopeless {number + 1}" for number in range(hopeless))),
        **{name: Split.join(tasks) for name, tasks in parts.items()},
        measured_names=tuple(names) if hopeless else None,
    )


def _arrays(split: Split, task: int) -> tuple[np.ndarray, np.ndarray]:
    inputs, labels = split.of(task)
    return np.asarray(inputs), np.asarray(labels).astype(np.int32)


def _noise(inputs: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Examples whose places are independent, in the dtype and the range of the inputs."""
    mean, std = inputs.mean(axis=0, dtype=np.float64), inputs.std(axis=0, dtype=np.float64)
    drawn = mean + std * rng.normal(size=(size, *inputs.shape[1:]))
    if inputs.dtype.kind in "iu":
        drawn = np.clip(np.rint(drawn), *(np.iinfo(inputs.dtype).min, np.iinfo(inputs.dtype).max))
    return drawn.astype(inputs.dtype)

"""Classification: data sets of several tasks with one output layer, and their accuracy."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ldro_jax.problems import base
from ldro_jax.problems.arrays import ArrayProblem, MetricFunction, RowFunction
from ldro_jax.runtime import checks
from ldro_jax.tasks.base import MultitaskData


def cross_entropy(outputs: jax.Array, rows: dict[str, jax.Array]) -> jax.Array:
    """Softmax cross-entropy of each row, ``[R]`` in nats.

    Args:
      outputs: logits ``[R, classes]``.
      rows: with ``targets``, classes as integers ``[R]``.
    """
    return optax.softmax_cross_entropy_with_integer_labels(outputs, rows["targets"])


def accuracy(outputs: jax.Array, rows: dict[str, jax.Array]) -> jax.Array:
    """Whether the highest output of each row is that of its class, bool ``[R]``.

    Args:
      outputs: logits ``[R, classes]``.
      rows: with ``targets``, classes as integers ``[R]``.
    """
    return jnp.argmax(outputs, axis=-1) == rows["targets"]


def accuracy_within(task_classes: np.ndarray) -> RowFunction:
    """Makes a function like :func:`accuracy`, among the classes of each row's own task.

    Args:
      task_classes: which classes each task has, bool ``[N, classes]``.
    """
    return _within(accuracy, task_classes)


def _within(function: RowFunction, task_classes: np.ndarray) -> RowFunction:
    """The function, of the outputs for the classes of each row's own task alone."""

    def within_task(outputs, rows):
        allowed = jnp.asarray(task_classes)[rows["task"]]
        return function(jnp.where(allowed, outputs, -jnp.inf), rows)

    return within_task


def classification(
    *,
    data_dir: str | None = None,
    load_data: Callable[..., MultitaskData],
    model: Callable[..., Any],
    within_task: bool = False,
) -> ArrayProblem:
    """Loads a classification data set, and makes a problem of it.

    Args:
      data_dir: passed to ``load_data``.
      load_data: ``(data_dir=...) -> MultitaskData``.
      model: ``(num_classes=...)`` to a model, see :func:`ldro_jax.problems.models.as_functions`.
      within_task: take the loss among the classes of each row's own task, as if each task had an
        output layer of its own; models of some of the tasks can then be compared with one of all.

    Returns:
      The problem, whose metric is the accuracy; where the tasks have classes of their own, also
      the accuracy among these.

    Raises:
      ValueError: if something is of another kind, or the model doesn't fit the data.
    """
    checks.function("load_data", load_data, "data_dir", example="@digits.load")
    checks.function("model", model, "num_classes", example="@MLP")
    data = load_data(data_dir=data_dir)
    gives_data = "a function that gives a MultitaskData, such as @digits.load"
    checks.require(isinstance(data, MultitaskData), "load_data", gives_data, load_data)
    checks.flag("within_task", within_task)
    return from_data(data, model(num_classes=data.num_classes), within_task=within_task)


def from_data(data: MultitaskData, model: Any, *, within_task: bool = False) -> ArrayProblem:
    """Makes a problem of a classification data set in memory.

    Args:
      data: its tasks and splits.
      model: from inputs to logits ``[R, classes]``.
      within_task: see :func:`classification`.

    Raises:
      ValueError: if the model doesn't fit the data.
    """
    metrics: dict[base.Metric, MetricFunction] = {base.Metric("accuracy", True): accuracy}
    loss: RowFunction = cross_entropy
    if data.task_classes is not None:
        own = base.Metric("within-task accuracy", higher_is_better=True)
        metrics[own] = accuracy_within(data.task_classes)
        if within_task:
            loss = _within(cross_entropy, data.task_classes)
            metrics = {own: metrics[own]}
    elif within_task:
        raise ValueError(
            "within_task must be False for data whose tasks have all classes, but it is True."
        )
    splits = {name: getattr(data, name) for name in ("train", "validation", "test")}
    problem = ArrayProblem(
        data.task_names,
        splits,
        model,
        loss,
        metrics,
        prepare=data.prepare,
        measured_names=data.measured_names,
    )
    check_logits(problem, data.train.inputs, data.num_classes)
    return problem


def check_logits(problem: ArrayProblem, inputs: np.ndarray | jax.Array, num_classes: int) -> None:
    """Raises ``ValueError`` unless the model gives a logit of each class for some inputs."""
    params = jax.eval_shape(problem.init, jax.random.key(0))
    logits = jax.eval_shape(problem.apply, params, inputs[:1])
    if getattr(logits, "shape", None) != (1, num_classes):
        given = checks.shown(jax.tree.map(lambda x: x.shape[1:], logits))
        raise ValueError(
            f"model must give {num_classes} logits for each input, but it gives {given}."
        )

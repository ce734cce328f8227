"""Accuracy of a classifier on each task."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldro_jax.tasks import base


def task_accuracies(
    apply_fn: Callable[[Any, jax.Array], jax.Array],
    params: Any,
    split: base.Split,
    task_classes: np.ndarray | None = None,
) -> dict[str, jax.Array]:
    """Share of the examples of each task whose label gets the highest output.

    Args:
      apply_fn: ``(params, inputs [B, ...]) -> logits [B, classes]``.
      params: the model's parameters.
      split: examples of all tasks.
      task_classes: which classes each task has, bool ``[N, classes]``.

    Returns:
      ``accuracy``, and with ``task_classes`` also ``within-task accuracy``, the highest output
      among the classes of the task; each ``[N]``, float32, between 0 and 1.
    """

    def one_task(task):
        (inputs, labels, size), allowed = task
        logits = apply_fn(params, inputs)
        candidates = {"accuracy": logits}
        if allowed is not None:
            candidates["within-task accuracy"] = jnp.where(allowed[None, :], logits, -jnp.inf)
        real = jnp.arange(labels.size) < size

        def share(logits):
            return jnp.sum((jnp.argmax(logits, axis=-1) == labels) & real) / size

        return {metric: share(logits) for metric, logits in candidates.items()}

    # One task after another: the activations of one are enough to hold.
    classes = None if task_classes is None else jnp.asarray(task_classes)
    found = jax.lax.map(one_task, (split, classes))
    return {metric: values.astype(jnp.float32) for metric, values in found.items()}

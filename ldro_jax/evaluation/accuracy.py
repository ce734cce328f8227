"""Accuracy of a classifier on each task."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ldro_jax.tasks import base


def task_accuracies(
    apply_fn: Callable[[Any, jax.Array], jax.Array], params: Any, split: base.Split
) -> jax.Array:
    """Share of the examples of each task whose label gets the highest output.

    Args:
      apply_fn: ``(params, inputs [B, ...]) -> logits [B, classes]``.
      params: the model's parameters.
      split: examples of all tasks.

    Returns:
      ``[N]``, float32, between 0 and 1.
    """

    def accuracy(task):
        inputs, labels, size = task
        correct = jnp.argmax(apply_fn(params, inputs), axis=-1) == labels
        real = jnp.arange(labels.size) < size
        return jnp.sum(correct & real) / size

    # One task after another: the activations of one are enough to hold.
    return jax.lax.map(accuracy, split).astype(jnp.float32)

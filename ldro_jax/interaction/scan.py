"""One task gradient after another, all of them stored."""

from collections.abc import Callable
from typing import Any

import jax

from ldro_jax.interaction import base
from ldro_jax.runtime import checks, leaves


@leaves.needs_arrays
def scan(
    *, dtype: jax.typing.DTypeLike | None = None, constrain: Callable[[Any], Any] | None = None
) -> base.Interaction:
    """Differentiates one task after another and keeps the gradients.

    Work: one backward pass over the batch, in N pieces. Memory: N gradients, divided by the devices
    they are sharded over. For convolutions on CPU, whose batched weight gradients XLA computes
    slowly, and for sharded models.

    Args:
      dtype: what to store the gradients in for the matrix, such as ``jnp.bfloat16``; their own
        dtype by default.
      constrain: applied to each task's gradient before it is stored, for instance
        ``lambda g: jax.lax.with_sharding_constraint(g, shardings)``.
    """
    if constrain is not None:
        checks.function("constrain", constrain, example="gradient -> gradient")

    def gradients(loss_fn, params, batch, *, has_aux=False):
        def value_and_gradient(task_batch):
            loss, gradient = jax.value_and_grad(loss_fn, has_aux=has_aux)(params, task_batch)
            return loss, gradient if constrain is None else constrain(gradient)

        return jax.lax.map(value_and_gradient, base.whole_tasks(batch))

    def matrix(loss_fn, params, batch):
        def gradient(task_batch):
            gradient = jax.grad(loss_fn)(params, task_batch)
            if constrain is not None:
                gradient = constrain(gradient)
            return gradient if dtype is None else jax.tree.map(lambda g: g.astype(dtype), gradient)

        return base.gram(jax.lax.map(gradient, base.whole_tasks(batch)))

    return base.Interaction(matrix, gradients)

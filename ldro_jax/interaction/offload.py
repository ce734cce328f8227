"""One task gradient after another, kept in the memory of the host."""

import jax
import jax.numpy as jnp

from ldro_jax.interaction import base
from ldro_jax.runtime import leaves

_KIND = "pinned_host"


@leaves.needs_arrays
def offload() -> base.Interaction:
    """Differentiates one task after another and keeps the gradients in host memory.

    Work: one backward pass over the batch, in N pieces, and every gradient on its way to the host
    and back once. Device memory: one gradient, and as much again while products are taken, slice by
    slice. For models on one device whose N gradients fit the host alone; over a mesh ``scan``
    splits them.

    The paper names this way and leaves it untried. Here it was run on CPU only, where the memory of
    the host is that of the device.

    Raises:
      ValueError: when it is traced, if the default device can't use pinned memory of the host.
    """

    def matrix(loss_fn, params, batch):
        _check()
        num_tasks = base.num_tasks(batch)

        def gradient(task_batch):
            gradients = jax.grad(loss_fn)(params, task_batch)
            flat = [base.replicated(leaf).reshape(-1) for leaf in jax.tree.leaves(gradients)]
            return jax.device_put(flat, jax.memory.Space.Host)

        dtype = base.statistics_dtype(params)
        total = jnp.zeros((num_tasks, num_tasks), dtype)
        for rows in jax.lax.map(gradient, base.whole_tasks(batch)):
            total += _products(rows, num_tasks, dtype)
        return total

    return base.Interaction(matrix)


def _products(rows: jax.Array, num_tasks: int, dtype) -> jax.Array:
    """Inner products of rows on the host, with as much of them on the device as one row."""
    size = -(-rows.shape[1] // num_tasks)
    whole, rest = divmod(rows.shape[1], size)

    def add(start, width, total):
        part = jax.lax.dynamic_slice_in_dim(rows, start, width, 1)
        part = jax.device_put(part, jax.memory.Space.Device)
        return total + base.products(part, part, dtype)

    total = jnp.zeros((rows.shape[0],) * 2, dtype)
    total = jax.lax.fori_loop(0, whole, lambda i, t: add(i * size, size, t), total)
    return add(whole * size, rest, total) if rest else total


def _check() -> None:
    device = jax.devices()[0]
    kinds = [memory.kind for memory in device.addressable_memories()]
    if _KIND not in kinds:
        raise ValueError(
            f"interaction='offload' needs a device that can use the host's memory, {_KIND!r}, but "
            f"{device.device_kind} has {', '.join(kinds)}. Use 'tiled' instead."
        )

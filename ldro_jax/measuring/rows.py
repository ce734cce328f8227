"""Rows that belong to tasks: their losses, and gradients for weights chosen from these."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from ldro_jax.measuring.batch import Batch, LossesOf, RowLosses
from ldro_jax.measuring.plan import Plan


def forward(
    losses_of: LossesOf, params: Any, rows: Any, microbatches: int = 1
) -> tuple[RowLosses, Callable[[jax.Array], Any]]:
    """Losses of all rows, and the backward pass for coefficients that depend on them.

    With several microbatches it costs a second forward pass, and only the activations of one of
    them are held at a time. Every device keeps its rows: microbatch m is made of the rows m, m +
    microbatches, and so on.

    Args:
      losses_of: ``(params, rows) -> RowLosses``; called with R rows at a time.
      params: of the model.
      rows: arrays ``[B, ...]``.
      microbatches: in how many parts to take them.

    Returns:
      The losses of all rows, ``[B]``, their auxiliary outputs stacked along a leading axis of
      microbatches; and ``(coefficients [B]) -> gradient`` of the sum of coefficients times losses.

    Raises:
      ValueError: if microbatches don't divide the rows.
    """

    def apart(params, rows):
        losses = losses_of(params, rows)
        return losses.sums, (losses.counts, losses.excess, losses.auxiliary)

    if microbatches == 1:
        sums, pull, rest = jax.vjp(lambda p: apart(p, rows), params, has_aux=True)
        counts, excess, auxiliary = rest
        auxiliary = jax.tree.map(lambda x: jnp.asarray(x)[None], auxiliary)
        return RowLosses(sums, counts, excess, auxiliary), lambda c: pull(c)[0]
    size = jax.tree.leaves(rows)[0].shape[0]
    if size % microbatches:
        raise ValueError(
            f"The number of rows of a batch must be a multiple of the {microbatches} "
            f"microbatches, but it is {size}."
        )

    def parts(array):
        return jnp.moveaxis(array.reshape(-1, microbatches, *array.shape[1:]), 1, 0)

    def joined(array) -> Any:
        return None if array is None else jnp.moveaxis(array, 0, 1).reshape(-1)

    divided = jax.tree.map(parts, rows)
    sums, (counts, excess, auxiliary) = jax.lax.map(lambda part: apart(params, part), divided)

    def pullback(coefficients):
        def add(total, part):
            taken, cotangent = part
            _, pull, _ = jax.vjp(lambda p: apart(p, taken), params, has_aux=True)
            return jax.tree.map(jnp.add, total, pull(cotangent)[0]), None

        zeros = jax.tree.map(jnp.zeros_like, params)
        return jax.lax.scan(add, zeros, (divided, parts(coefficients)))[0]

    return RowLosses(joined(sums), joined(counts), joined(excess), auxiliary), pullback


def by_task(plan: Plan, batch: Batch, limit: int | None = None) -> tuple[Any, jax.Array]:
    """The rows that the interaction is measured on, with a leading axis of tasks.

    Args:
      plan: how steps measure.
      batch: of the step.
      limit: take so many rows of each task.

    Returns:
      Arrays ``[N, E, ...]``, and which rows are real and not only fill them up, bool ``[N, E]``.
    """
    rows: Any = batch.measured() if callable(batch.measured) else batch.measured
    where: Any = None
    if rows is None:
        rows, where = batch.rows, batch.by_task
        where = where() if callable(where) else where
    size = jax.tree.leaves(rows)[0].shape[0]
    if where is None:
        # Rows beyond the last full turn of the tasks only fill up.
        each = size // plan.num_tasks
        where = jnp.arange(each * plan.num_tasks, dtype=jnp.int32).reshape(each, plan.num_tasks).T
    where = where[:, :limit]
    where = jnp.pad(where, ((0, 0), (0, -where.shape[1] % plan.filled_to)), constant_values=-1)
    taken = jax.tree.map(lambda array: array[jnp.maximum(where, 0)], rows)
    if plan.over_data is not None:
        spec = PartitionSpec(None, *plan.over_data.spec)
        taken = jax.lax.with_sharding_constraint(taken, NamedSharding(plan.over_data.mesh, spec))
    return taken, where >= 0


def sums_of_tasks(
    tasks: jax.Array | None, size: int, num_tasks: int
) -> tuple[Callable[[jax.Array], jax.Array], Callable[[jax.Array], jax.Array], jax.Array]:
    """How to go from rows to their tasks and back.

    The task of each row is in ``tasks``, int32 ``[B]``; row r is of task ``r mod N`` if that is
    ``None``.

    Returns:
      Sums over the rows of each task, ``[B] -> [N]``; what each row's task has, ``[N] -> [B]``; and
      the number of rows of each task, int32 ``[N]``.
    """
    if tasks is None:
        each = size // num_tasks
        rows = jnp.full((num_tasks,), each, jnp.int32)
        return lambda x: x.reshape(-1, num_tasks).sum(axis=0), lambda x: jnp.tile(x, each), rows
    belongs = tasks[None, :] == jnp.arange(num_tasks, dtype=jnp.int32)[:, None]

    def sums(values):
        return jnp.sum(jnp.where(belongs, values[None, :], 0), axis=1)

    return sums, lambda x: x[tasks], belongs.sum(axis=1)

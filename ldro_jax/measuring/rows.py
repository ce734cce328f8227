"""Rows that belong to tasks: their losses, and gradients for weights chosen from these."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from ldro_jax.measuring.batch import Batch, LossesOf, RowLosses
from ldro_jax.measuring.plan import Plan


def forward(
    losses_of: LossesOf,
    params: Any,
    rows: Any,
    microbatches: int = 1,
    key: jax.Array | None = None,
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
      key: for what the model draws at random, if anything; each part has one of its own.

    Returns:
      The losses of all rows, ``[B]`` or ``[B, N]``, their auxiliary outputs stacked along a leading
      axis of microbatches; and ``coefficients -> gradient`` of the sum of coefficients times
      losses, with a coefficient for each.

    Raises:
      ValueError: if microbatches don't divide the rows.
    """

    def apart(params, rows, *keys):
        losses = losses_of(params, rows, *keys)
        return losses.sums, (losses.counts, losses.excess, losses.auxiliary)

    if microbatches == 1:
        keys = () if key is None else (key,)
        sums, pull, rest = jax.vjp(lambda p: apart(p, rows, *keys), params, has_aux=True)
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
        if array is None:
            return None
        return jnp.moveaxis(array, 0, 1).reshape(-1, *array.shape[2:])

    divided = (
        jax.tree.map(parts, rows),
        *(() if key is None else (jax.random.split(key, microbatches),)),
    )
    sums, (counts, excess, auxiliary) = jax.lax.map(lambda part: apart(params, *part), divided)

    def pullback(coefficients):
        def add(total, part):
            taken, cotangent = part
            _, pull, _ = jax.vjp(lambda p: apart(p, *taken), params, has_aux=True)
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
    rows, where = (
        (batch.rows, places(plan, batch)) if rows is None else (rows, _in_turn(plan, rows))
    )
    where = where[:, :limit]
    where = jnp.pad(where, ((0, 0), (0, -where.shape[1] % plan.filled_to)), constant_values=-1)
    taken = jax.tree.map(lambda array: array[jnp.maximum(where, 0)], rows)
    if plan.over_data is not None:
        spec = PartitionSpec(None, *plan.over_data.spec)
        taken = jax.lax.with_sharding_constraint(taken, NamedSharding(plan.over_data.mesh, spec))
    return taken, where >= 0


def places(plan: Plan, batch: Batch) -> jax.Array:
    """Where the rows of each task are in a batch, int32 ``[N, E]``, filled up with −1."""
    where: Any = batch.by_task() if callable(batch.by_task) else batch.by_task
    return _in_turn(plan, batch.rows) if where is None else where


def _in_turn(plan: Plan, rows: Any) -> jax.Array:
    """The same where row r is of task ``r mod N``; those after the last full turn only fill up."""
    each = jax.tree.leaves(rows)[0].shape[0] // plan.num_tasks
    return jnp.arange(each * plan.num_tasks, dtype=jnp.int32).reshape(each, plan.num_tasks).T


def measured_apart(plan: Plan, batch: Batch) -> tuple[Any, jax.Array | None] | None:
    """Rows of all tasks to measure the interaction on, where those of the batch don't serve.

    Args:
      plan: how steps measure, all tasks in one pass.
      batch: of the step.

    Returns:
      The rows, arrays ``[M, ...]``, and the task of each, int32 ``[M]``, with N for those that only
      fill up; ``None`` for the tasks if row r is of task ``r mod N``, or has labels of several
      tasks. ``None`` for both if the rows of the batch serve.
    """
    if batch.measured is not None:
        rows = batch.measured() if callable(batch.measured) else batch.measured
        if not plan.owned:
            return rows, None
        number = jnp.arange(jax.tree.leaves(rows)[0].shape[0], dtype=jnp.int32)
        is_real = number < number.size // plan.num_tasks * plan.num_tasks
        return rows, jnp.where(is_real, number % plan.num_tasks, plan.num_tasks)
    if not plan.owned or plan.rows is None or plan.rows >= batch.size // plan.num_tasks:
        return None
    where = places(plan, batch)[:, : plan.rows]
    task = jnp.arange(plan.num_tasks, dtype=jnp.int32)[:, None]
    # A task that has fewer is filled up with its first row, which counts nowhere.
    chosen = jnp.where(where < 0, where[:, :1], where).reshape(-1)
    tasks = jnp.where(where < 0, plan.num_tasks, task).reshape(-1)
    return jax.tree.map(lambda x: x[jnp.maximum(chosen, 0)], batch.rows), tasks


class Tasks(NamedTuple):
    """How to go from rows to their tasks and back.

    Attributes:
      sums: adds up what the rows of each task have, ``[B]``, or ``[B, N]`` where rows have labels
        of several tasks, to ``[N]``.
      of_rows: gives each row what its task has, ``[N]`` to ``[B]``, or its tasks, to ``[B, N]``.
      rows: the number of rows of each task, int32 ``[N]``.
      rank: how many rows of its task are before each row, int32 ``[B]`` or ``[B, N]``; −1 for what
        is of no task.
    """

    sums: Callable[[jax.Array], jax.Array]
    of_rows: Callable[[jax.Array], jax.Array]
    rows: jax.Array
    rank: jax.Array


def mean_losses(
    losses: RowLosses, tasks: jax.Array | None, num_tasks: int
) -> tuple[jax.Array, jax.Array]:
    """The mean loss of each task, ``[N]``, and which have something that counts, bool ``[N]``.

    The arguments are those of :func:`tasks_of`.
    """
    of = tasks_of(losses, tasks, num_tasks)
    counts = of.rows if losses.counts is None else of.sums(losses.counts)
    return of.sums(losses.sums) / divisor(counts, losses.sums.dtype), counts > 0


def tasks_of(losses: RowLosses, tasks: jax.Array | None, num_tasks: int) -> Tasks:
    """The tasks that rows belong to.

    Args:
      losses: of the rows.
      tasks: the task of each row, int32 ``[B]``; ``None`` if row r is of task ``r mod N``.
      num_tasks: N.

    Returns:
      The :class:`Tasks`.
    """
    shape = size, *labels = losses.sums.shape
    if labels:
        counted = jnp.ones(shape, bool) if losses.counts is None else losses.counts > 0
        upto = jnp.cumsum(counted, axis=0, dtype=jnp.int32)
        return Tasks(
            lambda x: x.sum(axis=0),
            lambda x: jnp.broadcast_to(x, shape),
            upto[-1],
            jnp.where(counted, upto - 1, -1),
        )
    if tasks is None:
        each = size // num_tasks
        return Tasks(
            lambda x: x.reshape(-1, num_tasks).sum(axis=0),
            lambda x: jnp.tile(x, each),
            jnp.full((num_tasks,), each, jnp.int32),
            jnp.arange(size, dtype=jnp.int32) // num_tasks,
        )
    belongs = tasks[None, :] == jnp.arange(num_tasks, dtype=jnp.int32)[:, None]

    def sums(values):
        return jnp.sum(jnp.where(belongs, values[None, :], 0), axis=1)

    upto = jnp.cumsum(belongs, axis=1, dtype=jnp.int32)
    rank = jnp.max(jnp.where(belongs, upto - 1, -1), axis=0)
    return Tasks(sums, lambda x: x[tasks], belongs.sum(axis=1), rank)


def divisor(counts: jax.Array, dtype: Any) -> jax.Array:
    """Numbers to divide by: 1 for zero, and NaN for what is no number."""
    if jnp.issubdtype(counts.dtype, jnp.integer):
        return jnp.maximum(counts, 1).astype(dtype)
    # Less than one token counts like any other number of them.
    return jnp.where(counts == 0, 1, counts).astype(dtype)

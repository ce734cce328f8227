"""Products of the interaction matrix on a part of a batch's rows, in halves or as a whole."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from ldro_jax.interaction.products import Products, of_losses
from ldro_jax.measuring import rows as rows_lib
from ldro_jax.measuring import shared as shared_lib
from ldro_jax.measuring.batch import Batch, Grouped, LossesOf
from ldro_jax.measuring.plan import Plan


def of_batch(
    plan: Plan, losses_of: LossesOf, params: Any, batch: Batch, preconditioner: Any = None
) -> Products:
    """How to ask for products on the rows of a batch, or on those that were drawn apart.

    Args:
      plan: how steps measure.
      losses_of: ``(params, rows) -> RowLosses``.
      params: what is differentiated.
      batch: of the step.
      preconditioner: P, like the parameters, for products in its geometry.
    """
    rows, tasks = _of_tasks(plan, batch) if plan.owned else _of_all(plan, batch)
    size = jax.tree.leaves(rows)[0].shape[0]
    # Without those that only fill up.
    real = size if tasks is None else (tasks < plan.num_tasks).sum()
    # What each task has of them, or all tasks together.
    each = plan.num_tasks if plan.owned else 1
    apart = plan.strategy.multiple > 1
    losses_of, params = shared_lib.of_counted(losses_of, params, plan.shared)

    def losses(number, params):
        """Of all rows, or of half of them."""
        taken, of_rows, key = rows, tasks, batch.key
        if number is not None:
            # Every other row of each task; those that only fill up come last.
            taken, of_rows = jax.tree.map(lambda x: _half(x, number, each), (rows, tasks))
            key = None if key is None else jax.random.fold_in(key, number)
        found = losses_of(params, taken, *(() if key is None else (key,)))
        return rows_lib.mean_losses(found, of_rows, plan.num_tasks)

    whole, first, second = (functools.partial(losses, number) for number in (None, 0, 1))
    return of_losses(
        first if apart else whole,
        second if apart else None,
        params,
        halves=(first, second) if size >= 2 * each else None,
        part=(real // 2) / batch.size,
        preconditioner=preconditioner,
    )


def _half(x: jax.Array, number: int, each: int) -> jax.Array:
    """Every other of the rows ``[each · R, ...]``, an even number."""
    x = x.reshape(each, -1, *x.shape[1:])
    return x[:, number : x.shape[1] // 2 * 2 : 2].reshape(-1, *x.shape[2:])


def examples(plan: Plan, batch: Grouped) -> Any:
    """The examples ``[N, E, ...]`` to measure on: the given ones, or a share of the batch's."""
    if batch.measured is not None or not plan.strategy.gives_products:
        return batch.tasks if batch.measured is None else batch.measured
    size = jax.tree.leaves(batch.tasks)[0].shape[1]
    taken = plan.strategy.rows_of(size)
    return jax.tree.map(lambda x: x[:, :taken], batch.tasks)


def _of_tasks(plan: Plan, batch: Batch) -> tuple[Any, jax.Array]:
    """The rows, each of one task, as many of each task; and the tasks, N for what fills up."""
    limit = plan.rows
    if limit is None and batch.measured is None:
        limit = plan.strategy.rows_of(batch.size // plan.num_tasks)
    taken, is_real = rows_lib.by_task(plan, batch, limit)
    numbers = jnp.arange(plan.num_tasks, dtype=jnp.int32)[:, None]
    tasks = jnp.where(is_real, numbers, plan.num_tasks)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), (taken, tasks))


def _of_all(plan: Plan, batch: Batch) -> tuple[Any, None]:
    """The same of rows with labels of several tasks, which are in random order."""
    if batch.measured is not None:
        return (batch.measured() if callable(batch.measured) else batch.measured), None
    size = jax.tree.leaves(batch.rows)[0].shape[0]
    taken = min(plan.rows or plan.strategy.rows_of(size), size)
    # Every device keeps its rows: they are the rows 0, step, 2 step and so on.
    step = size // taken
    rows = jax.tree.map(
        lambda x: x[: taken * step].reshape(taken, step, *x.shape[1:])[:, 0], batch.rows
    )
    return rows, None

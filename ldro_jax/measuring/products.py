"""Products of the interaction matrix on a part of a batch's rows, in halves or as a whole."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from ldro_jax.interaction.products import Products, of_losses
from ldro_jax.measuring import rows as rows_lib
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
    parts = _of_tasks(plan, batch) if plan.owned else _of_all(plan, batch)
    each = batch.size // plan.num_tasks if plan.owned else batch.size
    taken = jax.tree.leaves(parts[0])[0].shape[0] // (plan.num_tasks if plan.owned else 1)
    keys = [()] * 2 if batch.key is None else [(key,) for key in jax.random.split(batch.key)]

    def losses(rows, tasks, keys, params):
        found = losses_of(params, rows, *keys)
        of = rows_lib.tasks_of(found, tasks, plan.num_tasks)
        counts = of.rows if found.counts is None else of.sums(found.counts)
        dtype = found.sums.dtype
        each = jnp.where(counts == 0, 1, counts).astype(dtype)
        return of.sums(found.sums) / each, counts > 0

    every = [functools.partial(losses, *part, key) for part, key in zip(parts, keys, strict=False)]
    second = every[1] if len(parts) > 1 else None
    return of_losses(every[0], second, params, preconditioner, part=taken / each)


def examples(plan: Plan, batch: Grouped) -> Any:
    """The examples ``[N, E, ...]`` to measure on: the given ones, or a share of the batch's."""
    if batch.measured is not None or not plan.strategy.gives_products:
        return batch.tasks if batch.measured is None else batch.measured
    size = jax.tree.leaves(batch.tasks)[0].shape[1]
    taken = plan.strategy.rows_of(size)
    return jax.tree.map(lambda x: x[:, :taken], batch.tasks)


def _of_tasks(plan: Plan, batch: Batch) -> list[tuple[Any, jax.Array]]:
    """The parts of the rows, each of one task, and the task of each; N for what fills up."""
    limit = plan.rows
    if limit is None and batch.measured is None:
        limit = plan.strategy.rows_of(batch.size // plan.num_tasks)
    taken, is_real = rows_lib.by_task(plan, batch, limit)
    numbers = jnp.arange(plan.num_tasks, dtype=jnp.int32)[:, None]
    tasks = jnp.where(is_real, numbers, plan.num_tasks)
    parts = plan.strategy.multiple
    # Those that only fill up come last, and each half must have real ones.
    return [
        jax.tree.map(lambda x, p=p: x[:, p::parts].reshape(-1, *x.shape[2:]), (taken, tasks))
        for p in range(parts)
    ]


def _of_all(plan: Plan, batch: Batch) -> list[tuple[Any, None]]:
    """The same of rows with labels of several tasks, which are in random order."""
    if batch.measured is not None:
        rows: Any = batch.measured() if callable(batch.measured) else batch.measured
        size = taken = jax.tree.leaves(rows)[0].shape[0]
    else:
        rows, size = batch.rows, jax.tree.leaves(batch.rows)[0].shape[0]
        taken = min(plan.rows or plan.strategy.rows_of(size), size)
    # Every device keeps its rows: the first part is made of the rows 0, step, 2 step and so on.
    parts = plan.strategy.multiple
    each = taken // parts
    step = size // each

    def part(x, number):
        return x[: each * step].reshape(each, step, *x.shape[1:])[:, number]

    return [(jax.tree.map(functools.partial(part, number=n), rows), None) for n in range(parts)]

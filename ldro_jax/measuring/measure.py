"""Measures one step: the losses of the tasks, and how to get their gradient and interaction."""

import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ldro_jax.interaction import base as interaction_base
from ldro_jax.interaction import geometry, pulled
from ldro_jax.measuring import products as products_lib
from ldro_jax.measuring import rows as rows_lib
from ldro_jax.measuring import shared as shared_lib
from ldro_jax.measuring.batch import Batch, Grouped, LossesOf, RowLosses
from ldro_jax.measuring.plan import Plan, Way


class Measurement(NamedTuple):
    """What was measured on one batch.

    Attributes:
      losses: ``[N]``; from one pass ``[N × parts]``, where a strategy takes tasks in parts.
      gradients: of the tasks, stacked in the same way, if they come from one pass and are held.
      pullback: ``weights [N] -> gradient`` otherwise; lagged, with the interaction.
      interaction: ``() -> [N, N]``, where neither of the two gives it; or the products of it that
        a weighting asks for, :class:`~ldro_jax.interaction.Products`.
      preconditioner: what the products of ``gradients`` are still to be measured with, if anything.
      present: which tasks have something that counts in the batch, bool ``[N]``; ``None`` for all.
      counts: how much counts of each task, ``[N]``: what the model counts, or rows; ``None`` where
        that is the same in every batch.
      excess: the mean over the rows of each task, ``[N]``, where the model gives it.
      auxiliary: what else the model gave, stacked along a leading axis of the parts it was given
        the batch in: microbatches, or tasks or parts of tasks.
    """

    losses: jax.Array
    gradients: Any = None
    pullback: Callable[[jax.Array], Any] | None = None
    interaction: Callable[[], Any] | None = None
    preconditioner: Any = None
    present: jax.Array | None = None
    counts: jax.Array | None = None
    excess: jax.Array | None = None
    auxiliary: Any = ()

    @property
    def statistics(self) -> dict[str, Any]:
        """The keyword arguments of ``update`` beside ``gradients``, which it takes as updates."""
        return {
            "losses": self.losses,
            "pullback": self.pullback,
            "interaction_fn": self.interaction,
            "preconditioner": self.preconditioner,
            "present": self.present,
            "excess": self.excess,
        }


def measure(
    plan: Plan,
    losses_of: Callable[[Any, Any], Any],
    params: Any,
    batch: Batch | Grouped,
    preconditioner: Any = None,
) -> Measurement:
    """Measures one step, in the way that its plan decides.

    The loss of a task is the mean over all that counts in its rows. The training gradient is
    ``Σ_r w_t(r) / n_t(r) ∇loss_r`` over the rows r, where t(r) is the task of row r and n_i is how
    many rows of task i a batch is expected to have, or how much counts in that many. If as much
    counts in each row, its expectation over the draws is ``Σ_i w_i ∇ℓ_i``, with ℓ_i the mean over
    all rows of task i, for any batch size; otherwise it is that of a ratio of sums, as T5X's is.
    With the numbers of a random batch as n_i, a task would count for less the more batches have no
    row of it. The price is variance: a task with one row in 50 has one in every 13th batch of four,
    which then counts 12.5 times the weight of the task.

    A task of which nothing counts in a batch is absent. One whose counts add up to less than zero
    has a loss that is not a number, so that the step trains nothing.

    Args:
      plan: how steps measure.
      losses_of: ``(params, rows) -> RowLosses``; or for :class:`Grouped` examples
        ``(params, examples of one task) -> scalar``, their mean loss.
      params: what is differentiated.
      batch: of the step.
      preconditioner: what the interaction is measured with, a pytree like the parameters.

    Raises:
      ValueError: if microbatches don't divide the rows, or the losses of :class:`Grouped` examples
        aren't floating-point numbers.
    """
    way = plan.way(batch, preconditioned=preconditioner is not None)
    if way is not Way.APART:
        return _one_pass(plan, way, losses_of, params, batch, preconditioner)
    preconditioner = shared_lib.counted(preconditioner, plan.shared)
    strategy = geometry.preconditioned(plan.strategy, preconditioner)
    if isinstance(batch, Batch):
        return _apart(plan, strategy, losses_of, params, batch, preconditioner)
    losses, pullback = differentiated(
        lambda p: jax.vmap(losses_of, in_axes=(None, 0))(p, batch.tasks), params, batch.dtype
    )
    other = products_lib.examples(plan, batch)

    def interaction():
        matrix = strategy.matrix(*shared_lib.of_counted(losses_of, params, plan.shared), other)
        return _of_the_batch(matrix, _examples(other), _examples(batch.tasks))

    return Measurement(losses, None, pullback, interaction)


def _of_the_batch(matrix: Any, measured: Any, expected: Any) -> Any:
    """With the noise of the gradients of a batch, however many rows it was measured on."""
    if not isinstance(matrix, interaction_base.Measured):
        return matrix
    measured, expected = (jnp.asarray(x, matrix.noise.dtype) for x in (measured, expected))
    return matrix._replace(noise=matrix.noise * (measured / expected))


def _examples(tasks: Any) -> int:
    """How many examples of each task there are; one where no leaf has an axis of them."""
    return max([leaf.shape[1] for leaf in jax.tree.leaves(tasks) if jnp.ndim(leaf) > 1], default=1)


def _one_pass(plan, way, losses_of, params, batch, preconditioner) -> Measurement:
    """Losses, gradients and matrix from one pass over the rows of each task."""
    strategy = plan.strategy
    run = strategy.pullback if way is Way.LAGGED else strategy.gradients
    totals = _Totals()
    if way is Way.LAGGED and plan.shared is not None:
        run = functools.partial(run, shared=plan.shared)
    if isinstance(batch, Grouped):
        losses, pulled = run(losses_of, params, batch.tasks)
    else:
        taken = rows_lib.by_task(plan, batch)
        (losses, totals), pulled = run(_task_loss(losses_of), params, taken, has_aux=True)
    # A strategy may take each task in parts of as many rows.
    counts, excess = (
        None if x is None else x.reshape(plan.num_tasks, -1) for x in (totals.counts, totals.excess)
    )
    measured = Measurement(
        losses,
        counts=None if counts is None else counts.sum(axis=1),
        present=None if counts is None else counts.sum(axis=1) > 0,
        excess=None if excess is None else excess.mean(axis=1),
        auxiliary=totals.auxiliary,
    )
    if way is Way.LAGGED:
        return measured._replace(pullback=pulled)
    return measured._replace(gradients=pulled, preconditioner=preconditioner)


def _apart(plan, strategy, losses_of, params, batch, preconditioner) -> Measurement:
    """Losses from one pass over all rows; the matrix, when it is due, from another one."""
    row_losses, pull = rows_lib.forward(losses_of, params, batch.rows, plan.microbatches, batch.key)
    tasks = rows_lib.tasks_of(row_losses, batch.tasks, plan.num_tasks)
    sums, rows, dtype = tasks.sums, tasks.rows, row_losses.sums.dtype
    counts = rows if row_losses.counts is None else sums(row_losses.counts)
    each = rows_lib.divisor(counts, dtype)
    expected = rows_lib.divisor(rows, dtype) if batch.expected is None else batch.expected
    # What counts in as many rows as are expected.
    share = expected
    if row_losses.counts is not None:
        share = each * (expected.astype(dtype) / rows_lib.divisor(rows, dtype))

    def pullback(weights):
        return pull(tasks.of_rows(weights / share.astype(weights.dtype)).astype(dtype))

    def interaction():
        if plan.strategy.gives_products:
            return products_lib.of_batch(plan, losses_of, params, batch, preconditioner)
        if plan.whole and strategy.of_losses is not None:
            return strategy.of_losses(*_mean_losses(plan, losses_of, params, batch))
        if plan.whole:
            matrix, rows_each = _of_the_whole(
                plan, losses_of, params, batch, _Pass(row_losses, pull, tasks), preconditioner
            )
        else:
            matrix, rows_each = by_task()
        return _of_the_batch(matrix, rows_each, expected)

    def by_task():
        taken, is_real = rows_lib.by_task(plan, batch, plan.rows)
        task_loss = _task_loss(losses_of)
        counted = shared_lib.of_counted(lambda *both: task_loss(*both)[0], params, plan.shared)
        matrix = strategy.matrix(*counted, (taken, is_real))
        if isinstance(matrix, interaction_base.Measured):
            # A part without rows would seem to have a gradient of zero. What is known of the task
            # stays, as where it has no row at all.
            has_rows = is_real.reshape(plan.num_tasks, -1, plan.strategy.parts).any(axis=1)
            torn = has_rows.any(axis=1) & ~has_rows.all(axis=1)
            lost = jnp.where(torn[:, None] | torn[None, :], jnp.nan, matrix.matrix)
            matrix = matrix._replace(matrix=lost.astype(matrix.matrix.dtype))
        return matrix, is_real.sum(axis=1)

    return Measurement(
        sums(row_losses.sums) / each,
        pullback=pullback,
        interaction=interaction,
        present=counts > 0,
        counts=counts,
        excess=None if row_losses.excess is None else _mean(sums, row_losses.excess, rows),
        auxiliary=row_losses.auxiliary,
    )


def _mean_losses(plan, losses_of, params, batch):
    """The mean losses of all tasks, ``[N]``, as a function of the counted parameters; and these.

    They are those of one pass over the rows that the interaction is measured on.
    """
    other = rows_lib.measured_apart(plan, batch)
    rows, tasks = (batch.rows, batch.tasks) if other is None else other
    counted, params = shared_lib.of_counted(losses_of, params, plan.shared)

    def losses(params):
        found = counted(params, rows, *(() if batch.key is None else (batch.key,)))
        means, known = rows_lib.mean_losses(found, tasks, plan.num_tasks)
        # Of no rows there is no loss.
        return jnp.where(known, means, jnp.nan)

    return losses, params


class _Pass(NamedTuple):
    """A pass over some rows: losses, their pullback, and how the rows belong to tasks."""

    found: RowLosses
    pull: Callable[[jax.Array], Any]
    tasks: rows_lib.Tasks


def _of_the_whole(plan, losses_of, params, batch, here, preconditioner):
    """The matrix, and the rows of each task, by pulling back the mean loss of each task.

    ``here`` is the pass over the batch.
    """
    other = rows_lib.measured_apart(plan, batch)
    rows, tasks = (batch.rows, batch.tasks) if other is None else other
    microbatches = plan.microbatches if other is None else 1
    parts, dtype = plan.strategy.parts, here.found.sums.dtype

    def pass_over(rows):
        moved = losses_of, params, rows, microbatches
        if plan.features is not None:
            moved = functools.partial(_of_features, losses_of, params), plan.features(rows), rows, 1
        found, pull = rows_lib.forward(*moved, batch.key)
        return _Pass(found, pull, rows_lib.tasks_of(found, tasks, plan.num_tasks))

    def of_means(one):
        pull, counts = _of_means(one, parts)

        def counted(weights):
            gradient = pull(weights)
            if plan.features is None:
                gradient = shared_lib.counted(gradient, plan.shared)
            return geometry.scaled(gradient, preconditioner)

        return counted, counts

    if plan.tables is None:
        serves = other is None and plan.features is None
        one = here if serves else pass_over(rows)
        (pull, counts), rows_each = of_means(one), one.tasks.rows
        gram = pulled.matrix(
            pull,
            plan.num_tasks * parts,
            dtype,
            limit=interaction_base.limit(params),
            interval=plan.interval,
        )
    else:
        basis = jnp.eye(plan.num_tasks * parts, dtype=dtype)
        stacked, first = [], 0
        rows_each, counts = jnp.zeros(plan.num_tasks, jnp.int32), jnp.zeros(len(basis), dtype)
        for name, count in plan.tables.items():
            one, last = pass_over({name: rows[name]}), first + count * parts
            pull, own = of_means(one)
            stacked.append(jax.lax.map(pull, basis[first:last]))
            counts, rows_each, first = counts + own, rows_each + one.tasks.rows, last
        gram = interaction_base.gram(jax.tree.map(lambda *x: jnp.concatenate(x), *stacked))
    # Of no rows there is no gradient, not one of zero: what is known of the task stays.
    known = counts > 0
    gram = jnp.where(known[:, None] & known[None, :], gram, jnp.nan)
    from_gram = plan.strategy.from_gram
    return (gram if from_gram is None else from_gram(gram)), rows_each


def _of_features(losses_of: LossesOf, params: Any, perturbations: Any, rows: Any, *key: jax.Array):
    """The losses of rows as a function of what is added to their features."""
    moved = {name: {**given, "perturbations": perturbations[name]} for name, given in rows.items()}
    return losses_of(params, moved, *key)


def _of_means(one: _Pass, parts: int):
    """How to pull back the mean losses of all tasks, each in parts of as many rows.

    Returns ``weights [N × parts] -> gradient``, and what counts in each part, ``[N × parts]``.
    """
    dtype, rank = one.found.sums.dtype, one.tasks.rank
    own = [((rank >= 0) & (rank % parts == part)).astype(dtype) for part in range(parts)]
    counted = [x if one.found.counts is None else x * one.found.counts for x in own]
    counts = jnp.stack([one.tasks.sums(x) for x in counted], axis=1)

    def pull(weights):
        shares = weights.reshape(-1, parts) / rows_lib.divisor(counts, dtype)
        each = (one.tasks.of_rows(s) * x for s, x in zip(shares.T, own, strict=True))
        return one.pull(functools.reduce(operator.add, each))

    return pull, counts.reshape(-1)


class _Totals(NamedTuple):
    """Of the rows of a task."""

    counts: jax.Array | None = None
    excess: jax.Array | None = None
    auxiliary: Any = ()


def _task_loss(losses_of: LossesOf) -> Callable[[Any, Any], tuple[jax.Array, _Totals]]:
    """The mean loss of one task, of ``(rows, which of them are real)``."""

    def task_loss(params, taken):
        rows, is_real = taken
        row_losses = losses_of(params, rows)

        def total(values):
            return jnp.sum(jnp.where(is_real, values, 0))

        num_rows = jnp.sum(is_real, dtype=row_losses.sums.dtype)
        counts = None if row_losses.counts is None else total(row_losses.counts)
        each = num_rows if counts is None else rows_lib.divisor(counts, row_losses.sums.dtype)
        excess = None if row_losses.excess is None else _mean(total, row_losses.excess, num_rows)
        totals = _Totals(counts, excess, jax.tree.map(jnp.asarray, row_losses.auxiliary))
        return total(row_losses.sums) / each, totals

    return task_loss


def _mean(sum_of, values, rows):
    return sum_of(values) / rows_lib.divisor(rows, values.dtype)


def differentiated(
    losses_fn: Callable[[Any], Any], params: Any, dtype: Any, *, has_aux: bool = False
) -> Any:
    """Losses ``[N]`` of the tasks, and their pullback, ``weights [N] -> gradient``.

    The losses are in a dtype as wide as that of the weights. With ``has_aux`` the function returns
    a pair of them and something else, which comes third.

    Raises:
      ValueError: if the losses aren't floating-point numbers.
    """

    def at_least_dtype(params):
        losses, aux = losses_fn(params) if has_aux else (losses_fn(params), ())
        losses = interaction_base.replicated(losses)
        check_floating(losses)
        # The pullback then takes the weights as they are; a loss in half precision still
        # differentiates in half precision what it computes in it.
        return losses.astype(np.promote_types(losses.dtype, dtype)), aux

    losses, pullback, aux = jax.vjp(at_least_dtype, params, has_aux=True)
    pull = lambda weights: pullback(weights.astype(losses.dtype))[0]  # noqa: E731
    return (losses, pull, aux) if has_aux else (losses, pull)


def check_floating(losses: Any) -> None:
    """Raises ``ValueError`` for losses, or their shapes, that aren't floating-point numbers."""
    if not jnp.issubdtype(losses.dtype, jnp.floating):
        raise ValueError(
            "The losses must be real floating-point numbers, or no gradient flows through them, "
            f"but their dtype is {losses.dtype}. Compute them in float32."
        )

"""Training written out: a loop over the gradients of one row after another, in NumPy."""

from typing import Any, NamedTuple

import jax
import numpy as np
from helpers import oracles
from jax import flatten_util

from ldro_jax.tasks import drawing


class Step(NamedTuple):
    """What one step is taken on.

    Attributes:
      rows: a pytree of arrays [B, ...].
      tasks: of each row, [B].
      expected: rows of each task in a batch, [N].
      measured: rows to measure the interaction on and their tasks, if they are others.
    """

    rows: Any
    tasks: np.ndarray
    expected: np.ndarray
    measured: tuple[Any, np.ndarray] | None = None


def drawn(drawer, key, num_steps):
    """The batches of a run's first steps, as a program on the device draws them, in NumPy."""
    # One program: op by op there would be a hundred to compile.
    take = jax.jit(lambda key: drawing.stretch(drawer, key, 0, num_steps))
    return jax.tree.map(np.asarray, take(key))


def of_rows(gradient_of_row, params, rows):
    """Losses [R] and gradients [R, D] of rows, one after another."""
    size = len(jax.tree.leaves(rows)[0])
    rows = jax.tree.map(np.asarray, rows)
    found = [gradient_of_row(params, jax.tree.map(lambda x, i=i: x[i], rows)) for i in range(size)]
    gradients = [np.concatenate([np.ravel(x) for x in jax.tree.leaves(g)]) for _, g in found]
    return np.array([loss for loss, _ in found], np.float64), np.array(gradients, np.float64)


def gram(gradient_of_row, params, rows, tasks):
    """Inner products of the gradients of the tasks."""
    _, gradients = of_rows(gradient_of_row, params, rows)
    means = np.array([gradients[tasks == task].mean(axis=0) for task in range(max(tasks) + 1)])
    return means @ means.T


def taken(gradient_of_row, params, method, steps, *, learning_rate, momentum=0.0):
    """Losses, weights, interaction and parameters after every step.

    Args:
      gradient_of_row: (params, row) -> (loss, gradient).
      params: before the first step.
      method: the average, group DRO or online lookahead.
      steps: a Step each.
      learning_rate: of gradient descent.
      momentum: of gradient descent.

    Yields:
      What `training.step` keeps of each step.
    """
    steps = list(steps)
    num_tasks = len(steps[0].expected)
    rates = method.hyperparameters
    losses, weights = np.zeros(num_tasks), np.full(num_tasks, 1 / num_tasks)
    # Those of the method: a task that hasn't come yet has no weight, and will begin with the mean.
    own, seen = weights.copy(), np.zeros(num_tasks, bool)
    matrix, trace = np.zeros((num_tasks, num_tasks)), 0.0
    _, unravel = flatten_util.ravel_pytree(params)
    for number, step in enumerate(steps):
        values, gradients = of_rows(gradient_of_row, params, step.rows)
        for task in set(step.tasks.tolist()):  # an absent task keeps its last loss
            losses[task] = values[step.tasks == task].mean()
            seen[task] = True
        if method.uses_interaction and number % method.interval == 0:
            matrix = gram(gradient_of_row, params, *(step.measured or (step.rows, step.tasks)))
        if method.weighting != "average":
            last = own[seen] / own[seen].sum()
            if method.uses_interaction:
                normalized = oracles.normalized(matrix[np.ix_(seen, seen)])
                both = rates["lookahead_lr"], rates["weight_lr"]
                last = oracles.lookahead_step(losses[seen], normalized, last, *both)
            else:
                last = oracles.group_dro_step(losses[seen], last, rates["weight_lr"])
            own = np.full(num_tasks, 1 / seen.sum())
            own[seen] = last
            weights = np.where(seen, own, 0)
        # Where none are expected there are no rows to divide for.
        share = (weights / np.maximum(step.expected, 1e-9))[step.tasks]
        trace = share @ gradients + momentum * trace
        update = unravel(np.float32(trace))
        params = jax.tree.map(lambda p, u: p - learning_rate * u, params, update)
        # The loss of a task that has had no row is not known.
        yield np.where(seen, losses, np.nan), weights, matrix, params

"""What the weighting of a step is told: losses of the tasks, and how to get gradient and matrix."""

import ldro_jax.t5x.installed  # noqa: F401

# isort: split
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from t5x import trainer as trainer_lib

from ldro_jax.interaction import base as interaction_base
from ldro_jax.measuring import rows as rows_lib
from ldro_jax.t5x.model import row_tokens
from ldro_jax.t5x.tasks import TaskRows
from ldro_jax.tasks.drawing import places

# (params, rows, which row of the step each one is, int32 [R]) -> (losses [R], summed over tokens;
# T5X's metrics). A row has the same number in every pass over it.
RowLosses = Callable[[Any, Any, Any], tuple[jax.Array, Any]]


class Measured(NamedTuple):
    """What one batch says.

    Attributes:
      given: keyword arguments for :meth:`ldro_jax.t5x.optimizer.WeightedOptimizer.weigh`.
      metrics: T5X's, of the whole batch.
      tokens: target tokens of each task, ``[N]``.
    """

    given: dict[str, Any]
    metrics: dict[str, Any]
    tokens: jax.Array


class Statistics(NamedTuple):
    """Takes the statistics of batches.

    The loss of a task is the mean over its target tokens. Where rows were drawn at random, a task
    counts in the gradient by its rows in the batch relative to those expected. If rows have equally
    many tokens, as packed ones do, the mean over all batches that can be drawn is exactly the
    gradient of the weighted loss, whatever the number of rows; otherwise that of a ratio of sums,
    as T5X's own is. A task without a token in the batch is absent, and one that has tokens with a
    negative loss weight has a loss of NaN, in whose step nothing is trained.

    Attributes:
      num_tasks: N.
      strategy: how to measure the interaction.
      every_step: whether it is wanted in every step, so that the gradients of the tasks serve for
        the training gradient as well; so they do if every task has as many rows, all of them in
        one part and on every device.
      lagged: whether that of the step before is wanted, so that gradients needn't be held.
      microbatches: in how many parts to take a batch.
      interaction_rows: measure the interaction on so many rows of each task; ``None`` for all.
      over_data: the sharding of rows over the devices.
    """

    num_tasks: int
    strategy: interaction_base.Interaction
    every_step: bool
    lagged: bool
    microbatches: int
    interaction_rows: int | None
    over_data: NamedSharding

    def __call__(self, row_losses: RowLosses, params: Any, batch: TaskRows) -> Measured:
        """Measures.

        Args:
          row_losses: of the model.
          params: of the model.
          batch: features ``[B, ...]``, and the tasks of the rows.

        Returns:
          What it says.

        Raises:
          ValueError: if microbatches don't divide the rows.
        """
        size = batch.num_rows
        if size % self.microbatches:
            raise ValueError(
                f"The number of rows of a batch must be a multiple of the {self.microbatches} "
                f"microbatches, but it is {size}."
            )
        return (self._together if self._is_fused(batch) else self._apart)(row_losses, params, batch)

    def _is_fused(self, batch: TaskRows) -> bool:
        rows, rest = divmod(batch.num_rows, self.num_tasks)
        limit = rows if self.interaction_rows is None else self.interaction_rows
        way = self.strategy.pullback if self.lagged else self.strategy.gradients
        # Rows that only fill up would count in T5X's metrics.
        whole = batch.task is None and not rest and limit >= rows and not rows % self._multiple
        return self.every_step and way is not None and self.microbatches == 1 and whole

    @property
    def _multiple(self) -> int:
        """What the number of rows of a task must be a multiple of."""
        (axes,), mesh = self.over_data.spec, self.over_data.mesh
        axes = (axes,) if isinstance(axes, str) else axes
        return math.lcm(math.prod(mesh.shape[name] for name in axes), self.strategy.multiple)

    def _rows_by_task(self, rows: Mapping[str, Any], where: Any, limit: int | None):
        taken, is_real = rows_lib.by_task(
            rows, self.num_tasks, limit=limit, multiple=self._multiple, where=where
        )
        by_task = NamedSharding(self.over_data.mesh, PartitionSpec(None, *self.over_data.spec))
        return {**jax.lax.with_sharding_constraint(taken, by_task), "is_real": is_real}

    def _together(self, row_losses, params, batch) -> Measured:
        """Losses, gradients and matrix from one pass over the rows of each task."""
        found = self._rows_by_task(_numbered(batch.features), None, None)
        task_loss = _task_loss(row_losses)
        if self.lagged:
            (losses, extra), pull = self.strategy.pullback(task_loss, params, found, has_aux=True)
            given = {"pullback": pull}
        else:
            (losses, extra), gradients = self.strategy.gradients(
                task_loss, params, found, has_aux=True
            )
            given = {"updates": gradients}
        metrics, tokens = extra
        given |= {"losses": losses, "present": tokens > 0}
        return Measured(given, _merged(metrics, self.num_tasks), tokens)

    def _apart(self, row_losses, params, batch) -> Measured:
        """Losses from one pass over all rows; the matrix, when it is due, from another one."""
        size, num_tasks = batch.num_rows, self.num_tasks
        rows_of_batch = _numbered(batch.features)
        losses, stacked, pullback = rows_lib.forward(
            lambda p, rows, _: row_losses(p, rows["features"], rows["number"]),
            params,
            rows_of_batch,
            self.microbatches,
        )
        if batch.task is None:
            of_tasks = lambda values: values.reshape(-1, num_tasks).sum(axis=0)  # noqa: E731
            of_rows = lambda values: jnp.tile(values, size // num_tasks)  # noqa: E731
            rows = jnp.full((num_tasks,), size // num_tasks, jnp.float32)
        else:
            belongs = batch.task[None, :] == jnp.arange(num_tasks)[:, None]
            of_tasks = lambda values: jnp.where(belongs, values[None], 0).sum(axis=1)  # noqa: E731
            of_rows = lambda values: values[batch.task]  # noqa: E731
            rows = belongs.sum(axis=1).astype(jnp.float32)
        expected = rows if batch.share is None else batch.share * size
        tokens = of_tasks(row_tokens(batch.features))
        per_token = _per_token(tokens)
        expected = jnp.where(expected > 0, expected, 1)
        counted = rows / expected

        def interaction():
            measured, where = rows_of_batch, None
            if batch.measured is not None:
                measured = _numbered(batch.measured, first=size)
            elif batch.task is not None:
                where = places(batch.task, num_tasks, -(-size // num_tasks))
            taken = self._rows_by_task(measured, where, self.interaction_rows)
            task_loss = _task_loss(row_losses)
            found = self.strategy.matrix(lambda *both: task_loss(*both)[0], params, taken)
            if not isinstance(found, interaction_base.Measured):
                return found
            # The noise is that of the batch's gradients, whatever it was measured on.
            share = taken["is_real"].sum(axis=1) / expected
            return found._replace(noise=found.noise * share.astype(found.noise.dtype))

        given = {
            "losses": of_tasks(losses) * per_token,
            "present": tokens > 0,
            "pullback": lambda weights: pullback(of_rows(weights * counted * per_token)),
            "interaction_fn": interaction,
        }
        return Measured(given, _merged(stacked, self.microbatches), tokens)


def _numbered(features: Mapping[str, jax.Array], first: int = 0) -> dict[str, Any]:
    """Rows with their numbers, from ``first`` on."""
    size = jax.tree.leaves(features)[0].shape[0]
    return {"features": dict(features), "number": first + jnp.arange(size, dtype=jnp.int32)}


def _task_loss(row_losses: RowLosses):
    def task_loss(params, task):
        sums, metrics = row_losses(params, task["features"], task["number"])
        tokens = row_tokens(task["features"])
        sums, tokens = (jnp.where(task["is_real"], x, 0).sum() for x in (sums, tokens))
        metrics = jax.tree.map(jnp.asarray, metrics)
        return sums * _per_token(tokens), (metrics, tokens)

    return task_loss


def _per_token(tokens: jax.Array) -> jax.Array:
    """One over the number of tokens of each task; 1 for none, and NaN for what is no number."""
    return 1 / jnp.where(tokens == 0, 1, tokens)


def _merged(stacked: Any, parts: int) -> dict[str, Any]:
    """T5X's metrics of a whole batch from those of its parts, stacked."""
    metrics = jax.tree.map(lambda x: x[0], stacked)
    for index in range(1, parts):
        update = jax.tree.map(lambda x, index=index: x[index], stacked)
        metrics = trainer_lib.merge_metrics(metrics, update)
    return dict(metrics)

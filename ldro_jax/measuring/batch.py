"""What a step measures on: rows that belong to tasks, and the losses of a model on them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax


class RowLosses(NamedTuple):
    """The losses of a model on some rows.

    Attributes:
      sums: the loss of each row, ``[R]``, summed over what is counted in it. Where a row has labels
        of several tasks, its loss in each of them, ``[R, N]``.
      counts: what is counted in each row, such as its target tokens, of the shape of ``sums``;
        ``None`` if the rows themselves are. The loss of a task is the sum of its sums over the sum
        of its counts. A label that is missing has a sum and a count of zero.
      excess: by how much the model is worse on each row than a reference, like ``sums``, if the
        weighting asks for it.
      auxiliary: anything else that comes with the pass, such as metrics of these rows or the
        model's new state; a pytree of arrays.
    """

    sums: jax.Array
    counts: jax.Array | None = None
    excess: jax.Array | None = None
    auxiliary: Any = ()


# (params, rows [R, ...]) -> RowLosses; and a key as third argument, where the batch has one.
LossesOf = Callable[..., RowLosses]


class Batch(NamedTuple):
    """Rows to train on.

    Attributes:
      rows: arrays ``[B, ...]``.
      tasks: the task of each row, int32 ``[B]``; ``None`` if row r is of task ``r mod N``, or has
        labels of several tasks.
      expected: how many rows of each task a batch has, ``[N]``: as many as this one where no chance
        decides that, and as many as random batches have on average; ``None`` for those of this one.
        Of rows with labels of several tasks, how much counts of each task.
      measured: rows to measure the interaction on, arrays ``[M, ...]``, row r of task ``r mod N``
        (those after the last full turn only fill up), or a function without arguments that makes
        them when they are needed; ``None`` if those of ``rows`` serve for it.
      by_task: where the rows of each task are among ``rows``, if these serve for it, int32
        ``[N, E]``, filled up with −1, or a function that makes it; ``None`` if row r is of task
        ``r mod N``.
      reference: parameters of the reference model, if the weighting compares rows with one.
      key: for what a model draws at random; ``losses_of`` gets it as its third argument.
    """

    rows: Any
    tasks: jax.Array | None = None
    expected: jax.Array | None = None
    measured: Any = None
    by_task: Any = None
    reference: Any = None
    key: jax.Array | None = None

    @property
    def size(self) -> int:
        """B."""
        return jax.tree.leaves(self.rows)[0].shape[0]


class Grouped(NamedTuple):
    """The examples of each task by themselves, for a loss that takes all those of one task.

    Attributes:
      tasks: arrays ``[N, examples, ...]``.
      measured: others to measure the interaction on; ``None`` if these serve for it.
      dtype: of the weights. The losses are taken in it, if it is wider than their own, so that
        their pullback doesn't round the weights.
    """

    tasks: Any
    measured: Any
    dtype: Any

"""The mean loss of each task, from the losses of rows that belong to tasks."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ldro_jax.interaction.base import Interaction, replicated
from ldro_jax.measuring import rows as rows_lib
from ldro_jax.measuring.batch import RowLosses
from ldro_jax.runtime import checks


class Rows(NamedTuple):
    """Losses of rows that belong to tasks, which a ``losses_fn`` may return in place of ``[N]``.

    R rows may have T tokens each. Out of them come the mean loss of each task, which tasks have
    something that counts, and, for weightings that ask how noisy the gradients are, the losses of
    two halves of each task.

    Attributes:
      losses: floating point, ``[R]`` or ``[R, T]``; without ``task_ids`` ``[R, N]``, for rows with
        labels of several tasks.
      task_ids: the task of each row, integers ``[R]``; or of each token, ``[R, T]``, where rows are
        packed from several. What is in no task has an id that is none, such as −1.
      mask: what counts, bool, or how much, numbers; of the shape of ``losses``, or ``[R]``.
    """

    losses: Any
    task_ids: Any = None
    mask: Any = None

    def means(self, num_tasks: int, parts: int = 1) -> tuple[jax.Array, jax.Array]:
        """The mean losses of all tasks, ``[N × parts]``, and how much counts in each of them.

        Args:
          num_tasks: N.
          parts: in how many parts to take each task, rows in turn; those of a task are side by
            side.

        Raises:
          ValueError: if shapes or dtypes aren't as expected.
        """
        found, tasks = self._by_row(num_tasks)
        assert found.counts is not None
        of = rows_lib.tasks_of(found, tasks, num_tasks)
        own = [(of.rank >= 0) & (of.rank % parts == part) for part in range(parts)]
        sums, counts = (
            jnp.stack([of.sums(jnp.where(each, x, 0)) for each in own], axis=1).reshape(-1)
            for x in (found.sums, found.counts)
        )
        return sums / rows_lib.divisor(counts, sums.dtype), counts

    def _by_row(self, num_tasks: int) -> tuple[RowLosses, jax.Array | None]:
        # Rows are counted in order, which explicit axes don't allow where they are split.
        losses, ids, counts = jax.tree.map(replicated, self._checked(num_tasks))
        sums = jnp.where(counts != 0, losses * counts.astype(losses.dtype), 0)
        if ids is None:
            return RowLosses(sums, counts), None
        if ids.ndim > 1:
            belongs = ids[..., None] == jnp.arange(num_tasks, dtype=jnp.int32)[None, None]
            sums, counts = (jnp.where(belongs, x[..., None], 0).sum(axis=1) for x in (sums, counts))
            return RowLosses(sums, counts), None
        sums, counts = (x.reshape(x.shape[0], -1).sum(axis=1) for x in (sums, counts))
        # Rows of which nothing counts are in neither half.
        return RowLosses(sums, counts), jnp.where(counts != 0, ids, num_tasks)

    def _checked(self, num_tasks: int) -> tuple[jax.Array, jax.Array | None, jax.Array]:
        """Losses in float32 or wider, ids, and what counts, like the losses."""
        losses = jnp.asarray(self.losses)
        if not jnp.issubdtype(losses.dtype, jnp.floating):
            raise ValueError(
                "The losses of rows must be floating-point numbers, or no gradient flows through "
                f"them, but they are {checks.shown(losses)}."
            )
        losses = losses.astype(np.promote_types(losses.dtype, np.float32))
        ids = None if self.task_ids is None else jnp.asarray(self.task_ids)
        if ids is None:
            if losses.ndim != 2 or losses.shape[1] != num_tasks:
                raise ValueError(
                    f"Without task_ids, the losses of rows must be [rows, {num_tasks} tasks], but "
                    f"their shape is {losses.shape}."
                )
        elif not jnp.issubdtype(ids.dtype, jnp.integer):
            raise ValueError(f"task_ids must be integers, but they are {checks.shown(ids)}.")
        elif losses.ndim not in (1, 2) or ids.shape not in (losses.shape[:1], losses.shape):
            raise ValueError(
                "With task_ids, the losses must be [rows] or [rows, tokens], and the task_ids "
                f"[rows], or the same as the losses; but the losses are {losses.shape} and the "
                f"task_ids {ids.shape}."
            )
        ids = None if ids is None else ids.astype(jnp.int32)
        if self.mask is None:
            return losses, ids, jnp.ones(losses.shape, jnp.int32)
        mask = jnp.asarray(self.mask)
        if mask.shape == losses.shape[:1] != losses.shape:
            mask = mask[:, None]
        elif mask.shape != losses.shape:
            raise ValueError(
                f"mask must have the shape of the losses, {losses.shape}, or of the rows, "
                f"{losses.shape[:1]}, but its shape is {mask.shape}."
            )
        is_float = jnp.issubdtype(mask.dtype, jnp.floating)
        mask = mask.astype(losses.dtype if is_float else jnp.int32)
        return losses, ids, jnp.broadcast_to(mask, losses.shape)


def task_means(
    row_losses: Any, task_ids: Any, num_tasks: int, mask: Any = None
) -> tuple[jax.Array, jax.Array]:
    """The mean loss of each task in a batch whose rows, or tokens, belong to tasks.

    Args:
      row_losses: floating point, ``[R]`` or ``[R, T]``; with ``task_ids=None`` ``[R, N]``.
      task_ids: integers, ``[R]`` or ``[R, T]``; what is in no task has one that is none, as −1.
      num_tasks: N.
      mask: what counts, bool, or how much, numbers; like ``row_losses``, or ``[R]``.

    Returns:
      The mean over what counts of each task, ``[N]``, which is 0 where nothing does; and which
      tasks are present, because something does, bool ``[N]``: the argument ``present`` of
      ``update``.

    Raises:
      ValueError: if shapes or dtypes aren't as expected.

    Example:
      >>> import jax.numpy as jnp
      >>> from ldro_jax import ldro
      >>> losses, present = ldro.task_means(jnp.array([1.0, 2.0, 4.0]), jnp.array([0, 2, 2]), 3)
      >>> losses.tolist(), present.tolist()
      ([1.0, 0.0, 3.0], [True, False, True])
    """
    means, counts = Rows(row_losses, task_ids, mask).means(num_tasks)
    return means, counts > 0


def of_tasks(losses: Any, num_tasks: int) -> tuple[Any, jax.Array | None]:
    """The losses of tasks, and which are present if that is known, from what a function returned.

    Args:
      losses: ``[N]``, or :class:`Rows`.
      num_tasks: N.
    """
    if not isinstance(losses, Rows):
        return losses, None
    means, counts = losses.means(num_tasks)
    return means, counts > 0


def of_parts(
    gram: Callable[..., jax.Array],
    strategy: Interaction,
    num_tasks: int,
    rows_fn: Callable[[Any], Rows],
    params: Any,
) -> Any:
    """What a strategy that takes tasks in parts makes of the gradients of these.

    Args:
      gram: the Gram matrix of the gradients of a function ``params -> [M]``.
      strategy: has the parts.
      num_tasks: N.
      rows_fn: ``params -> Rows``.
      params: where to differentiate.
    """
    parts, from_gram = strategy.parts, strategy.from_gram
    assert from_gram is not None
    matrix = gram(lambda p: rows_fn(p).means(num_tasks, parts)[0], params)
    # Half a task has no rows. Its gradient isn't zero, it isn't known, and what was known stays.
    has_rows = (rows_fn(params).means(num_tasks, parts)[1] > 0).reshape(num_tasks, parts)
    torn = jnp.repeat(has_rows.any(axis=1) & ~has_rows.all(axis=1), parts)
    return from_gram(jnp.where(torn[:, None] | torn[None, :], jnp.nan, matrix))

"""Which rows make up a batch, drawn on the host from the numbers of rows drawn so far."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


class Draw(NamedTuple):
    """The rows of one batch.

    Attributes:
      tasks: the task of each row, int32 ``[B]``.
      indices: how many rows of that task were drawn before it, int64 ``[B]``.
      drawn: rows of each task drawn up to the end of the batch, int64 ``[N]``.
    """

    tasks: np.ndarray
    indices: np.ndarray
    drawn: np.ndarray


def draw_balanced(drawn: np.ndarray, batch_size: int) -> Draw:
    """The tasks in turn, so that all have the same number of rows.

    If the batch size is not a multiple of N, some tasks have one row more than others, and the next
    batch goes on with the next task. Interleaved rows of all tasks lie on every device when the
    batch is split over devices.

    Args:
      drawn: rows of each task drawn before, ``[N]``.
      batch_size: B.

    Returns:
      The draw.
    """
    num_tasks = len(drawn)
    rows = np.arange(batch_size)
    tasks = (rows + drawn.sum()) % num_tasks
    new = drawn + np.bincount(tasks, None, num_tasks)
    return Draw(tasks.astype(np.int32), drawn[tasks] + rows // num_tasks, new)


def rows_by_task(tasks: np.ndarray, num_tasks: int) -> np.ndarray:
    """Where the rows of each task are in a batch.

    Args:
      tasks: the task of each row, ``[B]``, dealt in turn.
      num_tasks: N.

    Returns:
      int32 ``[N, ⌈B / N⌉]``; −1 where a task has fewer rows than others.
    """
    found = np.full((num_tasks, -(-len(tasks) // num_tasks)), -1, np.int32)
    found[tasks, np.arange(len(tasks)) // num_tasks] = np.arange(len(tasks))
    return found


def probabilities(weights: Any) -> np.ndarray:
    """Numbers for each task as the probabilities to draw rows with.

    Args:
      weights: ``[N]``, which may sum to any number; a negative one counts by its size.

    Returns:
      ``[N]``, float32, which sum to one.
    """
    sizes = np.abs(np.asarray(weights, np.float64))
    total = sizes.sum()
    even = np.full(sizes.shape, 1 / sizes.size)
    # As they are if they sum to one but for rounding, so that they stay the weights to the bit.
    if abs(total - 1) < 1e-5 and np.min(weights) >= 0:
        return np.asarray(weights, np.float32)
    return (sizes / total if 0 < total < np.inf else even).astype(np.float32)


def probabilities_of_weights(weights: Any, seen: Any = True) -> np.ndarray:
    """The probabilities to draw rows with until the weights are looked at again.

    These are the weights, with two exceptions, since a row that is never drawn counts for nothing
    however large the weight of its task becomes meanwhile: no task has less than a hundredth of an
    even share, and one that was in no batch yet, whose weight means nothing, has an even share.

    Args:
      weights: of the last step, ``[N]``, which may sum to any number.
      seen: the tasks that were in some batch so far, bool ``[N]``.

    Returns:
      ``[N]``, float32, which sum to one and are positive.
    """
    found = probabilities(weights)
    even = np.float32(1 / found.size)
    raised = np.where(seen, np.maximum(found, even / 100), even)
    # As they are if none was raised, so that they stay the weights to the bit.
    return found if np.array_equal(raised, found) else probabilities(raised)


def expected_if_uniform(sizes: np.ndarray, batch_size: int) -> np.ndarray:
    """How many rows of each task a plain random batch has on average.

    Args:
      sizes: rows of each task, ``[N]``.
      batch_size: B.

    Returns:
      ``[N]``, float32, which sum to B.
    """
    shares = np.asarray(sizes, np.float64) / np.sum(sizes, dtype=np.float64)
    return (batch_size * shares).astype(np.float32)


def draw_mixed(
    drawn: np.ndarray, batch_size: int, probabilities: np.ndarray, seed: Sequence[int]
) -> Draw:
    """Rows of random tasks.

    On average a task i has ``B q_i`` of them. A row counts ``w_i / (B q_i)``, so the gradient is
    that of the weighted loss in expectation, however the weights w have moved since the
    probabilities q were set.

    Args:
      drawn: rows of each task drawn before, ``[N]``.
      batch_size: B.
      probabilities: of each task, ``[N]``.
      seed: of this draw.

    Returns:
      The draw.
    """
    rng = np.random.default_rng(seed)
    share = np.asarray(probabilities, np.float64)
    tasks = rng.choice(len(drawn), size=batch_size, p=share / share.sum())
    return _in_turn(drawn, tasks)


def draw_uniform(
    drawn: np.ndarray, batch_size: int, sizes: np.ndarray, seed: Sequence[int]
) -> Draw:
    """Plain random batches: epochs over the rows of all tasks, whatever their task.

    A task may have no row in a batch. On average it has :func:`expected_if_uniform`.

    Args:
      drawn: rows of each task drawn before, ``[N]``.
      batch_size: B.
      sizes: rows of each task in an epoch, ``[N]``.
      seed: of the run.

    Returns:
      The draw.
    """
    first, total = int(drawn.sum()), int(sizes.sum())
    positions = np.arange(first, first + batch_size)
    tasks = np.empty(batch_size, np.int64)
    for epoch in range(positions[0] // total, positions[-1] // total + 1):
        order = np.random.default_rng([*seed, epoch]).permutation(
            np.repeat(np.arange(len(sizes)), sizes)
        )
        here = positions // total == epoch
        tasks[here] = order[positions[here] % total]
    return _in_turn(drawn, tasks)


def _in_turn(drawn: np.ndarray, tasks: np.ndarray) -> Draw:
    """The next rows of some tasks."""
    before = np.zeros(len(tasks), np.int64)
    for task in range(len(drawn)):
        mine = tasks == task
        before[mine] = np.arange(mine.sum())
    return Draw(
        tasks.astype(np.int32), drawn[tasks] + before, drawn + np.bincount(tasks, None, len(drawn))
    )

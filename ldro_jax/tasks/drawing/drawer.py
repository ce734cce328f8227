"""Batches drawn on the host, one after another, from the numbers of rows drawn so far.

A :class:`Drawer` is data: with the same fields it draws the same batch, in every process. It
doesn't change; drawing gives the one that draws the next batch.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ldro_jax.runtime import checks
from ldro_jax.tasks.drawing import shares

# Of what Drawer.record gives. Another one is refused.
VERSION = 1
_WORDS = {
    "balanced": "from the tasks in turn",
    "uniform": "in epochs over the rows of all tasks",
    "probabilities": "from random tasks",
}


class Draw(NamedTuple):
    """The rows of a batch, or of the batches of several steps.

    Attributes:
      tasks: the task of each row, int32 ``[B]``; on the device ``[step, B]``.
      indices: which row of that task it is, ``[B]``: from the host its number, int64, how many rows
        of the task the run has drawn before; on the device its place in the task's data, int32
        ``[step, B]``.
    """

    tasks: Any
    indices: Any


@dataclasses.dataclass(frozen=True, eq=False)
class Drawer:
    """What decides the next batch, and all that must be saved to go on from there.

    Attributes:
      sampler: ``"balanced"``, the tasks in turn, so that all have the same number of rows; where
        the batch size is no multiple of N, some tasks have a row more, and the next batch goes on
        with the next task. ``"uniform"``, plain random batches: epochs over the rows of all tasks,
        whatever their task, so that a task may have none. ``"probabilities"``, each row of a random
        task.
      size: rows in a batch, B.
      counts: rows of each task drawn so far, int64 ``[N]``.
      seed: of random draws.
      step: number of batches drawn so far.
      sizes: rows of each task in the data, ``[N]``, if it is finite; "uniform" needs them.
      probabilities: of the tasks, float32 ``[N]``, for "probabilities"; ``None`` until
        :meth:`following` gives them.

    Raises:
      ValueError: if the sampler is unknown, or needs ``sizes``.
    """

    sampler: str
    size: int
    counts: np.ndarray
    seed: int = 0
    step: int = 0
    sizes: np.ndarray | None = None
    probabilities: np.ndarray | None = None

    def __post_init__(self) -> None:
        checks.one_of("sampler", self.sampler, ("balanced", "uniform", "probabilities"))
        if self.sampler == "uniform" and self.sizes is None:
            raise ValueError(
                "sampler must be 'balanced' for tasks without a number of rows, but it is "
                "'uniform'."
            )

    @property
    def num_tasks(self) -> int:
        """Number of tasks, N."""
        return len(self.counts)

    def next(self) -> tuple[Draw, "Drawer"]:
        """Draws a batch. Returns the draw, and what draws the batch after it.

        A balanced batch has the tasks in turn, so each device that takes a part of it gets all.
        """
        tasks = {
            "balanced": self._in_turn,
            "uniform": self._of_epochs,
            "probabilities": self._at_random,
        }[self.sampler]()
        indices, counts = numbered(tasks, self.counts)
        after = dataclasses.replace(self, counts=counts, step=self.step + 1)
        return Draw(tasks.astype(np.int32), indices), after

    def _in_turn(self) -> np.ndarray:
        return (np.arange(self.size) + self.counts.sum()) % self.num_tasks

    def _of_epochs(self) -> np.ndarray:
        sizes = np.asarray(self.sizes)
        total, first = int(sizes.sum()), int(self.counts.sum())
        positions = np.arange(first, first + self.size)
        tasks = np.empty(self.size, np.int64)
        for epoch in range(positions[0] // total, positions[-1] // total + 1):
            order = np.random.default_rng([self.seed, epoch]).permutation(
                np.repeat(np.arange(self.num_tasks), sizes)
            )
            here = positions // total == epoch
            tasks[here] = order[positions[here] % total]
        return tasks

    def _at_random(self) -> np.ndarray:
        share = np.asarray(self.probabilities, np.float64)
        rng = np.random.default_rng([self.seed, self.step])
        return rng.choice(self.num_tasks, size=self.size, p=share / share.sum())

    def ahead(self, rows: int) -> Draw:
        """The rows that come next, row r of task ``r mod N``, without drawing them."""
        tasks = np.arange(rows) % self.num_tasks
        return Draw(tasks.astype(np.int32), numbered(tasks, self.counts)[0])

    def expected(self, tasks: Any) -> Any:
        """How many rows of each task a batch has, or has on average if it is drawn at random.

        The weight of a row is ``w_i`` divided by this number for its task, so that a task counts by
        its weight whatever its rows: with probabilities q the gradient is that of the weighted loss
        in expectation, however the weights have moved since q was set.

        Args:
          tasks: the task of each row of the batch, ``[B]``, a NumPy or JAX array.

        Returns:
          Float32 ``[N]``; they sum to B.
        """
        if self.sampler == "probabilities":
            return np.asarray(self.probabilities) * np.float32(self.size)
        if self.sampler == "uniform":
            sizes = np.asarray(self.sizes, np.float64)
            return (self.size * (sizes / sizes.sum())).astype(np.float32)
        if isinstance(tasks, jax.Array):
            return jnp.bincount(tasks, length=self.num_tasks).astype(jnp.float32)
        return np.bincount(tasks, None, self.num_tasks).astype(np.float32)

    def following(self, weights: Any, seen: Any = True) -> "Drawer":
        """The same drawer, whose probabilities, if it draws by these, are those of task weights.

        See :func:`~ldro_jax.tasks.drawing.shares.probabilities_of_weights` for the arguments.
        """
        if self.sampler != "probabilities":
            return self
        probabilities = shares.probabilities_of_weights(weights, seen)
        return dataclasses.replace(self, probabilities=probabilities)

    def record(self) -> dict[str, Any]:
        """What a checkpoint keeps of the drawer, in plain JSON types."""
        probabilities = self.probabilities
        return {
            "version": VERSION,
            "sampler": self.sampler,
            "step": self.step,
            "counts": self.counts.tolist(),
            "probabilities": None if probabilities is None else probabilities.tolist(),
        }

    def restored(self, record: Mapping[str, Any] | None) -> "Drawer":
        """The drawer at the place of which :meth:`record` was made.

        Raises:
          ValueError: if the record is of another version, sampler or number of tasks.
        """
        version = (record or {}).get("version")
        if record is None or version != VERSION:
            raise ValueError(
                "The place in the data was saved by another version of ldro_jax, in format "
                f"{version or 0}, but this one reads format {VERSION}. Go on with the version that "
                "saved it, or begin a new run."
            )
        if record["sampler"] != self.sampler:
            raise ValueError(
                f"The rows so far were drawn {_WORDS[record['sampler']]}, but now would be "
                f"{_WORDS[self.sampler]}. Give the run the sampling it began with, or begin a new "
                "run."
            )
        if len(record["counts"]) != self.num_tasks:
            raise ValueError(
                f"The rows so far were drawn of {len(record['counts'])} tasks, but now there are "
                f"{self.num_tasks}. Give the run the tasks it began with, or begin a new run."
            )
        saved = record["probabilities"]
        return dataclasses.replace(
            self,
            step=int(record["step"]),
            counts=np.array(record["counts"], np.int64),
            probabilities=None if saved is None else np.array(saved, np.float32),
        )


def numbered(tasks: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers the next rows of some tasks.

    Args:
      tasks: the task of each row, in order, ``[B]``.
      counts: rows of each task before these, ``[N]``.

    Returns:
      How many rows of its task come before each row, int64 ``[B]``, and the counts with these rows,
      int64 ``[N]``.
    """
    before = np.zeros(len(tasks), np.int64)
    for task in range(len(counts)):
        mine = tasks == task
        before[mine] = np.arange(mine.sum())
    return counts[tasks] + before, counts + np.bincount(tasks, None, len(counts))


def rows_by_task(tasks: np.ndarray, num_tasks: int) -> np.ndarray:
    """Where the rows of each task are in a batch that has the tasks in turn, ``[B]``.

    Returns:
      int32 ``[N, ⌈B / N⌉]``; −1 where a task has fewer rows than others.
    """
    by_task = np.full((num_tasks, -(-len(tasks) // num_tasks)), -1, np.int32)
    by_task[tasks, np.arange(len(tasks)) // num_tasks] = np.arange(len(tasks))
    return by_task

"""Token sequences of many tasks, without end and in an order that a few numbers describe.

All text of a task is one array of tokens. Training cuts it into sequences of full length and deals
them out in a new order in each epoch. Which sequence comes next is a function of the seed and of
the number of sequences drawn so far, so a run that is resumed repeats and skips nothing.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from absl import logging

from ldro_jax.tasks import base


class Source(Protocol):
    """Where the training sequences of all tasks come from.

    What can be drawn at random, such as :class:`ShuffledSequences`, has no state; a stream of text
    saves its own.

    Attributes:
      identity: what a run must begin with again to go on, in plain JSON types.
    """

    @property
    def identity(self) -> Mapping[str, Any]:
        """See the attributes."""
        ...

    def rows(self, tasks: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """Sequences to train on.

        Args:
          tasks: the task of each row, ``[R]``.
          indices: how many sequences of that task were drawn before it, ``[R]``.

        Returns:
          int32 ``[R, L]``.
        """
        ...

    def save(self, directory: pathlib.Path) -> None:
        """Writes where the source is, so that another one can go on from there.

        Args:
          directory: an empty one.
        """
        ...

    def restore(self, directory: pathlib.Path) -> None:
        """Goes on from where :meth:`save` was called.

        Args:
          directory: what was written.
        """
        ...


class Stream(Protocol):
    """Training text that is too large to hold.

    Attributes:
      sizes: amount of text of each task, in any unit, ``[N]``.
    """

    sizes: np.ndarray

    def source(self, length: int, seed: int) -> Source:
        """Starts reading.

        Args:
          length: L, of a sequence.
          seed: of the order.

        Returns:
          The source.
        """
        ...

    def only(self, task: int) -> "Stream":
        """The text of one task.

        Args:
          task: its index.

        Returns:
          A stream with N = 1.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Tokens of several tasks.

    Attributes:
      task_names: one name for each task, N of them.
      vocab_size: tokens are smaller; 0 is padding.
      vocabulary: fingerprint of the vocabulary.
      train: the tokens of each task, N arrays ``[tokens]``; none if there is a stream.
      validation: the same, to choose by.
      test: the same, to report on.
      stream: where training text comes from instead.
    """

    task_names: tuple[str, ...]
    vocab_size: int
    vocabulary: str
    train: Sequence[np.ndarray]
    validation: Sequence[np.ndarray]
    test: Sequence[np.ndarray]
    stream: Stream | None = None

    def __post_init__(self):
        if len(set(self.task_names)) < len(self.task_names) or not self.task_names:
            raise ValueError(f"Every task needs its own name, but they are {self.task_names}.")
        for split in ("train", "validation", "test")[self.stream is not None :]:
            tokens = getattr(self, split)
            if len(tokens) != self.num_tasks:
                raise ValueError(f"{split} has {len(tokens)} tasks, expected {self.num_tasks}.")
            empty = [n for n, t in zip(self.task_names, tokens, strict=True) if not len(t)]
            if empty:
                raise ValueError(
                    f"Every task needs {split} text, but these have none: {', '.join(empty)}. "
                    "Leave them out, or give them text."
                )

    @property
    def num_tasks(self) -> int:
        """Number of tasks, N."""
        return len(self.task_names)

    @property
    def sizes(self) -> np.ndarray:
        """Training tokens of each task, or the sizes that a stream gives, ``[N]``."""
        if self.stream is not None:
            return self.stream.sizes
        return np.array([len(tokens) for tokens in self.train])

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """What tells this text from other text of the same languages, in plain JSON types.

        Of a stream, its sizes stand for its training text.
        """
        return {
            "vocabulary": self.vocabulary,
            "task_names": list(self.task_names),
            "sizes": self.sizes.tolist(),
            "content": base.content([*self.train, *self.validation, *self.test]),
        }

    def source(self, length: int, seed: int) -> Source:
        """Where training sequences come from.

        Args:
          length: L, of a sequence.
          seed: of their order.

        Returns:
          The source.
        """
        if self.stream is not None:
            return self.stream.source(length, seed)
        return ShuffledSequences(self.train, length, seed)

    def only(self, task: int) -> "Corpus":
        """The corpus of one task alone.

        Args:
          task: its index.

        Returns:
          A corpus with N = 1.
        """
        parts: dict[str, Any] = {
            split: [getattr(self, split)[task]] for split in ("validation", "test")
        }
        if self.stream is not None:
            parts["stream"] = self.stream.only(task)
        else:
            parts["train"] = [self.train[task]]
        return dataclasses.replace(self, task_names=(self.task_names[task],), **parts)


class ShuffledSequences:
    """Sequences of full length, every one once in an epoch, in an order of its own each epoch.

    Args:
      tokens: the tokens of each task, N arrays.
      length: L, of a sequence.
      seed: of the orders.
    """

    def __init__(self, tokens: Sequence[np.ndarray], length: int, seed: int):
        self.identity: dict[str, Any] = {}
        self._tokens, self._length, self._seed = tokens, length, seed
        self._counts = [max(len(t) // length, 1) for t in tokens]
        self._orders: dict[int, tuple[int, int, np.ndarray]] = {}

    def rows(self, tasks: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """See :class:`Source`."""
        return np.stack([self._row(int(t), int(i)) for t, i in zip(tasks, indices, strict=True)])

    def save(self, directory: pathlib.Path) -> None:
        """Does nothing: the next row is known by the number of rows drawn."""

    def restore(self, directory: pathlib.Path) -> None:
        """Does nothing."""

    def _row(self, task: int, index: int) -> np.ndarray:
        tokens = self._tokens[task]
        if len(tokens) < self._length:
            return np.resize(tokens, self._length).astype(np.int32)
        epoch, position = divmod(index, self._counts[task])
        offset, order = self._order(task, epoch)
        start = offset + int(order[position]) * self._length
        return tokens[start : start + self._length].astype(np.int32)

    def _order(self, task: int, epoch: int) -> tuple[int, np.ndarray]:
        known = self._orders.get(task)
        if known is None or known[0] != epoch:
            rng = np.random.default_rng([self._seed, task, epoch])
            # Another offset cuts the text elsewhere, and leaves out another remainder.
            offset = int(rng.integers(len(self._tokens[task]) % self._length + 1))
            order = rng.permutation(np.arange(self._counts[task], dtype=np.uint32))
            known = self._orders[task] = (epoch, offset, order)
        return known[1], known[2]


def warn_of_repeats(corpus: Corpus, length: int, per_step: float) -> None:
    """Says once which tasks have so little text that a batch or a sequence repeats it.

    Args:
      corpus: the text.
      length: L.
      per_step: sequences of each task in a batch.
    """
    short = [
        f"{name} ({size} tokens)"
        for name, size in zip(corpus.task_names, corpus.sizes, strict=True)
        if size < length * max(per_step, 1)
    ]
    if short:
        logging.warning(
            "These tasks have less text than one batch takes of them, %d tokens, so it is "
            "repeated: %s.",
            round(length * max(per_step, 1)),
            ", ".join(short),
        )


class Draw(NamedTuple):
    """The rows of one batch.

    Attributes:
      tasks: the task of each row, int32 ``[B]``.
      indices: how many sequences of that task were drawn before it, int64 ``[B]``.
      drawn: sequences of each task drawn up to the end of the batch, int64 ``[N]``.
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
      drawn: sequences of each task drawn before, ``[N]``.
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


def draw_mixed(
    drawn: np.ndarray, batch_size: int, probabilities: np.ndarray, seed: Sequence[int]
) -> Draw:
    """Rows of random tasks.

    Args:
      drawn: sequences of each task drawn before, ``[N]``.
      batch_size: B.
      probabilities: of each task, ``[N]``.
      seed: of this draw.

    Returns:
      The draw.
    """
    rng = np.random.default_rng(seed)
    share = np.asarray(probabilities, np.float64)
    tasks = rng.choice(len(drawn), size=batch_size, p=share / share.sum())
    before = np.zeros(batch_size, np.int64)
    for task in range(len(drawn)):
        mine = tasks == task
        before[mine] = np.arange(mine.sum())
    return Draw(
        tasks.astype(np.int32), drawn[tasks] + before, drawn + np.bincount(tasks, None, len(drawn))
    )


class EvaluationBatch(NamedTuple):
    """Rows of held-out text.

    Attributes:
      tokens: int32 ``[R, L]``, padded with zeros.
      lengths: number of real tokens of each row, int32 ``[R]``.
      tasks: the task of each row, int32 ``[R]``.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    tasks: np.ndarray


def evaluation_batches(
    tokens: Sequence[np.ndarray], *, length: int, batch_size: int, max_tokens: int | None = None
) -> Iterator[EvaluationBatch]:
    """All text of all tasks in order, each token once.

    Args:
      tokens: the tokens of each task, N arrays.
      length: L, of a row.
      batch_size: rows in a batch; the last is filled up with rows of length zero.
      max_tokens: take only so many tokens of each task, from its beginning.

    Yields:
      Batches, all of the same shape.
    """
    starts = [
        (task, start)
        for task, text in enumerate(tokens)
        for start in range(0, min(len(text), max_tokens or len(text)), length)
    ]
    for first in range(0, len(starts), batch_size):
        batch = EvaluationBatch(
            np.zeros((batch_size, length), np.int32),
            np.zeros(batch_size, np.int32),
            np.zeros(batch_size, np.int32),
        )
        for row, (task, start) in enumerate(starts[first : first + batch_size]):
            end = min(start + length, max_tokens or start + length)
            part = tokens[task][start:end]
            batch.tokens[row, : len(part)] = part
            batch.lengths[row], batch.tasks[row] = len(part), task
        yield batch

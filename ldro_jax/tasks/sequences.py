"""Token sequences of many tasks, without end and in an order that a few numbers describe.

All text of a task is one array of tokens. Training cuts it into sequences of full length and deals
them out in a new order in each epoch. Which sequence comes next is a function of the seed and of
the number of sequences drawn so far, so a run that is resumed repeats and skips nothing.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from absl import logging
from typing_extensions import override

from ldro_jax.runtime import checks
from ldro_jax.tasks import base
from ldro_jax.tasks.drawing import Orders
from ldro_jax.tasks.source import Source


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
          A :class:`~ldro_jax.tasks.source.Source`.
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
        checks.sequence("task_names", self.task_names, "names, such as ('aa', 'bb')")
        checks.integer("vocab_size", self.vocab_size)
        if len(set(self.task_names)) < len(self.task_names) or not self.task_names:
            raise ValueError(f"Every task needs its own name, but they are {self.task_names}.")
        for split in ("train", "validation", "test")[self.stream is not None :]:
            tokens = getattr(self, split)
            checks.require(hasattr(tokens, "__len__"), split, "the tokens of each task", tokens)
            if len(tokens) != self.num_tasks:
                raise ValueError(f"{split} has {len(tokens)} tasks, expected {self.num_tasks}.")
            for name, each in zip(self.task_names, tokens, strict=True):
                fits = isinstance(each, np.ndarray) and each.ndim == 1 and each.dtype.kind in "iu"
                checks.require(fits, f"{split} of {name}", "an array of integers [tokens]", each)
                # Those in a file are what a vocabulary of this size gave.
                if isinstance(each, np.memmap) or not each.size:
                    continue
                # JAX takes a token beyond the vocabulary for its last one.
                if each.min() < 0 or each.max() >= self.vocab_size:
                    raise ValueError(
                        f"{split} of {name} must have tokens from 0 to {self.vocab_size - 1}, but "
                        f"they are from {each.min()} to {each.max()}."
                    )
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


class ShuffledSequences(Source):
    """Sequences of full length, every one once in an epoch, in an order of its own each epoch.

    Args:
      tokens: the tokens of each task, N arrays.
      length: L, of a sequence.
      seed: of the orders.
    """

    def __init__(self, tokens: Sequence[np.ndarray], length: int, seed: int):
        self._tokens, self._length = tokens, length
        counts = [max(len(t) // length, 1) for t in tokens]
        # Another offset cuts the text elsewhere, and leaves out another remainder.
        self._orders = Orders(counts, seed, [len(t) % length for t in tokens])

    @override
    def rows(self, tasks: np.ndarray, indices: np.ndarray) -> np.ndarray:
        return np.stack([self._row(int(t), int(i)) for t, i in zip(tasks, indices, strict=True)])

    def _row(self, task: int, index: int) -> np.ndarray:
        tokens = self._tokens[task]
        if len(tokens) < self._length:
            return np.resize(tokens, self._length).astype(np.int32)
        offset, place = self._orders(task, index)
        start = offset + place * self._length
        return tokens[start : start + self._length].astype(np.int32)


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

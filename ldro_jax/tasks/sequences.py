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
        """Starts reading sequences of ``length`` tokens, in an order that the seed decides."""
        ...

    def only(self, task: int) -> "Stream":
        """The text of one task, by its number: a stream with N = 1."""
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

    def __post_init__(self) -> None:
        checks.names("task_names", self.task_names, "('aa', 'bb')")
        checks.integer("vocab_size", self.vocab_size)
        for split in ("train", "validation", "test")[self.stream is not None :]:
            self._check_split(split, getattr(self, split))

    def _check_split(self, split: str, tokens: Any) -> None:
        checks.require(hasattr(tokens, "__len__"), split, "the tokens of each task", tokens)
        if len(tokens) != self.num_tasks:
            raise ValueError(f"{split} has {len(tokens)} tasks, expected {self.num_tasks}.")
        for name, text in zip(self.task_names, tokens, strict=True):
            fits = isinstance(text, np.ndarray) and text.ndim == 1 and text.dtype.kind in "iu"
            checks.require(fits, f"{split} of {name}", "an array of integers [tokens]", text)
            # Those in a file are what a vocabulary of this size gave.
            if isinstance(text, np.memmap) or not text.size:
                continue
            # JAX takes a token beyond the vocabulary for its last one.
            if text.min() < 0 or text.max() >= self.vocab_size:
                raise ValueError(
                    f"{split} of {name} must have tokens from 0 to {self.vocab_size - 1}, but "
                    f"they are from {text.min()} to {text.max()}."
                )
        if empty := [n for n, t in zip(self.task_names, tokens, strict=True) if not len(t)]:
            raise ValueError(
                f"Every task needs {split} text, but these have none: {', '.join(empty)}. Leave "
                "them out, or give them text."
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
        """Where sequences of ``length`` tokens come from; the seed decides their order."""
        if self.stream is not None:
            return self.stream.source(length, seed)
        return ShuffledSequences(self.train, length, seed)

    def only(self, task: int) -> "Corpus":
        """The corpus of one task alone, by its number."""
        return dataclasses.replace(
            self,
            task_names=self.task_names[task : task + 1],
            train=self.train[task : task + 1],
            validation=self.validation[task : task + 1],
            test=self.test[task : task + 1],
            stream=None if self.stream is None else self.stream.only(task),
        )


class ShuffledSequences(Source):
    """Sequences of full length, every one once in an epoch, in an order of its own each epoch.

    Args:
      tokens: the tokens of each task, N arrays.
      length: L, of a sequence.
      seed: of the orders.
    """

    def __init__(self, tokens: Sequence[np.ndarray], length: int, seed: int) -> None:
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
    """Logs which tasks have less text than ``per_step`` sequences, or one, of ``length`` tokens."""
    needed = length * max(per_step, 1)
    sizes = zip(corpus.task_names, corpus.sizes, strict=True)
    if short := [f"{name} ({size} tokens)" for name, size in sizes if size < needed]:
        logging.warning(
            "These tasks have less text than one batch takes of them, %d tokens, so it is "
            "repeated: %s.",
            *(round(needed), ", ".join(short)),
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
    ends = [min(len(text), max_tokens or len(text)) for text in tokens]
    rows = [
        (task, start, min(start + length, end))
        for task, end in enumerate(ends)
        for start in range(0, end, length)
    ]
    for first in range(0, len(rows), batch_size):
        batch = EvaluationBatch(
            np.zeros((batch_size, length), np.int32),
            np.zeros(batch_size, np.int32),
            np.zeros(batch_size, np.int32),
        )
        for row, (task, start, end) in enumerate(rows[first : first + batch_size]):
            batch.tokens[row, : end - start] = tokens[task][start:end]
            batch.lengths[row], batch.tasks[row] = end - start, task
        yield batch

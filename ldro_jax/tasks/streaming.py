"""Training text that is too large to hold, read from seqio tasks while the training goes on.

Each task has a pipeline of its own: documents are read, tokenised, shuffled, put end to end and cut
into sequences of full length, a few of them ahead of their use. No token is left out and none is
padding, so a sequence can hold the end of one document and the beginning of others.

The pipelines of all tasks share the process's one thread pool, with a thread for each core, so they
don't compete for cores. Each pipeline also has about 20 threads of its own that only wait for files
and pass results on, however many cores there are.
"""

import contextlib
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ldro_jax.runtime import errors, paths
from ldro_jax.tasks import vocabulary
from ldro_jax.tasks.source import Source

# Sequences of each task that are ready before they are asked for: a step or two of a large batch.
_READY = 64
# TFDS reads 16 files of a task at a time with 8 MiB each, which would be 5 GB for 40 tasks.
_FILES, _FILE_BUFFER = 4, 2**20


class SeqioStream:
    """Tasks of seqio as training text; a :class:`~ldro_jax.tasks.sequences.Stream`.

    Args:
      tasks: N of type ``seqio.Task``, with a split train and tokens in the feature ``targets``,
        which end with the mark for the end of a document.
      sizes: amount of text of each task, in any unit, ``[N]``.

    Raises:
      ValueError: if there are more or fewer sizes than tasks, or more than one vocabulary.
    """

    def __init__(self, tasks: Sequence[Any], sizes: Sequence[int] | np.ndarray) -> None:
        if len(tasks) != len(sizes):
            raise ValueError(f"Every task needs a size, but {len(tasks)} have {len(sizes)} sizes.")
        self.sizes: np.ndarray = np.asarray(sizes)
        self._tasks = tuple(tasks)
        _vocabulary(tasks)

    def source(self, length: int, seed: int) -> "StreamingSequences":
        """See :class:`~ldro_jax.tasks.sequences.Stream`."""
        return StreamingSequences(self._tasks, length, seed)

    def only(self, task: int) -> "SeqioStream":
        """See :class:`~ldro_jax.tasks.sequences.Stream`."""
        return SeqioStream([self._tasks[task]], self.sizes[task : task + 1])


class StreamingSequences(Source):
    """Sequences of the documents of seqio tasks.

    Every process reads a shard of its own: other files, or other documents if a task has fewer
    files than there are processes. Text that is at its end begins anew, in another order of its
    files. The same seed gives the same sequences.

    Args:
      tasks: see :class:`SeqioStream`.
      length: L, of a sequence.
      seed: of the order of files and documents.
    """

    has_state = True

    def __init__(self, tasks: Sequence[Any], length: int, seed: int) -> None:
        self._tf = tensorflow()
        self._length = length
        process, processes = jax.process_index(), jax.process_count()
        self._name = f"stream-{process:05d}-of-{processes:05d}"
        self._text = {
            "task_names": [task.name for task in tasks],
            "vocabulary": _vocabulary(tasks),
            "length": int(length),
            "seed": int(seed),
            "processes": processes,
        }
        self.identity: Mapping[str, Any] = {"processes": processes}
        with _few_files():
            pipelines = [self._pipeline(task, seed) for task in tasks]
        self._iterators: list[Any] = [iter(pipeline) for pipeline in pipelines]

    def rows(self, tasks: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """The next sequences of each task, int32 ``[R, L]``, whatever their indices.

        Raises:
          ValueError: if text can't be read, or there is none.
        """
        del indices
        sequences = np.empty((len(tasks), self._length), np.int32)
        for row, task in zip(sequences, tasks, strict=True):
            row[:] = self._next(int(task))
        return sequences

    def save(self, directory: pathlib.Path) -> None:
        """Writes the state of all pipelines, with the documents that wait in them.

        That is about 4 MB for each task: a thousand documents to shuffle. Every process writes its
        own files.

        Raises:
          OSError: if it can't be written.
        """
        try:
            self._checkpoint().write(str(directory / self._name))
            written = sorted(directory.glob(f"{self._name}.[di]*"))
            record = {
                "text": self._text,
                "tensorflow": self._tf.__version__,
                "files": {file.name: paths.sha256(file) for file in written},
            }
            # Last, so that a state without it is known to be incomplete.
            (directory / f"{self._name}.json").write_text(json.dumps(record, indent=1) + "\n")
        except (OSError, self._tf.errors.OpError) as error:
            raise OSError(
                f"The state of the training text can't be written to {directory} "
                f"({errors.first_line(error)}). Is the disk full?"
            ) from error

    def restore(self, directory: pathlib.Path) -> None:
        """Goes on from where :meth:`save` was called.

        Raises:
          ValueError: if it is the state of other tasks, sequences or processes, is damaged, or is
            not there.
        """
        text, files, version = self._read_record(directory)
        for name, ours in self._text.items():
            if text.get(name) != ours:
                raise _of_another_run(directory, name, text.get(name), ours)
        for name, digest in files.items():
            file = directory / name
            if not file.is_file() or paths.sha256(file) != digest:
                raise _damaged(file, "it is not what was written")
        try:
            self._checkpoint().read(str(directory / self._name)).assert_consumed()
        except (self._tf.errors.OpError, AssertionError) as error:
            versions = f"written by TensorFlow {version}, read by {self._tf.__version__}"
            reason = f"{errors.first_line(error)}; {versions}"
            raise _damaged(directory / self._name, reason) from error

    def _next(self, task: int) -> np.ndarray:
        try:
            sequence = next(self._iterators[task], None)
        except self._tf.errors.OpError as error:
            raise ValueError(
                f"The training text of {self._text['task_names'][task]} can't be read "
                f"({errors.first_line(error)}). Is a file cut off or missing?"
            ) from error
        if sequence is None:
            raise ValueError(
                f"There is no training text of {self._text['task_names'][task]} for this one of "
                f"{self._text['processes']} processes. Leave the task out, or use fewer processes."
            )
        return sequence.numpy()

    def _pipeline(self, task: Any, seed: int) -> Any:
        import seqio

        processes = jax.process_count()
        shard = seqio.ShardInfo(jax.process_index(), processes) if processes > 1 else None
        documents = task.get_dataset(
            sequence_length=None,
            split="train",
            shuffle=True,
            seed=seed,
            num_epochs=None,
            shard_info=shard,
            use_cached=False,
            # It would keep the order of the first epoch, and be part of the state.
            try_in_mem_cache=False,
        )
        tokens = documents.map(lambda document: document["targets"])
        options = self._tf.data.Options()
        options.deterministic = True
        # Each pipeline would take all cores and half of the memory for its own.
        options.autotune.enabled = False
        # Otherwise a pipeline starts when it is first asked, one after the other.
        options.experimental_warm_start = True
        sequences = tokens.rebatch(self._length, drop_remainder=True)
        return sequences.prefetch(_READY).with_options(options)

    def _checkpoint(self) -> Any:
        return self._tf.train.Checkpoint(
            **{f"task{index}": iterator for index, iterator in enumerate(self._iterators)}
        )

    def _read_record(self, directory: pathlib.Path) -> tuple[dict[str, Any], dict[str, str], str]:
        """What is known of a saved text, the digests of its files, and TensorFlow's version."""
        file = directory / f"{self._name}.json"
        if not file.is_file():
            counts = {int(other.stem[-5:]) for other in directory.glob("stream-*-of-?????.json")}
            if not counts:
                raise ValueError(
                    f"There is no state of a stream of text in {directory}. Was the checkpoint "
                    "made with other text, or not completed?"
                )
            if self._text["processes"] not in counts:
                ours = self._text["processes"]
                raise _of_another_run(directory, "processes", counts.pop(), ours)
            raise _damaged(file, "it is missing")
        try:
            record = json.loads(file.read_text())
            return dict(record["text"]), dict(record["files"]), str(record["tensorflow"])
        except (ValueError, KeyError, TypeError) as error:
            raise _damaged(file, f"{type(error).__name__}: {error}") from error


def tensorflow() -> Any:
    """Imports TensorFlow, kept off the GPUs, whose memory it would take from JAX."""
    import tensorflow as tf

    # It is too late when TensorFlow has begun.
    with contextlib.suppress(RuntimeError):
        tf.config.set_visible_devices([], "GPU")
    return tf


@contextlib.contextmanager
def _few_files() -> Iterator[None]:
    """Makes TFDS read few files of a task at a time, unless the user has set how it reads."""
    import seqio
    import tensorflow_datasets as tfds

    utils: Any = seqio.utils
    # seqio has no other way to look it up.
    theirs = utils._TFDS_DATA_READ_CONFIG_OVERRIDE
    if theirs is None:
        utils.set_tfds_read_config_override(
            tfds.ReadConfig(
                interleave_cycle_length=_FILES,
                num_parallel_calls_for_interleave_files=_FILES,
                override_buffer_size=_FILE_BUFFER,
            )
        )
    try:
        yield
    finally:
        utils.set_tfds_read_config_override(theirs)


def _vocabulary(tasks: Sequence[Any]) -> str:
    prints = {vocabulary.fingerprint(task.output_features["targets"].vocabulary) for task in tasks}
    if len(prints) != 1:
        raise ValueError(f"All tasks must have the same vocabulary, but they have {len(prints)}.")
    return prints.pop()


def _of_another_run(directory: pathlib.Path, name: str, theirs: Any, ours: Any) -> ValueError:
    return ValueError(
        f"The state of the training text in {directory} is that of another run: {name} was "
        f"{theirs}, now it is {ours}. Give the run what it began with, or begin a new one."
    )


def _damaged(file: pathlib.Path, reason: str) -> ValueError:
    return ValueError(
        f"The state of the training text in {file} is damaged ({reason}). Go on from another "
        "checkpoint."
    )

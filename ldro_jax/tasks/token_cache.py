"""Where the tokens of a text are kept, so that it is tokenised once."""

import io
import os
import pathlib
from typing import Any

import numpy as np
from absl import logging

from ldro_jax.runtime import errors, paths
from ldro_jax.tasks import streaming


def tokens(
    path: pathlib.Path,
    task: Any,
    split: str,
    text_dir: Any,
    max_tokens: int | None = None,
) -> np.ndarray:
    """The tokens of one split of a seqio task, mapped into memory from a file.

    Args:
      path: the file, which is made first where it isn't there or is damaged.
      task: a ``seqio.Task`` with tokens in the feature ``targets``.
      split: one of the task's.
      text_dir: where it reads the text, for an error.
      max_tokens: take only so many, from the beginning.

    Returns:
      ``[tokens]``, uint16 where the vocabulary is small enough, else int32.

    Raises:
      OSError: if there is no room.
      ValueError: if the text can't be read.
    """
    if not is_whole(path):
        logging.info("Tokenising %s.", path.name)
        content = io.BytesIO()
        np.save(content, _tokenised(task, split, text_dir, max_tokens))
        try:
            paths.write(path, content.getvalue())
            seal(path)
        except OSError as error:
            raise OSError(
                f"The tokens can't be written to {path.parent} ({error.strerror}). Make room, or "
                "choose another cache_dir."
            ) from error
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _tokenised(task: Any, split: str, text_dir: Any, max_tokens: int | None) -> np.ndarray:
    tf = streaming.tensorflow()
    dataset = task.get_dataset(
        sequence_length=None, split=split, shuffle=False, num_epochs=1, try_in_mem_cache=False
    )
    vocab_size = task.output_features["targets"].vocabulary.vocab_size
    dtype = np.uint16 if vocab_size <= 2**16 else np.int32
    parts, count = [np.zeros(0, dtype)], 0
    # Document by document, Python would take longer than the tokeniser.
    batches = iter(dataset.ragged_batch(256))
    try:
        while (max_tokens is None or count < max_tokens) and (batch := next(batches, None)):
            parts.append(batch["targets"].flat_values.numpy().astype(dtype))
            count += len(parts[-1])
    except tf.errors.OpError as error:
        raise ValueError(
            f"The {split} text of {task.name} in {text_dir} can't be read "
            f"({errors.first_line(error)}). Is a file cut off or missing?"
        ) from error
    return np.concatenate(parts)[:max_tokens]


def seal(path: pathlib.Path) -> None:
    """Writes the checksum of a file of the cache beside it; without, the file is made again."""
    paths.write(_seal(path), paths.sha256(path))


def is_whole(path: pathlib.Path) -> bool:
    """Whether a file of the cache can be used; the log says so where it is damaged."""
    # A process that was killed leaves a file without its checksum.
    if not (path.exists() and _seal(path).exists()):
        return False
    if _seal(path).read_bytes() == paths.sha256(path).encode():
        return True
    logging.warning("%s is not what was written, so it is made again.", path)
    return False


def folder(cache_dir: str | None) -> pathlib.Path:
    """The directory of the cache, which is made if it isn't there.

    Args:
      cache_dir: its path; by default ``ldro_jax/tokens`` in ``$XDG_CACHE_HOME`` or ``~/.cache``.
    """
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    path = pathlib.Path(cache_dir or f"{home}/ldro_jax/tokens").expanduser()
    path.mkdir(parents=True, exist_ok=True)
    return path


def _seal(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(f"{path.name}.sha256")

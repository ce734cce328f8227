"""Text in many languages, a directory each, as seqio tasks.

``<data_dir>/<language>/{train,validation}.txt`` (or ``.txt.gz``), UTF-8, a document or a sentence a
line. Half of the validation lines are the test split, as in the L-DRO paper (section 5.2).
"""

import functools
import hashlib
import os
import pathlib
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from absl import logging

from ldro_jax.tasks import sequences, text_files, vocabulary

# Neighbouring lines may come from one document, and kinds of text from one stretch of a file: runs
# of lines are dealt to validation and test in turn.
_DEALT_LINES = 10


def load(
    *,
    data_dir: str | None,
    languages: Sequence[str] | None = None,
    vocabulary_path: str | None = None,
    cache_dir: str | None = None,
) -> sequences.Corpus:
    """Reads the tokens of all languages.

    Text is tokenised once; the tokens are kept in ``cache_dir`` and mapped into memory from there.

    Args:
      data_dir: the directory that holds one directory for each language.
      languages: which ones, in this order; by default all of them.
      vocabulary_path: a SentencePiece model; bytes by default.
      cache_dir: where tokens are kept, by default ``ldro_jax/tokens`` in ``$XDG_CACHE_HOME`` or
        ``~/.cache``.

    Returns:
      The :class:`~ldro_jax.tasks.sequences.Corpus`.

    Raises:
      FileNotFoundError: if a language or one of its files is not there.
      ValueError: if a file isn't UTF-8 or has no text.
    """
    if data_dir is None:
        raise FileNotFoundError(
            "No --data_dir was given. Expected a directory that holds <language>/train.txt and "
            "<language>/validation.txt (or .txt.gz) for each language."
        )
    names = tuple(languages) if languages else text_files.languages(data_dir)
    # What is missing is found before anything is tokenised.
    files = {
        n: [text_files.find(data_dir, n, split) for split in ("train", "validation")] for n in names
    }
    vocab = vocabulary.load(vocabulary_path)
    print_of_vocabulary = vocabulary.fingerprint(vocab)
    cache = _cache_dir(cache_dir)
    tokens: dict[str, list[np.ndarray]] = {"train": [], "validation": [], "test": []}
    for name in names:
        task = seqio_task(data_dir, name, vocab)
        digest = hashlib.sha256(print_of_vocabulary.encode())
        for file in files[name]:
            digest.update(hashlib.sha256(file.read_bytes()).digest())
        for split, arrays in tokens.items():
            path = cache / f"{name}-{split}-{digest.hexdigest()[:24]}.npy"
            if not path.exists():
                logging.info("Tokenising %s, %s.", name, split)
                _save(path, _tokenise(task, split, vocab.vocab_size))
            arrays.append(np.load(path, mmap_mode="r"))
    return sequences.Corpus(
        task_names=names,
        vocab_size=vocab.vocab_size,
        vocabulary=print_of_vocabulary,
        **tokens,
    )


def seqio_task(data_dir: str | pathlib.Path, language: str, vocab: Any) -> Any:
    """The text of one language as a seqio task, which other trainers can use as well.

    Args:
      data_dir: the directory that holds one directory for each language.
      language: name of its directory.
      vocab: a seqio vocabulary.

    Returns:
      A ``seqio.Task`` with the splits train, validation and test, whose feature ``targets`` holds
      the tokens of a line and the end of a document.

    Raises:
      FileNotFoundError: if a file is not there.
    """
    import seqio
    import tensorflow as tf

    paths = {split: text_files.find(data_dir, language, split) for split in ("train", "validation")}
    paths["test"] = paths["validation"]

    def dataset_fn(split, shuffle_files, seed=None):
        del shuffle_files, seed
        return tf.data.Dataset.from_generator(
            functools.partial(_lines_of_split, paths[split], split),
            output_signature=tf.TensorSpec((), tf.string),
        ).map(lambda text: {"targets": text})

    return seqio.Task(
        f"ldro_text_{language}",
        source=seqio.FunctionDataSource(dataset_fn, splits=tuple(paths)),
        preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
        output_features={"targets": seqio.Feature(vocab, add_eos=True)},
    )


def _lines_of_split(path: pathlib.Path, split: str) -> Iterator[str]:
    for number, line in enumerate(text_files.read_lines(path)):
        if split == "train" or (number // _DEALT_LINES % 2 == 0) == (split == "validation"):
            yield line


def _tokenise(task: Any, split: str, vocab_size: int) -> np.ndarray:
    dataset = task.get_dataset(sequence_length=None, split=split, shuffle=False, num_epochs=1)
    dtype = np.uint16 if vocab_size <= 2**16 else np.int32
    lines = [example["targets"].astype(dtype) for example in dataset.as_numpy_iterator()]
    return np.concatenate(lines) if lines else np.zeros(0, dtype)


def _save(path: pathlib.Path, tokens: np.ndarray) -> None:
    """Writes a file that is either whole or not there."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            np.save(file, tokens)
        os.replace(temporary, path)
    except BaseException as error:
        os.unlink(temporary)
        if isinstance(error, OSError):
            raise OSError(
                f"The tokens can't be written to {path.parent} ({error.strerror}). Make room, or "
                "choose another cache_dir."
            ) from error
        raise


def _cache_dir(given: str | None) -> pathlib.Path:
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = pathlib.Path(given or f"{home}/ldro_jax/tokens").expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    return folder

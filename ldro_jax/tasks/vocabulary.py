"""Vocabularies of text: bytes, or SentencePiece models, which are trained here as well.

A model is trained on as many bytes of every language, at most, so that the languages with most text
don't take the vocabulary. It loses nothing: characters without a piece of their own are spelt in
bytes. (The one exception is U+2581 "▁", which SentencePiece uses for the space.)

References:
  Kudo, *Subword Regularization*, ACL 2018 (unigram models); Kudo and Richardson, *SentencePiece*,
  EMNLP 2018; Xue et al., *ByT5*, TACL 2022 (bytes).
"""

import hashlib
import importlib
import io
import os
import pathlib
import re
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from ldro_jax.runtime import checks, paths
from ldro_jax.tasks import text_files

# seqio pads with 0, whatever a model says; the other marks are where T5 has them.
_MARKS = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
# The smallest vocabulary to train: one piece besides the marks and the bytes.
MIN_SIZE = 3 + 256 + 1


def load(path: str | os.PathLike[str] | None, *, extra_ids: int = 0) -> Any:
    """Loads a vocabulary.

    seqio reads each path once in a process: give a model that has changed another name.

    Args:
      path: a SentencePiece model, a local file; ``None`` for bytes, 259 ids.
      extra_ids: number of ids after these, which no text has: sentinels of span corruption.

    Returns:
      A ``seqio.ByteVocabulary`` or ``seqio.SentencePieceVocabulary``.

    Raises:
      ImportError: if seqio is not installed.
      FileNotFoundError: if there is no such file.
      ValueError: if it is not a SentencePiece model, or has no end of sequence or padding at 0.
    """
    if path is None:
        return _module("seqio").ByteVocabulary(extra_ids)
    file = pathlib.Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(
            f"There is no SentencePiece model {file}. Train one with "
            "scripts/train_sentencepiece.py, or name none to use bytes."
        )
    # seqio would look only when the first text is encoded, and not for the marks.
    processor = _processor(file)
    if processor.pad_id() != _MARKS["pad_id"] or processor.eos_id() < 0:
        raise ValueError(
            f"Expected a model with pad_id=0 and an eos_id, but {file} has "
            f"pad_id={processor.pad_id()} and eos_id={processor.eos_id()} (-1 is none). Train it "
            "with --pad_id=0 --eos_id=1 --unk_id=2, or with scripts/train_sentencepiece.py."
        )
    return _module("seqio").SentencePieceVocabulary(str(file), extra_ids)


def fingerprint(vocabulary: Any) -> str:
    """Identifies a vocabulary of seqio, bytes or SentencePiece, wherever its file is.

    Returns:
      16 hexadecimal digits; two runs with others number their tokens differently.

    Raises:
      TypeError: if it is another kind of vocabulary.
    """
    seqio = _module("seqio")
    if isinstance(vocabulary, seqio.ByteVocabulary):
        identity = f"bytes {vocabulary.vocab_size}".encode()
    elif isinstance(vocabulary, seqio.SentencePieceVocabulary):
        identity = vocabulary.sp_model
    else:
        raise TypeError(
            "Expected a ByteVocabulary or a SentencePieceVocabulary of seqio, but found a "
            f"{type(vocabulary).__name__}."
        )
    return hashlib.sha256(identity).hexdigest()[:16]


def train_sentencepiece(
    data_dir: str | pathlib.Path,
    output: str | os.PathLike[str],
    *,
    vocab_size: int = 32_000,
    languages: Sequence[str] | None = None,
    bytes_per_language: int = 1_000_000,
    seed: int = 0,
) -> pathlib.Path:
    """Trains a unigram model on the train files of many languages.

    The same text and arguments give the same file, on any number of cores.

    Args:
      data_dir: holds one directory for each language.
      output: where the model goes; ``.model`` is appended where it is missing, and directories are
        made. A file that is there is replaced, at the end and at once.
      vocab_size: number of ids, at least 260: 3 marks (padding, end, unknown), the 256 bytes, and a
        piece.
      languages: which ones, in any order; by default all of them.
      bytes_per_language: how much of each to train on, at most; see :func:`sample_lines`.
      seed: of the choice of the lines, at least 0.

    Returns:
      The path of the model.

    Raises:
      ImportError: if SentencePiece is not installed.
      FileNotFoundError: if a language or its train file is not there.
      OSError: if the output can't be written, which is found out before training.
      ValueError: if a file is not UTF-8 or gives no line, or if the vocabulary is too large or too
        small for the text.
    """
    sentencepiece = _module("sentencepiece")
    checks.integer("vocab_size", vocab_size, low=MIN_SIZE)
    path = pathlib.Path(output).expanduser()
    path = path if path.suffix == ".model" else path.with_name(f"{path.name}.model")
    _require_writable(path)
    # Sorted, as the order of the lines can decide ties.
    names = sorted(set(languages or text_files.languages(data_dir)))
    options = {"max_bytes": bytes_per_language, "seed": seed}
    lines = [line for name in names for line in sample_lines(data_dir, name, **options)]
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            model_type="unigram",
            vocab_size=vocab_size,
            # Else a model may come out smaller than asked, and the embedding not fit it.
            hard_vocab_limit=True,
            byte_fallback=True,
            # The rarest characters, 5 in 10,000 of the text, are spelt in bytes. With mT5's
            # 0.99999, 2,300 more of them take an id each (of 32,000; 40 languages, 400 kB of
            # each), and every language needs more tokens, 1.4 % on average.
            character_coverage=0.9995,
            # T5's nmt_nfkc and trimmed spaces would change the text for good, and so what a
            # likelihood per byte is measured on.
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            # The lines were chosen already. SentencePiece would choose from all languages together.
            input_sentence_size=0,
            # Longer lines would be dropped without an error.
            max_sentence_length=max(len(line.encode()) for line in lines),
            # Sums are formed thread by thread, and rounded: another number gives other pieces, so
            # it must not be the machine's number of cores.
            num_threads=16,
            minloglevel=1,
            **_MARKS,
        )
    except RuntimeError as error:
        raise ValueError(_reason_of_failure(str(error), vocab_size)) from error
    paths.write(path, model.getvalue())
    return path


def sample_lines(
    data_dir: str | pathlib.Path, language: str, *, max_bytes: int, seed: int
) -> list[str]:
    """Chooses lines of a language's train file at random, without repetition.

    A language that has fewer bytes is taken whole, once. Repeated, all of its substrings would be
    frequent, down to the names that occur in it once, and fill the vocabulary.

    Args:
      data_dir: holds one directory for each language.
      language: name of its directory. Other languages make no difference to the choice.
      max_bytes: how many bytes of UTF-8 to take, at most.
      seed: of the choice and order, at least 0.

    Raises:
      FileNotFoundError: if the language or its train file is not there.
      ValueError: if the file is not UTF-8, is empty, or has longer lines only.
    """
    path = text_files.find(data_dir, language, "train")
    lines = list(text_files.read_lines(path))
    rng = np.random.default_rng([seed, *language.encode()])
    taken, size = [], 0
    for index in rng.permutation(len(lines)):
        length = len(lines[index].encode())
        if size + length <= max_bytes:
            taken.append(lines[index])
            size += length
    if not taken:
        raise ValueError(
            f"Expected lines of at most {max_bytes} bytes in {path}, but none of its {len(lines)} "
            "lines is. Add text, leave the language out, or take more bytes of each language."
        )
    return taken


def tokens_per_byte(
    path: str | os.PathLike[str], data_dir: str | pathlib.Path, languages: Sequence[str]
) -> dict[str, float]:
    """Measures how far a SentencePiece model shortens the validation lines of each language.

    Returns:
      Tokens for each byte of UTF-8, by language. 1 is no better than bytes, and lower is shorter;
      NaN where a file is empty.

    Raises:
      ImportError: if SentencePiece is not installed.
      FileNotFoundError: if a language or its validation file is not there.
      ValueError: if the model can't be read, or a file is not UTF-8.
    """
    processor = _processor(pathlib.Path(path))
    measured = {}
    for name in languages:
        lines = list(text_files.read_lines(text_files.find(data_dir, name, "validation")))
        num_tokens = sum(len(ids) for ids in processor.encode(lines))
        num_bytes = sum(len(line.encode()) for line in lines)
        measured[name] = num_tokens / num_bytes if lines else float("nan")
    return measured


def _module(name: str) -> Any:
    # Imported where it is used: seqio brings TensorFlow, which takes 10 seconds.
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"Vocabularies of text need {name} ({error}): pip install 'ldro-jax[lm]'."
        ) from error


def _processor(file: pathlib.Path) -> Any:
    processor: Any = _module("sentencepiece").SentencePieceProcessor()
    content = file.read_bytes()
    try:
        processor.LoadFromSerializedProto(content)
    # SentencePiece's own message may quote what isn't UTF-8.
    except (RuntimeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"Expected a SentencePiece model in {file}, but its {len(content)} bytes are not one. "
            "Is it cut off, packed, or a .vocab file? Copy it again, or train one with "
            "scripts/train_sentencepiece.py."
        ) from error
    return processor


def _reason_of_failure(message: str, vocab_size: int) -> str:
    if most := re.search(r"size too high .* value <= (\d+)", message):
        return (
            f"vocab_size is {vocab_size}, but this text makes at most {most[1]} pieces. Choose "
            f"{most[1]} or fewer, or take more bytes of each language."
        )
    if least := re.search(r"required_chars\. \S+ vs (\d+)", message):
        return (
            f"vocab_size is {vocab_size}, but the marks, the bytes and the characters of these "
            f"languages are {least[1]} pieces already. Choose at least that many."
        )
    return f"SentencePiece can't train on this text: {message}"


def _require_writable(path: pathlib.Path) -> None:
    if path.is_dir():
        raise IsADirectoryError(f"Expected the name of a file, but {path} is a directory.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise OSError(
            f"The model can't be written to {path} ({error.strerror}). Choose another output."
        ) from error

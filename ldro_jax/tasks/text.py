"""Text in many languages, a directory each, as seqio tasks.

``<data_dir>/<language>/{train,validation}.txt`` (or ``.txt.gz``), UTF-8, a document or a sentence a
line. Half of the validation lines are the test split, as in the L-DRO paper (section 5.2).
"""

import hashlib
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ldro_jax.runtime import checks
from ldro_jax.tasks import sequences, streaming, text_files, token_cache, vocabulary

# Neighbouring lines may come from one document, and kinds of text from one stretch of a file: runs
# of lines are dealt to validation and test in turn.
_DEALT_LINES = 10


def load(
    *,
    data_dir: str | None,
    languages: Sequence[str] | None = None,
    vocabulary_path: str | None = None,
    vocabulary_size: int | None = None,
    cache_dir: str | None = None,
) -> sequences.Corpus:
    """Reads the tokens of all languages.

    Text is tokenised once; the tokens are kept in ``cache_dir`` and mapped into memory from there.

    Args:
      data_dir: the directory that holds one directory for each language.
      languages: which ones, in this order; by default all of them.
      vocabulary_path: a SentencePiece model; bytes by default.
      vocabulary_size: train a SentencePiece model of so many pieces on the training text instead,
        as ``scripts/train_sentencepiece.py`` does; once, it is kept in ``cache_dir``.
      cache_dir: where tokens are kept, by default ``ldro_jax/tokens`` in ``$XDG_CACHE_HOME`` or
        ``~/.cache``.

    Returns:
      The :class:`~ldro_jax.tasks.sequences.Corpus`.

    Raises:
      FileNotFoundError: if a language or one of its files is not there.
      ValueError: if a file isn't UTF-8 or has no text, both a path and a size are given, or an
        argument is not what it must be.
    """
    if languages is not None:
        checks.names("languages", languages, "('de', 'sr-Latn')")
    text_files.check_paths(vocabulary_path=vocabulary_path, cache_dir=cache_dir)
    if vocabulary_size is not None:
        checks.integer("vocabulary_size", vocabulary_size, low=vocabulary.MIN_SIZE)
        if vocabulary_path is not None:
            raise ValueError("vocabulary_size must be None where vocabulary_path is given.")
    if data_dir is None:
        raise FileNotFoundError(
            "No --data_dir was given. Expected a directory that holds <language>/train.txt and "
            "<language>/validation.txt (or .txt.gz) for each language."
        )
    names = text_files.languages(data_dir) if languages is None else tuple(languages)
    # What is missing is found before anything is tokenised.
    files = {
        n: [text_files.find(data_dir, n, split) for split in ("train", "validation")] for n in names
    }
    cache = token_cache.folder(cache_dir)
    contents = {n: hashlib.sha256(b"".join(map(_digest, files[n]))).digest() for n in names}
    if vocabulary_size is not None:
        vocabulary_path = _trained_vocabulary(data_dir, contents, vocabulary_size, cache)
    vocab = vocabulary.load(vocabulary_path)
    identity = vocabulary.fingerprint(vocab)
    tokens: dict[str, Any] = {"train": [], "validation": [], "test": []}
    for name in names:
        task = seqio_task(data_dir, name, vocab)
        digest = hashlib.sha256(identity.encode() + contents[name]).hexdigest()[:24]
        paths = {split: cache / f"{name}-{split}-{digest}.npy" for split in tokens}
        if not all(path.exists() for path in paths.values()):
            for file in files[name]:
                text_files.require_readable(file)
        for split, arrays in tokens.items():
            arrays.append(token_cache.tokens(paths[split], task, split, data_dir))
            if split != "train" and not len(arrays[-1]):
                raise ValueError(
                    f"{files[name][1]} has no text for {split}: its lines are dealt to validation "
                    f"and test, {_DEALT_LINES} at a time. Give it more lines, or leave the "
                    "language out."
                )
    return sequences.Corpus(names, vocab.vocab_size, identity, **tokens)


def _trained_vocabulary(
    data_dir: str, contents: Mapping[str, bytes], size: int, cache: pathlib.Path
) -> str:
    """The path of a model that is trained once on some languages, by the digests of their text."""
    digest = hashlib.sha256(b"".join(contents[name] for name in sorted(contents))).hexdigest()
    path = cache / f"vocabulary-{size}-{digest[:24]}.model"
    if not token_cache.is_whole(path):
        vocabulary.train_sentencepiece(data_dir, path, vocab_size=size, languages=tuple(contents))
        token_cache.seal(path)
    return str(path)


def seqio_task(data_dir: str | pathlib.Path, language: str, vocab: Any) -> Any:
    """The text of one language as a seqio task, which other trainers can use as well.

    Args:
      data_dir: holds one directory for each language.
      language: name of its directory.
      vocab: a seqio vocabulary.

    Returns:
      A ``seqio.Task`` with the splits train, validation and test, whose feature ``targets`` holds
      the tokens of a line and the end of a document. It is called ``ldro_text_<language>``, with a
      dot for a hyphen (``ldro_text_sr.Latn``).

    Raises:
      FileNotFoundError: if a file is not there.
    """
    tf = streaming.tensorflow()
    import seqio

    paths = {split: text_files.find(data_dir, language, split) for split in ("train", "validation")}
    paths["test"] = paths["validation"]

    def dataset_fn(split, shuffle_files, seed=None):
        del shuffle_files, seed
        packed = "GZIP" if paths[split].suffix == ".gz" else ""
        lines = tf.data.TextLineDataset(str(paths[split]), packed)
        lines = lines.filter(lambda line: tf.strings.length(line) > 0)
        if split != "train":
            turn = 0 if split == "validation" else 1
            lines = lines.enumerate().filter(lambda n, _: n // _DEALT_LINES % 2 == turn)
            lines = lines.map(lambda _, line: line)
        return lines.map(lambda line: {"targets": line})

    return seqio.Task(
        f"ldro_text_{_safe(language)}",
        source=seqio.FunctionDataSource(dataset_fn, splits=tuple(paths)),
        preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
        output_features={"targets": seqio.Feature(vocab, add_eos=True)},
    )


def _safe(language: str) -> str:
    """A directory's name in characters that seqio takes; different ones stay different."""
    return re.sub(r"\W", lambda c: "." if c[0] == "-" else f"#{ord(c[0]):x}#", language)


def _digest(file: pathlib.Path) -> bytes:
    return hashlib.sha256(file.read_bytes()).digest()

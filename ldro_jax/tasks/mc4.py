"""mC4, the web in many languages, as one task for each language of XTREME.

The text stays where TFDS prepared it, as the data set ``c4/multilingual``, and is streamed. Half of
each validation split is the test split, as in the L-DRO paper (section 5.2).

A directory of another origin does as well, if it holds files as TFDS writes them
(``tfds.folder_dataset.write_metadata``) with the feature ``text`` and splits such as ``sw`` and
``sw-validation``; other languages need not be there.

References:
  Xue et al., *mT5*, NAACL 2021 (mC4); Hu et al., *XTREME*, ICML 2020.
"""

import functools
import hashlib
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from ldro_jax.runtime import checks, errors
from ldro_jax.tasks import sequences, streaming, text_files, token_cache, vocabulary

# fmt: off
LANGUAGES = (
    "af", "ar", "bg", "bn", "de", "el", "en", "es", "et", "eu", "fa", "fi", "fr", "he",
    "hi", "hu", "id", "it", "ja", "jv", "ka", "kk", "ko", "ml", "mr", "ms", "my", "nl",
    "pt", "ru", "sw", "ta", "te", "th", "tl", "tr", "ur", "vi", "yo", "zh",
)
# fmt: on
# mC4 has only the standardised Tagalog, Filipino (fil).
ABSENT = ("tl",)
VERSION = "3.1.0"
AVAILABLE = tuple(name for name in LANGUAGES if name not in ABSENT)
# The one name that differs: CLD3, which told the languages of mC4 apart, uses the older code.
_SPLITS = {"he": "iw"}


def load(
    *,
    data_dir: str | None = None,
    languages: Sequence[str] = AVAILABLE,
    vocabulary_path: str | None = None,
    version: str = VERSION,
    max_heldout_tokens: int | None = 5_000_000,
    cache_dir: str | None = None,
) -> sequences.Corpus:
    """Opens mC4 in a TFDS directory; downloads nothing.

    Text for validation and test is tokenised once, and kept in ``cache_dir``.

    Args:
      data_dir: the directory that TFDS prepared the data in, the one that holds
        ``c4/multilingual/<version>/``, which may be in a bucket (``gs://``); by default TFDS's own
        (``TFDS_DATA_DIR``, or ``~/tensorflow_datasets``).
      languages: which of :data:`LANGUAGES`, in this order; by default all that mC4 has.
      vocabulary_path: a SentencePiece model, a local file; bytes by default.
      version: of the data set. TFDS builds 3.1.0; mT5 was trained on 3.0.1.
      max_heldout_tokens: take only so many tokens of each language for validation, and as many for
        the test; ``None`` for all.
      cache_dir: where tokens are kept, by default ``ldro_jax/tokens`` in ``$XDG_CACHE_HOME`` or
        ``~/.cache``.

    Returns:
      The :class:`~ldro_jax.tasks.sequences.Corpus`; its sizes are numbers of pages.

    Raises:
      FileNotFoundError: if the data set is not there, or lacks a language.
      ImportError: if TFDS or seqio is not installed.
      ValueError: if a language is unknown, or its text can't be read.
    """
    checks.names("languages", languages, "('de', 'sw')")
    names = tuple(languages)
    if max_heldout_tokens is not None:
        checks.integer("max_heldout_tokens", max_heldout_tokens)
    text_files.check_paths(vocabulary_path=vocabulary_path, cache_dir=cache_dir)
    checks.text("version", version)
    for name in names:
        _check_language(name)
    folder = _folder(data_dir, version)
    vocab = vocabulary.load(vocabulary_path)
    identity = vocabulary.fingerprint(vocab)
    tasks = [seqio_task(name, vocab, data_dir=data_dir, version=version) for name in names]
    info = _info(tasks[0], folder)
    _check_splits(info, names, folder)
    held_out: dict[str, list[np.ndarray]] = {"validation": [], "test": []}
    # What TFDS wrote of its files stands for their text, which is too much to read.
    content = (folder / "dataset_info.json").read_bytes()
    cache = token_cache.folder(cache_dir)
    for split, arrays in held_out.items():
        for name, task in zip(names, tasks, strict=True):
            key = f"{identity} {split} {max_heldout_tokens} ".encode() + content
            digest = hashlib.sha256(key).hexdigest()[:24]
            path = cache / f"mc4-{version}-{name}-{split}-{digest}.npy"
            arrays.append(token_cache.tokens(path, task, split, folder, max_heldout_tokens))
    sizes = [info.splits[_split(name)].num_examples for name in names]
    stream = streaming.SeqioStream(tasks, sizes)
    return sequences.Corpus(names, vocab.vocab_size, identity, train=(), **held_out, stream=stream)


def seqio_task(
    language: str, vocab: Any, *, data_dir: str | None = None, version: str = VERSION
) -> Any:
    """The text of one language as a seqio task, which other trainers can use as well.

    Args:
      language: one of :data:`LANGUAGES`.
      vocab: a seqio vocabulary.
      data_dir: see :func:`load`.
      version: of the data set.

    Returns:
      A ``seqio.Task`` with the splits train, validation and test, whose feature ``targets`` holds
      the tokens of a page and the end of a document.

    Raises:
      FileNotFoundError: if the data set is not there.
      ImportError: if TFDS or seqio is not installed.
      ValueError: if the language is unknown, or absent from mC4.
    """
    _check_language(language)
    _folder(data_dir, version)
    import seqio

    name = _split(language)
    source = seqio.TfdsDataSource(
        f"c4/multilingual:{version}",
        tfds_data_dir=str(_root(data_dir)),
        splits={
            "train": name,
            "validation": f"{name}-validation[:50%]",
            "test": f"{name}-validation[50%:]",
        },
        # Otherwise seqio looks in TFDS's public bucket, and begins to build what it can't find.
        read_only=True,
    )
    return seqio.Task(
        f"ldro_mc4_{version}_{language}",
        source=source,
        preprocessors=[
            functools.partial(seqio.preprocessors.rekey, key_map={"targets": "text"}),
            # The text itself would be shuffled and saved along with its tokens.
            functools.partial(seqio.preprocessors.tokenize, copy_pretokenized=False),
            seqio.preprocessors.append_eos,
        ],
        output_features={"targets": seqio.Feature(vocab, add_eos=True)},
    )


def _split(language: str) -> str:
    return _SPLITS.get(language, language)


def _check_language(language: str) -> None:
    if language in ABSENT:
        raise ValueError(
            f"languages can't have Tagalog ({language}), which is absent from mC4: it has Filipino "
            "(fil) instead. Leave it out."
        )
    if language not in LANGUAGES:
        raise ValueError(
            f"languages must be of XTREME, but {language!r} is not. Known are "
            f"{', '.join(AVAILABLE)}."
        )


def _root(data_dir: str | None) -> Any:
    try:
        import seqio  # noqa: F401
        import tensorflow_datasets  # noqa: F401
        from etils import epath
    except ImportError as error:
        raise ImportError(
            f"mC4 is read with TensorFlow Datasets and seqio ({error}): pip install 'ldro-jax[lm]'."
        ) from error
    streaming.tensorflow()
    default = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return epath.Path(data_dir or default).expanduser()


def _folder(data_dir: str | None, version: str) -> Any:
    root = _root(data_dir)
    folder = root / "c4" / "multilingual" / version
    # TFDS would ask the network about what it can't find.
    missing = [n for n in ("dataset_info.json", "features.json") if not (folder / n).exists()]
    if not missing:
        return folder
    others = []
    if folder.parent.is_dir():
        others = sorted(path.name for path in folder.parent.iterdir() if path.name != version)
    raise FileNotFoundError(
        f"There is no mC4 in {folder}: expected {' and '.join(missing)} there"
        + (f", but found only {', '.join(others)} beside it" if others else "")
        + ". Pass --data_dir, the directory that holds c4/multilingual/"
        f"{version}/. To prepare it: pip install apache-beam importlib_resources, then tfds build "
        f"c4/multilingual --data_dir={root} --beam_pipeline_options=..., which reads 86 dumps of "
        "Common Crawl and needs a cluster (https://www.tensorflow.org/datasets/beam_datasets)."
    )


def _info(task: Any, folder: Any) -> Any:
    try:
        info = task.source.tfds_dataset.info
    # TFDS has errors of its own for each way in which a directory can be wrong.
    except Exception as error:
        raise ValueError(
            f"TFDS can't open mC4 in {folder} ({errors.first_line(error)}). Copy its "
            "dataset_info.json and features.json again."
        ) from error
    if "text" not in info.features:
        raise ValueError(
            f"Expected the feature text in {folder}, but found {', '.join(info.features)}."
        )
    return info


def _check_splits(info: Any, languages: Sequence[str], folder: Any) -> None:
    needed = {name: (_split(name), f"{_split(name)}-validation") for name in languages}
    if missing := [n for n, splits in needed.items() if not set(splits) <= set(info.splits)]:
        raise FileNotFoundError(
            f"mC4 in {folder} has no text in {', '.join(missing)}: expected splits such as "
            f"{' and '.join(needed[missing[0]])}. Prepare these languages too, or leave them out."
        )
    small = [n for n, (_, held_out) in needed.items() if info.splits[held_out].num_examples < 2]
    if small:
        raise ValueError(
            f"Validation and test share the validation split, but in {', '.join(small)} it has "
            f"less than two pages in {folder}. Leave them out."
        )

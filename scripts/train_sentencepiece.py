"""Trains a SentencePiece vocabulary in which every language has an equal say.

For example::

    python scripts/train_sentencepiece.py --data_dir=/data/text --output=/data/text.model

``--data_dir`` holds ``<language>/{train,validation}.txt`` (or ``.txt.gz``), a sentence or
paragraph a line. The same text and flags give the same model.
"""

import os
import signal
import sys

from absl import app, flags

from ldro_jax.tasks import text_files, vocabulary

_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Directory that holds one directory for each language.", required=True
)
_OUTPUT = flags.DEFINE_string(
    "output", None, "The model's path; .model is appended where it is missing.", required=True
)
_VOCAB_SIZE = flags.DEFINE_integer(
    "vocab_size", 32_000, "Number of ids, among them 3 marks and 256 bytes."
)
_LANGUAGES = flags.DEFINE_list(
    "languages", None, "Names of directories, with commas; by default all."
)
_BYTES_PER_LANGUAGE = flags.DEFINE_integer(
    "bytes_per_language", 1_000_000, "Text of each language to train on, at most.", lower_bound=1
)
_SEED = flags.DEFINE_integer("seed", 0, "Of the choice of the lines.", lower_bound=0)


def main(argv: list[str]) -> None:
    """Trains, then says how the model divides the validation lines."""
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {' '.join(argv[1:])}")
    # SentencePiece trains for minutes without looking for Python's interrupts. Nothing is left
    # behind: the model is written at the end.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    data_dir = _DATA_DIR.value
    try:
        languages = _LANGUAGES.value or text_files.languages(data_dir)
        # Before the training, which takes minutes, rather than after it.
        for language in languages:
            text_files.find(data_dir, language, "validation")
        print(f"Training on {', '.join(languages)}.", flush=True)
        path = vocabulary.train_sentencepiece(
            data_dir,
            _OUTPUT.value,
            vocab_size=_VOCAB_SIZE.value,
            languages=languages,
            bytes_per_language=_BYTES_PER_LANGUAGE.value,
            seed=_SEED.value,
        )
        print(f"{path}: {_VOCAB_SIZE.value} ids, {path.stat().st_size} bytes.")
        print("Tokens per byte of the validation lines:", flush=True)
        for language, ratio in vocabulary.tokens_per_byte(path, data_dir, languages).items():
            print(f"{language:>8} {ratio:.3f}")
    except (ValueError, OSError, ImportError) as error:
        if os.environ.get("LDRO_JAX_TRACEBACK"):
            raise
        sys.exit(f"Error: {error}\n(LDRO_JAX_TRACEBACK=1 shows where.)")


if __name__ == "__main__":
    app.run(main)

"""Files of text: ``<directory>/<language>/{train,validation}.txt`` or ``.txt.gz``, UTF-8."""

import gzip
import os
import pathlib
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

from ldro_jax.runtime import checks

_SUFFIXES = (".txt", ".txt.gz")


def languages(data_dir: str | pathlib.Path) -> tuple[str, ...]:
    """Names of the languages in a directory: of all directories with a train file, sorted.

    Raises:
      FileNotFoundError: if there is no such directory, or no language in it.
    """
    folder = pathlib.Path(data_dir).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(
            f"There is no directory {folder}. Expected one that holds "
            "<language>/train.txt and <language>/validation.txt (or .txt.gz) for each language."
        )
    names = sorted(f.name for f in folder.iterdir() if f.is_dir() and _existing(f, "train"))
    if not names:
        raise FileNotFoundError(
            f"There is no language in {folder}: expected directories with a train.txt or "
            "train.txt.gz, named by the language."
        )
    return tuple(names)


def check_paths(**values: Any) -> None:
    """Raises ``ValueError`` unless each argument, by its name, is a path or ``None``."""
    for name, value in values.items():
        is_path = value is None or (isinstance(value, (str, os.PathLike)) and str(value))
        checks.require(is_path, name, "a path in quotes, or None", value)


def find(data_dir: str | pathlib.Path, language: str, split: str) -> pathlib.Path:
    """The file of one language and split.

    Args:
      data_dir: holds one directory for each language.
      language: name of its directory.
      split: "train" or "validation".

    Raises:
      FileNotFoundError: if there is none, or two.
    """
    folder = pathlib.Path(data_dir).expanduser() / language
    if not folder.is_dir():
        known = ", ".join(languages(data_dir))
        raise FileNotFoundError(f"There is no language {language!r} in {data_dir}. Found: {known}.")
    files = _existing(folder, split)
    if len(files) != 1:
        raise FileNotFoundError(
            f"Expected {folder}/{split}.txt or {split}.txt.gz, a line for each document; found "
            f"{'both of them' if files else 'neither'}."
        )
    return files[0]


def read_lines(path: pathlib.Path) -> Iterator[str]:
    """Reads the lines of a plain or gzipped file, without those that are empty.

    Yields:
      Each line, without its end and without carriage returns.

    Raises:
      ValueError: if the file isn't UTF-8, or not gzip as its name says.
    """
    number = 0
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        try:
            for number, line in enumerate(file, start=1):  # noqa: B007
                # TensorFlow's reader takes carriage returns out as well, wherever they are.
                if text := line.decode("utf-8").replace("\r", "").rstrip("\n"):
                    yield text
        except UnicodeDecodeError as error:
            raise ValueError(
                f"Expected UTF-8 text in {path}, but line {number} is not ({error.reason} at byte "
                f"{error.start}). Convert the file, for instance with iconv."
            ) from error
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(
                f"Expected a gzip file at {path}, but it can't be unpacked after line {number} "
                f"({error}). Copy it again."
            ) from error


def require_readable(path: pathlib.Path) -> None:
    """Reads a file to its end for the errors of :func:`read_lines`; TensorFlow takes any bytes."""
    for _ in read_lines(path):
        pass


def _existing(folder: pathlib.Path, split: str) -> Sequence[pathlib.Path]:
    return [path for suffix in _SUFFIXES if (path := folder / f"{split}{suffix}").is_file()]

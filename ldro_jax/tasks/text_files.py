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
    """Names of the languages in a directory.

    Args:
      data_dir: the directory that holds one directory for each language.

    Returns:
      The names of all directories with a train file, sorted.

    Raises:
      FileNotFoundError: if there is no such directory, or no language in it.
    """
    folder = pathlib.Path(data_dir).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(
            f"There is no directory {folder}. Expected one that holds "
            "<language>/train.txt and <language>/validation.txt (or .txt.gz) for each language."
        )
    found = sorted(f.name for f in folder.iterdir() if f.is_dir() and _existing(f, "train"))
    if not found:
        raise FileNotFoundError(
            f"There is no language in {folder}: expected directories with a train.txt or "
            "train.txt.gz, named by the language."
        )
    return tuple(found)


def check_languages(names: Any) -> None:
    """Checks the languages that a run is given.

    Args:
      names: what is given.

    Raises:
      ValueError: if they aren't a list of different names.
    """
    checks.sequence("languages", names, "names, such as ('de', 'sr-Latn')")
    is_name = all(isinstance(name, str) and name.strip() for name in names)
    expected = "a list of names, such as ('de', 'sr-Latn'), that are all different"
    checks.require(is_name and len(set(names)) == len(names), "languages", expected, names)


def check_paths(vocabulary_path: Any, cache_dir: Any) -> None:
    """Checks the paths of a vocabulary and of a cache.

    Args:
      vocabulary_path: what is given, ``None`` for bytes.
      cache_dir: what is given, ``None`` for the default.

    Raises:
      ValueError: if one is no path.
    """
    for name, value in {"vocabulary_path": vocabulary_path, "cache_dir": cache_dir}.items():
        is_path = value is None or (isinstance(value, (str, os.PathLike)) and str(value))
        checks.require(is_path, name, "a path in quotes, or None", value)


def find(data_dir: str | pathlib.Path, language: str, split: str) -> pathlib.Path:
    """The file of one language and split.

    Args:
      data_dir: the directory that holds one directory for each language.
      language: name of its directory.
      split: "train" or "validation".

    Returns:
      The path.

    Raises:
      FileNotFoundError: if there is none, or two.
    """
    folder = pathlib.Path(data_dir).expanduser() / language
    if not folder.is_dir():
        known = ", ".join(languages(data_dir))
        raise FileNotFoundError(f"There is no language {language!r} in {data_dir}. Found: {known}.")
    files = _existing(folder, split)
    if len(files) != 1:
        found = "both of them" if files else "neither"
        raise FileNotFoundError(
            f"Expected {folder}/{split}.txt or {split}.txt.gz, a line for each document; found "
            f"{found}."
        )
    return files[0]


def read_lines(path: pathlib.Path) -> Iterator[str]:
    """Reads the lines of a text file, without those that are empty.

    Args:
      path: a plain or gzipped file.

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


def check(path: pathlib.Path) -> None:
    """Reads a file to see that it can be read.

    Args:
      path: a plain or gzipped file.

    Raises:
      ValueError: if the file isn't UTF-8, or not gzip as its name says.
    """
    for _ in read_lines(path):
        pass


def _existing(folder: pathlib.Path, split: str) -> Sequence[pathlib.Path]:
    return [path for suffix in _SUFFIXES if (path := folder / f"{split}{suffix}").is_file()]

"""JSON files that are never half-written, know when they have been altered, and say so clearly."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from absl import logging

from ldro_jax.runtime import checks, hashing, paths, processes

_CHECKSUM = "checksum"
_Read = TypeVar("_Read")


class ResultsError(ValueError):
    """A results file that cannot be used: it is corrupt, incomplete or of another format."""


def write_json(record: Mapping[str, Any], path: Path) -> None:
    """Writes a record of plain types and finite numbers, with its checksum.

    A reader sees the old file or the whole new one; missing folders are made.
    """
    record = {**record, _CHECKSUM: checksum(record)}
    text = json.dumps(record, separators=(",", ":"), allow_nan=False) + "\n"
    paths.write(path, text)


def checksum(record: Mapping[str, Any]) -> str:
    """16 hexadecimal digits of plain types and finite numbers, the same in any order of keys."""
    return hashing.short(json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False))


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each file in a folder and in the folders in it, by its path in the folder."""
    by_path = {}
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        if path.is_dir():
            by_path |= {f"{path.name}/{name}": digest for name, digest in digests(path).items()}
            continue
        by_path[path.name] = paths.sha256(path)
    return by_path


def read_json(path: str | os.PathLike[str], *formats: int) -> dict[str, Any]:
    """Reads a file that :func:`write_json` wrote, as plain types.

    Args:
      path: the file.
      *formats: format numbers that it may have; without any, it must have none.

    Raises:
      FileNotFoundError: if there is no such file.
      ResultsError: if it is not valid JSON, was altered since, or has another format number.
    """
    is_path = isinstance(path, (str, os.PathLike))
    checks.require(is_path, "path", "the path of a results file", path)
    path = paths.make(path)
    if path.is_dir():
        raise ResultsError(f"{path} is a folder. Name the file in it, {path / 'results.json'}.")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(
            f"Expected a results file at {path}; found none. Check the path, or run the experiment "
            "first: it writes results.json into its output folder."
        ) from None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ResultsError(
            f"Expected JSON in {path}; found something else ({error}). The file is damaged or was "
            "copied half-way: copy it again, or run the experiment again."
        ) from error
    number = type(record).__name__ if not isinstance(record, dict) else record.get("format")
    if not isinstance(record, dict) or number not in (formats or (None,)):
        expected = " or ".join(map(str, formats)) or None
        raise ResultsError(
            f"Expected a results file of format {expected} in {path}; found format {number!r}. "
            "Read it with the version of ldro_jax that wrote it, or run the experiment again."
        )
    # A file that was made or mended by hand has none.
    written = record.pop(_CHECKSUM, None)
    if written is not None and not _is_whole(record, written):
        raise ResultsError(
            f"{path} is not what was written: its checksum is another one. Copy it again, or run "
            f'the experiment again. If you have changed it by hand, take "{_CHECKSUM}" out of it.'
        )
    return record


def read_or_move_aside(file: Path, read: Callable[[Path], _Read]) -> _Read | None:
    """What a function reads from a file; ``None`` if there is no file, or it can't be used.

    A file for which the function raises ``ValueError`` is moved aside, with a warning.
    """
    try:
        return read(file)
    except FileNotFoundError:  # or another process has just moved it
        return None
    except ValueError as error:
        logging.warning("%s can't be used, so it is made again. %s", file, error)
        if processes.is_first():
            logging.warning("It is now %s.", paths.move_aside(file))
        return None


def _is_whole(record: Mapping[str, Any], written: str) -> bool:
    try:
        return checksum(record) == written
    except ValueError:  # Python reads a NaN, but none was written.
        return False

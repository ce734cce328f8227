"""JSON files that are never half-written, and clear errors for those that are."""

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldro_jax import paths


class ResultsError(ValueError):
    """A results file that cannot be used: it is corrupt, incomplete or of another format."""


def write_json(record: Mapping[str, Any], path: Path) -> None:
    """Writes a file, so that a reader sees either the old one or the whole new one.

    In cloud storage any file is written so.

    Args:
      record: plain types; numbers are finite.
      path: the file; missing folders are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record, separators=(",", ":"), allow_nan=False) + "\n"
    if paths.is_remote(path):
        path.write_text(text, encoding="utf-8")
        return
    # The temporary file must be on the same file system for the replacement to be atomic.
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        # mkstemp makes the file private; a report's data should be as readable as other files.
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def read_json(path: str | os.PathLike, expected: int) -> dict[str, Any]:
    """Reads a results file as plain types.

    Args:
      path: the file.
      expected: its format number.

    Returns:
      The record as it is stored.

    Raises:
      FileNotFoundError: if there is no such file.
      ResultsError: if it is not valid JSON, or has another format number.
    """
    path = paths.make(path)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(
            f"Expected a results file at {path}; found none. Check the path, or run the experiment "
            "first: it writes results.json into its output folder."
        ) from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ResultsError(
            f"Expected JSON in {path}; found something else ({error}). The file is damaged or was "
            "copied half-way: copy it again, or run the experiment again."
        ) from error
    found = record.get("format") if isinstance(record, dict) else type(record).__name__
    if found != expected:
        raise ResultsError(
            f"Expected a results file of format {expected} in {path}; found format {found!r}. Read "
            "it with the version of ldro_jax that wrote it, or run the experiment again."
        )
    return record

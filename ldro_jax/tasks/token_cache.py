"""Where the tokens of a text are kept, so that it is tokenised once."""

import hashlib
import io
import os
import pathlib
from collections.abc import Callable

import numpy as np
from absl import logging

from ldro_jax.runtime import paths


def save(path: pathlib.Path, tokens: np.ndarray) -> None:
    """Writes a file that is either whole or not there, and its checksum beside it.

    Args:
      path: the file.
      tokens: what to write.

    Raises:
      OSError: if there is no room.
    """
    content = io.BytesIO()
    np.save(content, tokens)
    try:
        paths.write(path, content.getvalue())
        seal(path)
    except OSError as error:
        raise OSError(
            f"The tokens can't be written to {path.parent} ({error.strerror}). Make room, or "
            "choose another cache_dir."
        ) from error


def load(path: pathlib.Path, make: Callable[[], np.ndarray]) -> np.ndarray:
    """The tokens of a file, which is made first where it isn't there or is damaged.

    Args:
      path: the file.
      make: gives the tokens.

    Returns:
      The tokens, mapped into memory.

    Raises:
      OSError: if there is no room.
    """
    if not is_whole(path):
        logging.info("Tokenising %s.", path.name)
        save(path, make())
    return np.load(path, mmap_mode="r")


def seal(path: pathlib.Path) -> None:
    """Writes the checksum of a file beside it.

    Args:
      path: the file, whole.
    """
    paths.write(_seal(path), _digest(path))


def is_whole(path: pathlib.Path) -> bool:
    """Whether a file of the cache can be used; the log says so where it is damaged.

    Args:
      path: the file.
    """
    if not path.exists():
        return False
    # A process that was killed leaves a file without its checksum.
    if _seal(path).exists():
        if _seal(path).read_bytes() == _digest(path).encode():
            return True
        logging.warning("%s is not what was written, so it is made again.", path)
    return False


def folder(given: str | None) -> pathlib.Path:
    """The directory of the cache; it is made if it isn't there.

    Args:
      given: the directory, or ``None`` for ``ldro_jax/tokens`` in ``$XDG_CACHE_HOME`` or
        ``~/.cache``.

    Returns:
      The directory.
    """
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    found = pathlib.Path(given or f"{home}/ldro_jax/tokens").expanduser()
    found.mkdir(parents=True, exist_ok=True)
    return found


def _seal(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(f"{path.name}.sha256")


def _digest(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

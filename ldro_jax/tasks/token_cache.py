"""Where the tokens of a text are kept, so that it is tokenised once."""

import os
import pathlib
import tempfile
from collections.abc import Callable

import numpy as np
from absl import logging


def save(path: pathlib.Path, tokens: np.ndarray) -> None:
    """Writes a file that is either whole or not there.

    Args:
      path: the file.
      tokens: what to write.

    Raises:
      OSError: if there is no room.
    """
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


def load(path: pathlib.Path, make: Callable[[], np.ndarray]) -> np.ndarray:
    """The tokens of a file, which is made first where it isn't there.

    Args:
      path: the file.
      make: gives the tokens.

    Returns:
      The tokens, mapped into memory.

    Raises:
      OSError: if there is no room.
    """
    if not path.exists():
        logging.info("Tokenising %s.", path.name)
        save(path, make())
    return np.load(path, mmap_mode="r")


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

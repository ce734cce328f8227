"""Paths of files on this machine or in cloud storage, such as ``gs://BUCKET/FOLDER``.

A path in cloud storage has the methods of a ``pathlib.Path`` that an output directory needs.
"""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any


def make(path: str | os.PathLike) -> pathlib.Path:
    """A path to read from or write to.

    Args:
      path: as a user gives it.

    Returns:
      A ``pathlib.Path``; for cloud storage an ``etils.epath.Path``.

    Raises:
      ImportError: if it is in cloud storage and etils is not installed.
      ValueError: if no such storage is known.
    """
    if not is_remote(path):
        return pathlib.Path(path)
    try:
        from etils import epath

        return epath.Path(path)  # pyright: ignore[reportReturnType]
    except ImportError as error:
        raise ImportError(
            f"{path} is in cloud storage ({error}): pip install 'ldro-jax[gcs]'."
        ) from error
    except KeyError as error:
        raise ValueError(f"{path} is in cloud storage of an unknown kind, {error}.") from error


def absolute(path: str | os.PathLike) -> pathlib.Path:
    """A path that doesn't depend on the working directory.

    Args:
      path: as a user gives it; ``~`` is expanded.

    Returns:
      See :func:`make`.
    """
    # epath would take the working directory for a part of the address.
    return make(path) if is_remote(path) else pathlib.Path(path).expanduser().absolute()


def is_remote(path: str | os.PathLike) -> bool:
    """Whether a path is in cloud storage, where an object is written as a whole or not at all.

    Args:
      path: any path.
    """
    return "://" in os.fspath(path)


def remove_tree(folder: pathlib.Path) -> None:
    """Deletes a folder and all that is in it.

    Args:
      folder: one that exists.
    """
    if not is_remote(folder):
        shutil.rmtree(folder)
        return
    remote: Any = folder
    remote.rmtree()
    # The first time TensorFlow may delete no more than the object that stands for the folder.
    remote.rmtree(missing_ok=True)


@contextlib.contextmanager
def clear_errors(path: pathlib.Path) -> Iterator[None]:
    """Makes an ``OSError`` of one line of what cloud storage raises, which is of many types.

    Args:
      path: what is read or written.
    """
    try:
        yield
    except Exception as error:
        if not is_remote(path) or isinstance(error, OSError):
            raise
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise OSError(
            f"{path} can't be used ({reason.rstrip('.')}). Cloud storage takes "
            "pip install 'ldro-jax[gcs]', and an account that may read and write there."
        ) from error

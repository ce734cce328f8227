"""Paths of files on this machine or in cloud storage, such as ``gs://BUCKET/FOLDER``.

A path in cloud storage has the methods of a ``pathlib.Path`` that an output directory needs.
"""

import contextlib
import errno
import hashlib
import itertools
import os
import pathlib
import secrets
import shutil
from collections.abc import Iterator
from typing import Any

from ldro_jax.runtime import errors

# What a file is called while it is written; one that is left by a killed process is of no use.
TEMPORARY = ".ldro_jax-"


def make(path: str | os.PathLike[str]) -> pathlib.Path:
    """A ``pathlib.Path``, or an ``etils.epath.Path`` for cloud storage, from what a user gives.

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


def absolute(path: str | os.PathLike[str]) -> pathlib.Path:
    """As :func:`make`, but ``~`` is expanded and the working directory plays no part any more."""
    # epath would take the working directory for a part of the address.
    return make(path) if is_remote(path) else pathlib.Path(path).expanduser().absolute()


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether a path is in cloud storage, where an object is written as a whole or not at all."""
    return "://" in os.fspath(path)


def write(path: pathlib.Path, content: bytes | str) -> None:
    """Writes a file, so that a reader sees either the old one or the whole new one.

    Missing folders are made, and text is written as UTF-8.

    Raises:
      OSError: if it can't be written. The old file, if there is one, stays.
    """
    if isinstance(content, str):
        content = content.encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    if is_remote(path):
        path.write_bytes(content)
        return
    # The temporary file must be on the same file system for the replacement to be atomic.
    temporary = path.with_name(f"{TEMPORARY}{path.name}.{secrets.token_hex(4)}")
    # As readable as the user's other files, which those of mkstemp are not.
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    handle = os.open(temporary, flags, 0o666)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            # Otherwise a machine that loses power may keep the new name and not what is in it.
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        # The error of a full disk names no file.
        if isinstance(error, OSError) and error.errno and error.filename is None:
            error.filename = str(path)
        raise


def sha256(path: pathlib.Path) -> str:
    """Identifies a file by what is in it, in 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        # hashlib.file_digest needs more than a file in cloud storage has.
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest()


def move_aside(path: pathlib.Path) -> pathlib.Path:
    """Renames a file or a folder that can't be read, so that it is neither used nor lost.

    Returns:
      What it is called now: ``unreadable-NAME``, with a number if that is taken.
    """
    name = f"unreadable-{path.name}"
    names = itertools.chain([name], (f"{name}-{n}" for n in itertools.count(2)))
    aside = next(p for n in names if not (p := path.with_name(n)).exists())
    path.rename(aside)
    return aside


def remove_tree(folder: pathlib.Path) -> None:
    """Deletes a folder that exists and all that is in it.

    Symbolic links are deleted, and what they point to stays. A folder that is a mount point is
    emptied.
    """
    if is_remote(folder):
        remote: Any = folder
        remote.rmtree()
        # The first time TensorFlow may delete no more than the object that stands for the folder.
        remote.rmtree(missing_ok=True)
    elif folder.is_symlink():
        folder.unlink()
    elif os.path.ismount(folder):
        for path in folder.iterdir():
            remove(path)
    else:
        shutil.rmtree(folder)


def remove(path: pathlib.Path) -> None:
    """Deletes a file or a link that exists, or a folder as :func:`remove_tree` does."""
    if path.is_dir():
        remove_tree(path)
    else:
        path.unlink()


@contextlib.contextmanager
def clear_errors(path: pathlib.Path) -> Iterator[None]:
    """Makes one ``OSError`` of what libraries raise for a full disk or in cloud storage.

    Args:
      path: what is read or written.
    """
    try:
        yield
    except Exception as error:
        is_system_error = isinstance(error, OSError)
        # TensorStore has the reason in its text alone.
        is_full = error.errno == errno.ENOSPC if is_system_error else "No space left" in str(error)
        if is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        if not is_remote(path) or is_system_error:
            raise
        reason = errors.first_line(error)
        raise OSError(
            f"{path} can't be used ({reason.rstrip('.')}). Cloud storage takes "
            "pip install 'ldro-jax[gcs]', and an account that may read and write there."
        ) from error

"""The directory of one experiment: begun, gone on in, or cleared, by one process at a time."""

import contextlib
import difflib
import errno
import importlib.util
import json
import os
import pathlib
import socket
import stat
import time
from typing import Any

from ldro_jax import paths
from ldro_jax.records import results as results_lib

CONFIG, RESULTS, REPORT = "config.gin", "results.json", "report.html"
# All that an experiment writes, in the order in which it is deleted: without the results it doesn't
# count as finished, and without the configuration not as an experiment.
_WRITTEN = (
    RESULTS,
    REPORT,
    "figures",
    "runs",
    "references.json",
    "monolingual",
    "tensorboard",
    "checkpoints",
    CONFIG,
)
_LOCK = f"{paths.TEMPORARY}lock"
# What a file must have to be the configuration of an experiment, and not of some other program.
MARK = "run.experiment"


class OutputDir:
    """Where an experiment goes. Nothing is written or deleted before :meth:`claim`.

    Args:
      directory: as a user gives it.
      config_text: the resolved configuration, which goes to ``config.gin``.
      overwrite: delete what an earlier run left there.

    Raises:
      ValueError: if the name is empty.
    """

    def __init__(self, directory: str | os.PathLike, config_text: str, *, overwrite: bool = False):
        if not os.fspath(directory).strip():
            raise ValueError(
                "--output_dir is empty. Is it a variable that isn't set? Name a directory."
            )
        self.path = paths.absolute(directory)
        self._config_text, self._overwrite = config_text, overwrite
        self._lock: Any = None

    def check(self) -> results_lib.Results | None:
        """Finds out whether the experiment can go there; only reads.

        Returns:
          The record of this experiment, if it is finished; ``None`` if it is to be run.

        Raises:
          FileExistsError: if another process works there, or it holds another experiment or
            something that isn't an experiment.
          OSError: if it is in cloud storage that can't be reached.
        """
        with paths.clear_errors(self.path):
            return self._check()

    def claim(self) -> None:
        """Locks the directory, deletes what is to be overwritten, writes the configuration.

        Call it when everything else is checked.

        Raises:
          FileExistsError: as :meth:`check`.
          PermissionError: if it can't be written to.
        """
        with paths.clear_errors(self.path), contextlib.ExitStack() as stack:
            # Not even the lock goes where something else is.
            self._check()
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                is_mine = self._take_lock()
            except OSError as error:
                raise self._unwritable(error) from error
            stack.callback(self.close)
            self._check()
            if not is_mine:
                raise FileExistsError(f"{self.path} was taken by another process just now.")
            try:
                if self._overwrite:
                    self._clear()
                results = self.path / RESULTS
                if results.exists() and _load(results) is None:
                    paths.move_aside(results)
                if self._found_config() != self._config_text:
                    paths.write(self.path / CONFIG, self._config_text)
            except OSError as error:
                raise self._unwritable(error) from error
            # It stays locked only if all went well.
            stack.pop_all()

    def close(self) -> None:
        """Lets others have the directory."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _check(self) -> results_lib.Results | None:
        directory = self.path
        if directory.exists() and not directory.is_dir():
            raise FileExistsError(f"{directory} is a file. Choose a directory for --output_dir.")
        if not directory.exists():
            return None
        if holder := self._holder():
            raise FileExistsError(
                f"{directory} is in use by {holder}. Wait until it is done, or choose another "
                "--output_dir."
            )
        found = self._found_config()
        if (found and MARK not in found) or (found is None and self._has_files()):
            raise FileExistsError(
                f"{directory} holds files, but no experiment (no {CONFIG} of one). Choose another "
                "--output_dir."
            )
        # One that is empty was cut off by an earlier version of this program.
        if not found or self._overwrite:
            return None
        finished = (directory / RESULTS).exists()
        if found != self._config_text:
            kind = "a finished" if finished else "an unfinished"
            advice = "Choose" if finished else "Go on with that one, choose"
            raise FileExistsError(
                f"{directory} holds {kind} experiment with another configuration: "
                f"{_difference(found, self._config_text)}. {advice} another --output_dir, or pass "
                "--overwrite to delete it."
            )
        if finished and (directory / REPORT).exists():
            return _load(directory / RESULTS)
        return None

    def _found_config(self) -> str | None:
        try:
            return (self.path / CONFIG).read_bytes().decode(errors="replace")
        except FileNotFoundError:
            return None

    def _has_files(self) -> bool:
        return any(not path.name.startswith(paths.TEMPORARY) for path in self.path.iterdir())

    def _clear(self) -> None:
        for name in _WRITTEN:
            path = self.path / name
            if path.exists() or (not paths.is_remote(path) and path.is_symlink()):
                paths.remove(path)

    def _unwritable(self, error: OSError) -> PermissionError:
        return PermissionError(
            f"The output directory {self.path} can't be written to ({error.strerror or error}). "
            "Choose another --output_dir."
        )

    def _take_lock(self) -> bool:
        if paths.is_remote(self.path) or importlib.util.find_spec("fcntl") is None:
            return True
        lock = _open_lock(self.path / _LOCK, os.O_RDWR | os.O_CREAT)
        if not _flock(lock):
            lock.close()
            return False
        # The file stays when the process ends; the lock doesn't.
        lock.truncate(0)
        holder = {"process": os.getpid(), "host": socket.gethostname(), "since": time.ctime()}
        lock.write(json.dumps(holder))
        lock.flush()
        self._lock = lock
        return True

    def _holder(self) -> str:
        """Who has the lock, if it isn't this object."""
        path = self.path / _LOCK
        if self._lock is not None or paths.is_remote(path) or not os.path.lexists(path):
            return ""
        with _open_lock(path, os.O_RDONLY) as lock:
            if _flock(lock):
                return ""
            try:
                found = json.loads(lock.read())
                return f"process {found['process']} on {found['host']} since {found['since']}"
            except (ValueError, KeyError, TypeError):
                return "another process"


def _difference(found: str, ours: str) -> str:
    """The bindings that differ, on one line."""
    changes = difflib.ndiff(found.splitlines(), ours.splitlines())
    lines = [change for change in changes if change[:2] in ("- ", "+ ") and change[2:].strip()]
    there, now = ("; ".join(x[2:] for x in lines if x[0] == sign) or "nothing" for sign in "-+")
    return f"{there} there, {now} now"


def _open_lock(path: pathlib.Path, flags: int) -> Any:
    """Opens the lock, a file that is written over; never one that somebody put there instead.

    Raises:
      FileExistsError: if it is a link, or no file, or that of another user.
    """
    what = "isn't a plain file"
    try:
        # What a link points to would be written over, and a pipe would block.
        more = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        descriptor = os.open(path, flags | more, 0o666)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EMLINK, errno.ENXIO):
            raise
    else:
        found = os.fstat(descriptor)
        if stat.S_ISREG(found.st_mode) and found.st_nlink == 1:
            if _is_trusted(found.st_uid, path.parent):
                return os.fdopen(descriptor, "r+" if flags & os.O_RDWR else "r", encoding="utf-8")
            what = "belongs to another user"
        os.close(descriptor)
    raise FileExistsError(
        f"{path}, which says who works there, {what}. Delete it if no process does, or choose "
        "another --output_dir."
    )


def _is_trusted(owner: int, directory: pathlib.Path) -> bool:
    if not hasattr(os, "geteuid"):
        return True
    # A file system that has one owner for everything has the same one for the directory.
    return os.geteuid() in (0, owner) or owner == directory.stat().st_uid


def _flock(file: Any) -> bool:
    """Whether the lock of a file could be taken; the system releases it when the file is closed."""
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # Some network file systems have no locks. One process must be able to work there.
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES)
    return True


def _load(path: pathlib.Path) -> results_lib.Results | None:
    with contextlib.suppress(results_lib.ResultsError):
        return results_lib.load_results(path)
    return None

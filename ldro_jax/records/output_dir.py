"""The directory of one experiment: begun, gone on in, or cleared, by one process at a time."""

import contextlib
import errno
import importlib.util
import json
import os
import pathlib
import socket
import stat
import time
from collections.abc import Callable, Iterator
from typing import Any

from ldro_jax.records import identity
from ldro_jax.records import results as results_lib
from ldro_jax.runtime import paths, processes

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
# How many lines an error quotes of each of two configurations.
_SHOWN = 4
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

    def __init__(
        self, directory: str | os.PathLike[str], config_text: str, *, overwrite: bool = False
    ) -> None:
        if not os.fspath(directory).strip():
            raise ValueError(
                "output_dir is empty. Is it a variable that isn't set? Name a directory."
            )
        self.path: pathlib.Path = paths.absolute(directory)
        self._config_text, self._overwrite = _marked(config_text), overwrite
        self._lock: Any = None

    def check(self) -> None:
        """Finds out whether an experiment can go there; only reads.

        Whether the experiment that is there is the same is found out from its runs, when the data
        is known.

        Raises:
          FileExistsError: if another process works there, or it holds something that isn't an
            experiment.
          OSError: if it is in cloud storage that can't be reached.
        """
        if processes.is_first():
            with paths.clear_errors(self.path):
                self._check()

    def claim(self) -> None:
        """Locks the directory, deletes what is to be overwritten, writes a configuration.

        Call it when everything else is checked. A configuration that is there stays, until
        :func:`going_on`. Of several processes the first does it, and the others wait.

        Raises:
          FileExistsError: as :meth:`check`.
          PermissionError: if it can't be written to.
        """
        if processes.is_first():
            self._claim()
        processes.wait_for_all("output_dir")

    def _claim(self) -> None:
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
                # An empty one was cut off by an earlier version of this program.
                if not _config_of(self.path):
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

    def _check(self) -> None:
        directory = self.path
        if directory.exists() and not directory.is_dir():
            raise FileExistsError(f"{directory} is a file. Choose a directory for output_dir.")
        if not directory.exists():
            return
        if holder := self._holder():
            raise FileExistsError(
                f"{directory} is in use by {holder}. Wait until it is done, or choose another "
                "output_dir."
            )
        config = _config_of(directory)
        has_files = any(not x.name.startswith(paths.TEMPORARY) for x in directory.iterdir())
        if (config and MARK not in config) or (config is None and has_files):
            raise FileExistsError(
                f"{directory} holds files, but no experiment (no {CONFIG} of one). Choose another "
                "output_dir."
            )

    def _clear(self) -> None:
        for name in _WRITTEN:
            path = self.path / name
            if path.exists() or (not paths.is_remote(path) and path.is_symlink()):
                paths.remove(path)

    def _unwritable(self, error: OSError) -> PermissionError:
        return PermissionError(
            f"The output directory {self.path} can't be written to ({error.strerror or error}). "
            "Choose another output_dir."
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
                holder = json.loads(lock.read())
                return f"process {holder['process']} on {holder['host']} since {holder['since']}"
            except (ValueError, KeyError, TypeError):
                return "another process"


def finished(directory: pathlib.Path, config_text: str | None) -> results_lib.Results | None:
    """The record of an experiment, if it and its report are written for this configuration."""
    if config_text is None or _config_of(directory) != _marked(config_text):
        return None
    is_there = (directory / REPORT).exists() and (directory / RESULTS).exists()
    return _load(directory / RESULTS) if is_there else None


@contextlib.contextmanager
def going_on(directory: pathlib.Path, config_text: str | None) -> Iterator[Callable[[], None]]:
    """Adds to an ``OtherRunError`` raised inside the lines in which the configurations differ.

    Yields:
      A function that writes the configuration, to be called when nothing that is there is refused.
      Without a configuration the one that is there stays.
    """
    theirs = _config_of(directory) or ""
    ours = theirs if config_text is None else _marked(config_text)

    def accept():
        if processes.is_first() and theirs != ours:
            paths.write(directory / CONFIG, ours)

    try:
        yield accept
    except identity.OtherRunError as error:
        if (_config_of(directory) or "") == ours:
            raise
        there, now = _differences(theirs, ours)
        raise identity.OtherRunError(
            f"{error} The configurations differ: {there} there, {now} now."
        ) from error


def _marked(config_text: str) -> str:
    """The configuration, with a mark that tells it from that of another program."""
    return config_text if MARK in config_text else f"# {MARK}\n{config_text}"


def _config_of(directory: pathlib.Path) -> str | None:
    try:
        return (directory / CONFIG).read_bytes().decode(errors="replace")
    except FileNotFoundError:
        return None


def _differences(theirs: str, ours: str) -> tuple[str, str]:
    """The first lines that only one of two texts has."""
    lines = [[x.strip().removeprefix("# ") for x in text.splitlines()] for text in (theirs, ours)]
    names = [{x.partition(" = ")[0] for x in mine} for mine in lines]

    def only(mine, others):
        left = [x for x in mine if x and x not in set(others)]
        # What both have under one name comes first.
        left.sort(key=lambda x: x.partition(" = ")[0] not in names[0] & names[1])
        more = f" and {len(left) - _SHOWN} more lines" if len(left) > _SHOWN else ""
        return "; ".join(left[:_SHOWN]) + more if left else "nothing"

    return only(*lines), only(*reversed(lines))


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
        status = os.fstat(descriptor)
        if stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
            if _is_trusted(status.st_uid, path.parent):
                return os.fdopen(descriptor, "r+" if flags & os.O_RDWR else "r", encoding="utf-8")
            what = "belongs to another user"
        os.close(descriptor)
    raise FileExistsError(
        f"{path}, which says who works there, {what}. Delete it if no process does, or choose "
        "another output_dir."
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

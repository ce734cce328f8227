"""A second copy of a checkpoint that many others depend on, made while the training goes on."""

import pathlib
import shutil
import threading

from absl import logging

from ldro_jax.runtime import errors, paths, processes

_NAME = "copy-"


def place(directory: pathlib.Path, step: int) -> pathlib.Path:
    """Where the copy of a checkpoint is, if there is one."""
    return directory / f"{_NAME}{step}"


class Copies:
    """Keeps one copy in a directory that holds a folder for each checkpoint, named by its step.

    In cloud storage there is none, as that keeps several itself.
    """

    def __init__(self, directory: pathlib.Path) -> None:
        self._directory, self._thread = directory, None
        # What a killed process was writing.
        if self._writes and directory.exists():
            for left in directory.glob(f"{paths.TEMPORARY}*"):
                paths.remove(left)

    @property
    def _writes(self) -> bool:
        return processes.is_first() and not paths.is_remote(self._directory)

    def start(self, step: int) -> None:
        """Starts to copy a checkpoint, which nothing may change before :meth:`wait`."""
        if self._writes and not self._path(step).exists():
            self._thread = threading.Thread(target=self._make, args=(step,), daemon=True)
            self._thread.start()

    def wait(self) -> None:
        """Waits for the copy that is being made."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def forget(self, step: int) -> None:
        """Deletes the copy of a checkpoint that will be another one."""
        if self._writes and self._path(step).exists():
            paths.remove_tree(self._path(step))

    def put_back(self, step: int) -> bool:
        """Puts the copy, if there is one, in the place of its checkpoint, which is moved aside."""
        if not processes.all_agree(self._path(step).exists()):
            return False
        if self._writes:
            original = self._directory / str(step)
            if original.exists():
                aside = paths.move_aside(original)
                logging.warning("The checkpoint of step %d is now %s.", step, aside)
            self._copy(self._path(step), original)
            logging.warning("There is a copy of the checkpoint of step %d, which is used.", step)
        processes.wait_for_all("put back")
        return True

    def _path(self, step: int) -> pathlib.Path:
        return place(self._directory, step)

    def _make(self, step: int) -> None:
        try:
            self._copy(self._directory / str(step), self._path(step))
            for other in self._directory.glob(f"{_NAME}*"):
                if other != self._path(step):
                    paths.remove_tree(other)
        except OSError as error:  # the training goes on without it
            logging.warning("%s can't be made (%s).", self._path(step), errors.first_line(error))

    def _copy(self, source: pathlib.Path, target: pathlib.Path) -> None:
        """Copies a folder, so that the copy is there as a whole or not at all."""
        temporary = self._directory / f"{paths.TEMPORARY}{target.name}"
        if temporary.exists():
            paths.remove_tree(temporary)
        shutil.copytree(source, temporary)
        temporary.rename(target)

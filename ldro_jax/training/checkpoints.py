"""Checkpoints of a run: its training state and its record so far, saved together."""

import itertools
import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging

from ldro_jax import paths
from ldro_jax.training import processes


class Checkpoints:
    """Saves and restores one run with Orbax, keeping the newest few.

    Args:
      directory: where to keep them; made if it isn't there. Its name tells it from others that are
        open at the same time.
      keep: how many to keep.
    """

    def __init__(self, directory: pathlib.Path, *, keep: int = 2):
        self._directory = paths.absolute(directory)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            create=True,
            # Under one name jax lets a process wait for the others but once at a time.
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                barrier_sync_key_prefix=self._directory.name
            ),
        )
        with paths.clear_errors(self._directory):
            self._manager = _Manager(self._directory, options=options)

    def save(self, step: int, state: Any, record: dict[str, Any]) -> None:
        """Starts saving; the write goes on in the background.

        Args:
          step: number of steps taken; what was saved at that step before is replaced.
          state: a pytree of arrays.
          record: anything that JSON can hold.
        """
        if step in self._manager.all_steps():
            self._manager.delete(step)
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(record)
            ),
        )

    def restore(self, like: Any) -> tuple[Any, dict[str, Any]] | None:
        """Restores the newest checkpoint that can be read.

        One that can't be is reported in the log and moved aside, and the one before it is tried.

        Args:
          like: a state with the structure, shapes and dtypes to restore.

        Returns:
          The state and the record, or ``None`` if there is no good checkpoint.
        """
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        self._manager.wait_until_finished()
        for step in sorted(self._manager.all_steps(), reverse=True):
            found = None
            try:
                found = self._read(self._manager.directory / str(step), abstract)
            # Whatever a damaged file makes Orbax raise, an older checkpoint is better than none.
            except Exception as error:
                logging.warning(
                    "The checkpoint of step %d in %s can't be read (%s).",
                    step,
                    self._directory,
                    str(error).splitlines()[0] if str(error) else type(error).__name__,
                )
            if processes.all_agree(found is not None):
                return found
            self._move_aside(step)
        return None

    def _read(self, folder: Any, abstract: Any) -> tuple[Any, dict[str, Any]]:
        # The manager's own restore has all processes wait for each other at its end, and one that
        # fails before would never come.
        state = ocp.StandardCheckpointHandler().restore(
            folder / "state", args=ocp.args.StandardRestore(abstract)
        )
        return state, dict(ocp.JsonCheckpointHandler().restore(folder / "record"))

    def _move_aside(self, step: int) -> None:
        if processes.is_first():
            name = f"unreadable-{step}"
            names = itertools.chain([name], (f"{name}-{n}" for n in itertools.count(2)))
            aside = next(p for n in names if not (p := self._directory / n).exists())
            (self._directory / str(step)).rename(aside)
            logging.warning(
                "The checkpoint of step %d is now %s. Falling back to an older one.", step, aside
            )
        processes.wait_for_all("moved aside")
        self._manager.reload()

    def close(self) -> None:
        """Waits for the writes under way."""
        self._manager.wait_until_finished()
        self._manager.close()


class _Manager(ocp.CheckpointManager):
    def reached_preemption(self, step: int) -> bool:
        """Says no: :mod:`ldro_jax.training.preemption` asks jax, and numbers its questions."""
        return False

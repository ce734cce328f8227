"""Checkpoints of a run: its training state and its record so far, saved together."""

import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging


class Checkpoints:
    """Saves and restores one run with Orbax, keeping the newest few.

    Args:
      directory: where to keep them; made if it isn't there.
      keep: how many to keep.
    """

    def __init__(self, directory: pathlib.Path, *, keep: int = 2):
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        self._directory = directory.absolute()
        self._manager = ocp.CheckpointManager(self._directory, options=options)

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

        One that can't be is reported in the log and deleted, and the one before it is tried.

        Args:
          like: a state with the structure, shapes and dtypes to restore.

        Returns:
          The state and the record, or ``None`` if there is no good checkpoint.
        """
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        args = ocp.args.Composite(
            state=ocp.args.StandardRestore(abstract), record=ocp.args.JsonRestore()
        )
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                restored: Any = self._manager.restore(step, args=args)
                return restored.state, restored.record
            # Whatever a damaged file makes Orbax raise, an older checkpoint is better than none.
            except Exception as error:
                logging.warning(
                    "The checkpoint of step %d in %s can't be read (%s). Falling back to an older "
                    "one.",
                    step,
                    self._directory,
                    str(error).splitlines()[0] if str(error) else type(error).__name__,
                )
                self._manager.delete(step)
        return None

    def close(self) -> None:
        """Waits for the writes under way."""
        self._manager.wait_until_finished()
        self._manager.close()

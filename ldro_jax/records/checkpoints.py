"""Checkpoints of a run: its training state and its record so far, saved together.

A checkpoint is one directory that is there as a whole or not at all. It holds checksums of
everything in it, says what data it was made with, and which earlier one was the best of its run: a
run goes on from a checkpoint only if that one can be read as well, so there is a copy of it.
"""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging

from ldro_jax.records import copies, files, kept, orbax
from ldro_jax.records import identity as identity_lib
from ldro_jax.runtime import errors, paths, processes


class RefusedError(ValueError):
    """A checkpoint is as it was written, but what belongs to it can't go on from there."""


AndThen = Callable[[int, dict[str, Any]], None]


class Checkpoints:
    """Saves and restores runs with Orbax, keeping the newest few checkpoints and the best.

    Args:
      directory: where to keep them; made if it isn't there. Its name tells it from others that are
        open at the same time.
      keep: how many of the newest to keep.
      identity: what the runs are made with, see :func:`ldro_jax.training.fingerprint.of`; a
        checkpoint with another identity is refused.
    """

    def __init__(
        self,
        directory: pathlib.Path,
        *,
        keep: int = 2,
        identity: Mapping[str, Any] | None = None,
    ):
        self._directory = paths.absolute(directory)
        self._keep, self._best, self._knows_best = keep, None, False
        self._identity = dict(identity or {})
        options = ocp.CheckpointManagerOptions(
            # Which to delete is decided in _prune: Orbax would count the best among the newest.
            max_to_keep=None,
            create=True,
            # That is, what a killed process was writing. In a bucket Orbax would also delete what
            # isn't a checkpoint, such as one that was moved aside.
            cleanup_tmp_directories=not paths.is_remote(self._directory),
            # Processes can wait for each other under one name only once at a time.
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                barrier_sync_key_prefix=self._directory.name
            ),
        )
        with paths.clear_errors(self._directory):
            self._manager = orbax.Manager(self._directory, options=options)
        # Without the best one all later ones are of no use.
        self._copies = copies.Copies(self._directory)

    @property
    def steps(self) -> Sequence[int]:
        """The steps of the checkpoints that are complete, in order."""
        return sorted(self._manager.all_steps())

    def save(
        self, step: int, state: Any, record: Mapping[str, Any], *, best: int | None = None
    ) -> None:
        """Starts saving; the write goes on in the background.

        Args:
          step: number of steps taken; what was saved at that step before is replaced.
          state: a pytree of arrays.
          record: anything that JSON can hold.
          best: the step of the checkpoint that is to be tested in the end, this one or an earlier
            one; it is kept.

        Raises:
          OSError: if this one or the last one can't be written.
        """
        payload = {
            "record": dict(record),
            "identity": self._identity,
            "structure": identity_lib.structure(state),
            "state": identity_lib.digest(state),
            "best": best,
        }
        payload["checksum"] = files.checksum(payload)
        with paths.clear_errors(self._directory):
            # The one before must be there as a whole before others are deleted for it.
            self._manager.wait_until_finished()
            self._prune()
            if best is not None and best == self._best and best != step:
                self._copies.start(best)
            self._best, self._knows_best = best, True
            self._copies.forget(step)
            if step in self.steps:
                self._manager.delete(step)
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(payload)
                ),
            )

    def restore(
        self, like: Any, and_then: AndThen = lambda step, record: None
    ) -> tuple[Any, dict[str, Any], list[str]] | None:
        """Restores the newest checkpoint that can be read, along with the best one it names.

        One that can't be is reported in the log and moved aside, and the one before it is tried.

        Args:
          like: a state with the structure, shapes and dtypes to restore.
          and_then: called with the step and the record, to restore what belongs to a checkpoint but
            isn't in it; what it raises counts as damage, unless it is a ``RefusedError``.

        Returns:
          The state, the record and the metrics that are measured otherwise now, or ``None`` if
          there is no good checkpoint.

        Raises:
          OtherRunError: if a checkpoint was made with other data, settings or programs.
          RefusedError: if ``and_then`` refuses it.
        """
        self._manager.wait_until_finished()
        for step in reversed(self.steps):
            if step not in self.steps:  # the best of a later one, which couldn't be read
                continue
            read = self._read(step, like, and_then)
            if read is None:
                self._move_aside(step)
                continue
            best = read[1]["best"]
            if best not in (None, step) and self._read(best, like) is None:
                if best in self.steps:
                    self._move_aside(best)
                logging.warning(
                    "The checkpoint of step %d can't be used: the best one of its run, of step %d, "
                    "can't be read.",
                    step,
                    best,
                )
                self._move_aside(step)
                continue
            self._best, self._knows_best = best, True
            state, payload = read
            return state, payload["record"], self._check(step, payload, like)
        return None

    def restore_best(self, like: Any) -> Any | None:
        """Restores the state that the newest checkpoint names as the best; ``None`` without one.

        Args:
          like: a state with the structure, shapes and dtypes to restore.

        Raises:
          OSError: if it can't be read.
        """
        with paths.clear_errors(self._directory):
            self._manager.wait_until_finished()
        if self._best is None:
            return None
        self._copies.wait()
        if (read := self._read(self._best, like)) is None:
            raise OSError(
                f"The checkpoint of the best step, {self._best}, in {self._directory} can't be "
                "read any more. Run the same again: it goes back to where the run can go on "
                "from."
            )
        return read[0]

    def _read(
        self, step: int, like: Any, and_then: AndThen = lambda step, record: None
    ) -> tuple[Any, dict[str, Any]] | None:
        """The state and the payload of one checkpoint, or of its copy if it is damaged."""
        read = self._try(step, like, and_then)
        if read is None and self._copies.put_back(step):
            self._manager.reload()
            read = self._try(step, like, and_then)
        return read

    def _try(self, step: int, like: Any, and_then: AndThen) -> tuple[Any, dict[str, Any]] | None:
        """The state and the payload of one checkpoint, ``None`` if it is damaged anywhere."""
        state, payload, reason, refused = None, {}, "it isn't there", None
        # Whatever a damaged file makes Orbax raise, an older checkpoint is better than none.
        try:
            payload = kept.read_payload(self._directory / str(step))
        except Exception as error:
            reason = errors.first_line(error)
        if payload:
            self._check(step, payload, like)
            try:
                state = self._state(step, like)
            except Exception as error:
                reason = errors.first_line(error)
        if processes.all_agree(state is not None):
            # All processes take part in the sums.
            is_whole = identity_lib.digest(state) == payload["state"]
            reason = "it is not what was saved"
            if is_whole:
                try:
                    and_then(step, payload["record"])
                except RefusedError as error:
                    is_whole, refused = False, error
                except Exception as error:
                    is_whole, reason = False, errors.first_line(error)
            if processes.all_agree(is_whole):
                return state, payload
        if not processes.all_agree(refused is None):
            raise refused or RefusedError(
                f"Another process can't go on from the checkpoint of step {step} in "
                f"{self._directory}; its own error says why."
            )
        logging.warning(
            "The checkpoint of step %d in %s can't be read (%s).", step, self._directory, reason
        )
        return None

    # The manager's own restore has all processes wait for each other at its end, and one that fails
    # before would never come.
    def _state(self, step: int, like: Any) -> Any:
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        with orbax.reads_come_to_an_end():
            return ocp.StandardCheckpointHandler().restore(
                self._manager.directory / str(step) / "state",
                args=ocp.args.StandardRestore(abstract),
            )

    def _check(self, step: int, payload: Mapping[str, Any], like: Any) -> list[str]:
        """The metrics measured otherwise; raises ``OtherRunError`` for one of another run."""
        where = f"The checkpoint of step {step} in {self._directory}"
        changed = identity_lib.check(where, payload["identity"], self._identity)
        ours = identity_lib.structure(like)
        for name, was, now in identity_lib.differing(payload["structure"], ours):
            raise identity_lib.OtherRunError(
                f"{where} was made with another model, optimizer or version of ldro_jax: {name} is "
                f"{was or 'not there'} in it, but {now or 'not there'} now. {identity_lib.ADVICE}"
            )
        return changed

    def _prune(self) -> None:
        self._copies.wait()
        # Where all were refused, one of them may be the best, without which others are of no use.
        steps = self.steps if self._knows_best else ()
        for step in steps[: max(len(steps) - self._keep, 0)]:
            if step != self._best:
                self._manager.delete(step)

    def _move_aside(self, step: int) -> None:
        if processes.is_first():
            aside = paths.move_aside(self._directory / str(step))
            logging.warning(
                "The checkpoint of step %d is now %s. Falling back to an older one.", step, aside
            )
        processes.wait_for_all("moved aside")
        self._manager.reload()

    def close(self) -> None:
        """Waits for the writes under way; raises ``OSError`` if they fail."""
        with paths.clear_errors(self._directory):
            try:
                self._manager.wait_until_finished()
                self._prune()
            finally:
                self._manager.close()

"""TensorBoard scalars, written without TensorFlow, which takes seconds to import."""

import contextlib
import pathlib
import time
import uuid
from collections.abc import Mapping

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.record_writer import directory_check

# TensorBoard looks for new events as rarely.
_SECONDS_BETWEEN_FLUSHES = 10.0


class TensorBoardWriter(contextlib.AbstractContextManager):
    """Writes TensorBoard events; tensorboardX's own writer leaves that to a thread.

    They are on disk after :meth:`flush`, which waits for the disk, and otherwise after some
    seconds, with the next events.

    Args:
      directory: where the event file goes, a new one.
    """

    def __init__(self, directory: pathlib.Path):
        directory_check(str(directory))
        # The rest of its name are the second and the machine.
        self._writer = EventsWriter(str(directory / "events"), f".{uuid.uuid4().hex}")
        self._flushed = time.monotonic()

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes the scalars of one step, by name."""
        values = [Summary.Value(tag=name, simple_value=x) for name, x in scalars.items()]
        event = Event(wall_time=time.time(), step=step, summary=Summary(value=values))
        self._writer.write_event(event)
        if time.monotonic() - self._flushed > _SECONDS_BETWEEN_FLUSHES:
            self.flush()

    def flush(self) -> None:
        """Waits until all is on disk."""
        self._writer.flush()
        self._flushed = time.monotonic()

    def __exit__(self, *error: object) -> None:
        """Closes the file."""
        self._writer.close()

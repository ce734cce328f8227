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


class TensorBoardWriter(contextlib.AbstractContextManager):
    """Writes TensorBoard events at once; tensorboardX's own writer leaves that to a thread.

    Args:
      directory: where the event file goes, a new one.
    """

    def __init__(self, directory: pathlib.Path):
        directory_check(str(directory))
        # The rest of its name are the second and the machine.
        self._writer = EventsWriter(str(directory / "events"), f".{uuid.uuid4().hex}")

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes the scalars of one step, by name."""
        values = [Summary.Value(tag=name, simple_value=x) for name, x in scalars.items()]
        event = Event(wall_time=time.time(), step=step, summary=Summary(value=values))
        self._writer.write_event(event)
        # What isn't on disk when a checkpoint is, a resumed run won't write again.
        self._writer.flush()

    def __exit__(self, *error: object) -> None:
        """Closes the file."""
        self._writer.close()

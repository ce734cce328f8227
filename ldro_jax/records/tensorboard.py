"""TensorBoard scalars, written without TensorFlow, which takes seconds to import."""

import contextlib
import pathlib
import time
import uuid
from collections.abc import Iterable, Mapping

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.record_writer import directory_check
from tensorboardX.summary import custom_scalars

# TensorBoard looks for new events as rarely.
_SECONDS_BETWEEN_FLUSHES = 10.0


class TensorBoardWriter(contextlib.AbstractContextManager["TensorBoardWriter"]):
    """Writes TensorBoard events; tensorboardX's own writer leaves that to a thread.

    They are on disk after :meth:`flush`, which waits for the disk, and otherwise after some
    seconds, with the next events. The event file is a new one in the directory.
    """

    def __init__(self, directory: pathlib.Path) -> None:
        directory_check(str(directory))
        # The rest of its name is the time and the machine.
        self._writer = EventsWriter(str(directory / "events"), f".{uuid.uuid4().hex}")
        self._flushed = time.monotonic()
        self._names: tuple[str, ...] | None = None
        self._event, self._scalars = Event(), []

    def write_scalars(self, step: int, names: tuple[str, ...], values: Iterable[float]) -> None:
        """Writes the scalars of one step, a value for each name.

        If the names are the same object as in the last call, its event is filled anew, which takes
        a third of the time.
        """
        if names is not self._names:
            summary = Summary(value=[Summary.Value(tag=name) for name in names])
            self._names, self._event = names, Event(summary=summary)
            self._scalars = list(self._event.summary.value)
        self._event.wall_time, self._event.step = time.time(), step
        for scalar, value in zip(self._scalars, values, strict=True):
            scalar.simple_value = value
        self._writer.write_event(self._event)
        if time.monotonic() - self._flushed > _SECONDS_BETWEEN_FLUSHES:
            self.flush()

    def write_layout(self, charts: Mapping[str, str]) -> None:
        """Writes which scalars have a chart in common, by its title: those that a pattern fits."""
        layout = {"Tasks": {title: ["Multiline", [pattern]] for title, pattern in charts.items()}}
        self._writer.write_event(Event(summary=custom_scalars(layout), wall_time=time.time()))

    def flush(self) -> None:
        """Waits until all is on disk."""
        self._writer.flush()
        self._flushed = time.monotonic()

    def __exit__(self, *error: object) -> None:
        """Closes the file."""
        self._writer.close()

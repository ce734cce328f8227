"""What we change in Orbax: errors are reported once, and a failed read ends in good order."""

import asyncio
import contextlib
import logging
import pathlib
from collections.abc import Iterator
from typing import Any

import orbax.checkpoint as ocp


class Manager(ocp.CheckpointManager):
    """Orbax's, which leaves the question of preemption to us."""

    def reached_preemption(self, step: int) -> bool:
        """Says no: :mod:`ldro_jax.runtime.preemption` asks jax, and numbers its questions."""
        return False


@contextlib.contextmanager
def reads_come_to_an_end() -> Iterator[None]:
    """Has Orbax finish what it began to read, where one of many reads fails.

    Otherwise it closes its event loop while the others go on. When they reach the closed loop,
    Python reports an error at any later time, or the process crashes.
    """
    make_loop = asyncio.new_event_loop

    def make_patient_loop() -> asyncio.AbstractEventLoop:
        loop: Any = make_loop()
        close = loop.close

        def finish_and_close():
            if not loop.is_closed() and (pending := asyncio.all_tasks(loop)):
                done, _ = loop.run_until_complete(asyncio.wait(pending, timeout=60))
                for task in done:
                    # Otherwise asyncio would report errors that nobody has looked at.
                    _ = task.cancelled() or task.exception()
            close()

        loop.close = finish_and_close
        return loop

    asyncio.new_event_loop = make_patient_loop
    try:
        yield
    finally:
        asyncio.new_event_loop = make_loop


def _is_news(record: logging.LogRecord) -> bool:
    is_of_orbax = "orbax" in pathlib.Path(record.pathname).parts
    return not is_of_orbax and "tensorstore_spec" not in record.getMessage()


# What goes wrong in Orbax's threads and reads is raised as well, and said here in a line.
for _name in ("absl", "asyncio"):
    logging.getLogger(_name).addFilter(_is_news)

"""Saving before a machine goes away: SIGTERM asks a run to stop at the end of a step."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils


class PreemptedError(RuntimeError):
    """A run was asked to stop, and has saved its state."""


@contextlib.contextmanager
def watch() -> Iterator[Callable[[int], bool]]:
    """Notices SIGTERM while a run is trained.

    Yields:
      A function of the number of steps taken that says whether to save and stop after this one,
      and from then on says yes. With several processes all of them do so from the same step.
    """
    if jax.process_count() > 1:
        # jax's own handler of SIGTERM tells the other processes. It says yes at one step alone.
        reached = False

        def is_reached(step: int) -> bool:
            nonlocal reached
            reached = reached or multihost_utils.reached_preemption_sync_point(step)
            return reached

        yield is_reached
        return
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield lambda step: False
        return
    earlier = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        yield lambda step: asked.is_set()
    finally:
        signal.signal(signal.SIGTERM, earlier)

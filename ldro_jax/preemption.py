"""Saving before a machine goes away: SIGTERM asks a run to stop at the end of a step."""

import contextlib
import itertools
import signal
import threading
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils

# The same in all processes, which ask equally often.
_questions = itertools.count(1)


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
        # jax's own handler of SIGTERM tells the other processes. They agree on the next number that
        # none of them has asked about, and jax says yes to that alone. Steps don't serve, as they
        # begin anew with every run.
        reached = False

        def is_reached(step: int) -> bool:
            del step
            nonlocal reached
            reached = reached or multihost_utils.reached_preemption_sync_point(next(_questions))
            return reached

        yield is_reached
        return
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield lambda step: False
        return

    def ask(number, frame):
        # Who asks twice doesn't want to wait.
        if asked.is_set() and callable(earlier):
            earlier(number, frame)
        asked.set()

    earlier = signal.signal(signal.SIGTERM, ask)
    try:
        yield lambda step: asked.is_set()
    finally:
        signal.signal(signal.SIGTERM, earlier)

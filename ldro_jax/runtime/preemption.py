"""Saving before a machine goes away: SIGTERM and SIGHUP ask a run to stop at the end of a step."""

import contextlib
import itertools
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

# Schedulers kill half a minute after they have asked, and the state must be saved by then.
SECONDS = 10.0
# The same in all processes, which ask equally often.
_questions = itertools.count(1)
_SIGNALS = [signal.SIGTERM] + ([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])


class PreemptedError(RuntimeError):
    """A run was asked to stop by SIGTERM or SIGHUP, and has saved its state.

    The same call goes on from there. A program that lets it through ends with a traceback and exit
    status 1; ``sys.exit(error.exit_status)`` ends it as the signal would have.

    Attributes:
      exit_status: what a shell reports of a process that the signal ended, 143 or 129.
    """

    def __init__(self, message: str, number: int = signal.SIGTERM) -> None:
        super().__init__(message)
        self.exit_status: int = 128 + number


class Watch:
    """Says whether a run has been asked to stop; see :func:`watch`."""

    number: int | None = None

    def __call__(self, step: int) -> bool:
        """Whether to save and stop after so many steps; from the first yes on always yes."""
        del step
        return self.number is not None

    def error(self, message: str) -> PreemptedError:
        """The error to raise when the state is saved."""
        return PreemptedError(message, self.number or signal.SIGTERM)


class _SharedWatch(Watch):
    """All processes say yes from the same question on.

    jax's own handler of SIGTERM tells the other processes. They agree on the next number that none
    of them has asked about, and jax says yes to that number alone. Questions are numbered and not
    steps, which begin anew with every run.
    """

    def __call__(self, step: int) -> bool:
        if self.number is None and multihost_utils.reached_preemption_sync_point(next(_questions)):
            self.number = signal.SIGTERM
        return super().__call__(step)


@contextlib.contextmanager
def watch() -> Iterator[Watch]:
    """Notices SIGTERM and SIGHUP while a run is trained; one more ends the process.

    A signal that is ignored stays so, such as SIGHUP under ``nohup``. Outside the main thread
    Python handles no signals, and nothing is noticed.

    Yields:
      A function of the number of steps taken that says whether to save and stop after this one.
      With several processes all of them do so from the same step.
    """
    several = jax.process_count() > 1
    watching = _SharedWatch() if several else Watch()
    if threading.current_thread() is not threading.main_thread():
        yield watching
        return
    earlier: dict[int, Any] = {}
    asked = 0.0

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if several:  # jax heeds SIGTERM alone, and tells the others
            os.kill(os.getpid(), signal.SIGTERM)
        elif watching.number is None:
            watching.number, asked = number, time.monotonic()
        elif time.monotonic() - asked < 1:
            pass  # Some send it to the process and to its group, or SIGHUP after SIGTERM.
        elif callable(handler := earlier[number]):
            handler(number, frame)
        else:
            # Who asks twice doesn't want to wait.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    try:
        for number in _SIGNALS:
            handler = signal.getsignal(number)
            is_ours = not (several and number == signal.SIGTERM)
            # The handler of a library in C is None, and couldn't be put back.
            if is_ours and handler not in (signal.SIG_IGN, None):
                earlier[number] = signal.signal(number, ask)
        yield watching
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def wait(arrays: Any) -> None:
    """Waits for a pytree of arrays that are being computed, while signals are heeded.

    ``jax.block_until_ready`` itself keeps Python from calling their handlers.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or all(array.is_ready() for array in jax.tree.leaves(arrays)):
        jax.block_until_ready(arrays)
        return
    ready = threading.Event()

    def look():
        # What went wrong is raised again where the arrays are used.
        with contextlib.suppress(Exception):
            jax.block_until_ready(arrays)
        ready.set()

    threading.Thread(target=look, daemon=True).start()
    # A signal that another thread gets doesn't wake this one.
    while not ready.wait(0.5):
        pass
    jax.block_until_ready(arrays)

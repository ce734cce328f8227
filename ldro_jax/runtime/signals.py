"""Ctrl-C, SIGTERM and SIGHUP from the first line of a program on; imports nothing that takes time.

Python would raise an exception wherever the program is: inside an import, which may swallow it, or
in a callback of a C++ library, which may crash. What an experiment writes is whole at any time, so
the program can end at once. :mod:`ldro_jax.runtime.preemption` handles SIGTERM and SIGHUP while
there is something to save.
"""

import contextlib
import os
import signal
import sys
from types import FrameType

_WORDS = {signal.SIGINT: "Interrupted.", signal.SIGTERM: "Terminated."}
if hasattr(signal, "SIGHUP"):
    _WORDS[signal.SIGHUP] = "Hung up."
# What a signal's line says besides.
advice = ""


def end_at_once() -> None:
    """Makes the signals end the process, with one line and the exit status that a shell expects.

    For the main thread of a program; the library never calls it on import.
    """
    for number in _WORDS:
        # nohup has SIGHUP ignored, and a shell has Ctrl-C ignored in the background.
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _end)


def _end(number: int, frame: FrameType | None) -> None:
    del frame
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    # sys.stderr may be in the middle of a line of its own.
    with contextlib.suppress(OSError):
        os.write(2, f"\n{_WORDS[signal.Signals(number)]} {advice}".rstrip().encode() + b"\n")
    os._exit(128 + number)

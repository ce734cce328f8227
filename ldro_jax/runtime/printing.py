"""Printing that never fails a program; imports nothing that takes time.

A pipe that is closed (``| head -1``), a full disk, an encoding that lacks a letter, or no stream at
all must not cost what was computed.
"""

import contextlib
import os
import sys
from typing import Any


def say(text: str, *, error: bool = False) -> None:
    """Prints a text to ``sys.stdout``, or ``sys.stderr`` for an error, where that is possible."""
    stream = sys.stderr if error else sys.stdout
    if stream is None:
        return
    try:
        try:
            print(text, file=stream, flush=True)
        except UnicodeEncodeError:
            encoding = getattr(stream, "encoding", None) or "ascii"
            plain = text.encode(encoding, "backslashreplace").decode(encoding)
            print(plain, file=stream, flush=True)
    except (OSError, ValueError):  # ValueError for one that is closed
        _silence(stream)


def is_terminal() -> bool:
    """Whether a person looks on, to whom progress is shown."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return sys.stderr.isatty()
    return False


def open_all() -> None:
    """Opens the standard streams that are closed; for the first lines of a program.

    Otherwise another file would get the number 2, and what libraries print as errors.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def _silence(stream: Any) -> None:
    """Sends the rest of a broken stream nowhere: Python's last flush would fail the program."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)

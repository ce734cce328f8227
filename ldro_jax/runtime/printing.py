"""What is said on the way, as far as somebody listens; imports nothing that takes time.

A pipe that is closed (``| head -1``), a full disk, an encoding without a letter, or no stream at
all must not cost what was computed.
"""

import contextlib
import os
import sys
from typing import Any


def say(text: str, *, error: bool = False) -> None:
    """Prints a text where that is possible.

    Args:
      text: to print, with a line break after it.
      error: whether it goes to ``sys.stderr``.
    """
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
    """Whether progress is shown: it is for a person who looks on."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return sys.stderr.isatty()
    return False


def open_all() -> None:
    """Opens the standard streams that are closed, so that no other file gets their numbers.

    For the first lines of a program: what libraries print to "2" would go to that file.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def _silence(stream: Any) -> None:
    """Has the rest of a broken stream vanish, or Python's last flush would fail the program."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)

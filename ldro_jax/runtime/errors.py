"""Errors of other libraries and of users' functions, in a line."""

import contextlib
import os
import re
import traceback
from collections.abc import Iterator

# TensorStore adds all of its settings, and TensorFlow names the operation before and after.
_NOISE = re.compile(r" \[tensorstore_spec.*|\{\{.*?\}\}|\[Op:.*")


def first_line(error: Exception | str) -> str:
    """The first line of an error's message, at most 300 characters, or its type if it has none."""
    message = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    line = next(iter(_NOISE.sub("", message).strip().splitlines()), "")
    return line[:300] or type(error).__name__


_PACKAGE = os.path.dirname(os.path.dirname(__file__)) + os.sep
# What JAX raises where a function needs numbers and is traced without them.
_TRACED = ("Tracer", "Concretization", "NonConcrete")


def reason(error: Exception) -> str:
    """An error in a line: its message, after its type unless this library raised it in one line."""
    name = type(error).__name__
    if name.startswith(_TRACED):
        return (
            f"{name}: JAX traces it, so it must compute with jax.numpy alone, not with NumPy, "
            "scikit-learn or float(), and with jnp.where in place of if"
        )
    line = first_line(error)
    if isinstance(error, (TypeError, ValueError)) and _is_ours(error):
        return line
    return name if line == name else f"{name}: {line}"


@contextlib.contextmanager
def of(function: str) -> Iterator[None]:
    """Makes of any error of the user's function a ``ValueError`` of one line that names it.

    A ``ValueError`` of this library, which says all, comes as it is.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, ValueError) and _is_ours(error):
            raise
        raise ValueError(f"{function} fails: {reason(error).rstrip('.')}.") from error


def _is_ours(error: Exception) -> bool:
    """Whether an error was raised by this library, in one line."""
    *_, last = traceback.walk_tb(error.__traceback__)
    is_here = last[0].f_code.co_filename.startswith(_PACKAGE)
    return is_here and "\n" not in str(error)

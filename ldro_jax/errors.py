"""What the errors of other libraries say, in short."""

import re

# TensorStore adds all of its settings, and TensorFlow names the operation before and after.
_NOISE = re.compile(r" \[tensorstore_spec.*|\{\{.*?\}\}|\[Op:.*")


def first_line(error: Exception | str) -> str:
    """What an error says, in short.

    Args:
      error: any.

    Returns:
      The first line of its message, at most 300 characters, or its type if it has none.
    """
    message = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    line = next(iter(_NOISE.sub("", message).strip().splitlines()), "")
    return line[:300] or type(error).__name__

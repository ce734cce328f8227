"""Checks of arguments: one line that says what was expected and what was found instead.

``name`` is how the user knows the argument, and ``value`` what was given for it. Each line begins
with the name.
"""

import functools
import inspect
import numbers
import re
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import numpy as np

# JAX takes more than 32 bits of a seed as another seed.
_MAX_SEED = 2**32 - 1


def called(function: Any) -> str:
    """How an error calls a function, or an object that is called like one.

    Args:
      function: any, such as a ``functools.partial``, which has no name of its own.

    Returns:
      A name.
    """
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__name__", type(function).__name__)


def shown(value: Any) -> str:
    """How an error shows a value.

    Args:
      value: any.

    Returns:
      At most about a line, without places in memory.
    """
    if inspect.isroutine(value) or inspect.isclass(value):
        return f"the {'class' if inspect.isclass(value) else 'function'} {called(value)}"
    text = printed(value)
    return text if len(text) <= 100 else f"{text[:100]}…"


def printed(value: Any) -> str:
    """A value on one line, without places in memory.

    Args:
      value: any.

    Returns:
      Its ``repr``, the same in every process.
    """
    return re.sub(r" at 0x[0-9a-f]+", "", " ".join(repr(value).split()))


def require(holds: Any, name: str, expected: str, value: Any) -> None:
    """Raises ``ValueError`` unless a condition holds.

    Args:
      holds: the condition.
      expected: what it must be, as in "a positive integer".

    Raises:
      ValueError: if it doesn't hold.
    """
    if not holds:
        raise ValueError(f"{name} must be {expected}, but it is {shown(value)}.")


def integer(name: str, value: Any, *, low: int = 1, high: int | None = None) -> int:
    """Checks an integer, Python's or NumPy's.

    Args:
      low: smallest value allowed.
      high: largest value allowed; any if not given.

    Returns:
      A Python integer.

    Raises:
      ValueError: if it is something else, or out of range.
    """
    if high is not None:
        expected = f"an integer from {low} to {high}"
    else:
        expected = "a positive integer" if low == 1 else f"an integer of at least {low}"
    found = None
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        found = int(value)
    fits = found is not None and found >= low and (high is None or found <= high)
    require(fits, name, expected, value)
    return int(value)


def integers(name: str, values: Any) -> None:
    """Raises ``ValueError`` unless the values are a list of positive integers."""
    is_list = isinstance(values, (list, tuple))
    require(is_list, name, "a list of positive integers, such as (32, 16)", values)
    for value in values:
        integer(name, value)


def number(name: str, value: Any, interval: str = "(-inf, inf)") -> None:
    """Checks a real number, Python's or NumPy's.

    Args:
      interval: where it must lie, such as ``"[0, 1)"``, which has 0 and not 1.

    Raises:
      ValueError: if it is something else, or lies elsewhere.
    """
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    found: Any = value if is_number else float("nan")
    low, high = (float(end) for end in interval[1:-1].split(","))
    inside = (low <= found if interval[0] == "[" else low < found) and (
        found <= high if interval[-1] == "]" else found < high
    )
    require(inside, name, f"a number in {interval}", value)


def seed(name: str, value: Any) -> int:
    """Checks a seed of JAX's and NumPy's random numbers.

    Returns:
      A Python integer.

    Raises:
      ValueError: if it isn't an integer of 32 bits.
    """
    return integer(name, value, low=0, high=_MAX_SEED)


def seeds(name: str, values: Any) -> list[int]:
    """Checks the seeds of several runs.

    Returns:
      Python integers.

    Raises:
      ValueError: if they aren't a sequence of seeds, each once.
    """
    sequence(name, values, "seeds, such as (0, 1, 2)")
    found = [seed(name, value) for value in values]
    require(len(set(found)) == len(found), name, "seeds that are all different", values)
    return found


def flag(name: str, value: Any) -> None:
    """Raises ``ValueError`` unless the value is ``True`` or ``False``."""
    require(isinstance(value, (bool, np.bool_)), name, "True or False", value)


def text(name: str, value: Any) -> None:
    """Raises ``ValueError`` unless the value is a text that isn't empty."""
    require(isinstance(value, str) and value.strip(), name, "a text in quotes", value)


def one_of(name: str, value: Any, known: Collection[str]) -> None:
    """Raises ``ValueError`` unless the value is one of some names.

    Args:
      known: the names.
    """
    expected = f"one of {', '.join(map(repr, known))}"
    require(isinstance(value, str) and value in known, name, expected, value)


def sequence(name: str, value: Any, of: str) -> None:
    """Raises ``ValueError`` unless the value is a list or a tuple that isn't empty.

    Args:
      of: what it holds, such as "numbers, such as (0, 1)".
    """
    is_sequence = isinstance(value, Sequence) and not isinstance(value, (str, bytes))
    require(is_sequence and len(value), name, f"a list of {of}", value)


def names(name: str, values: Any, example: str) -> None:
    """Raises ``ValueError`` unless the values are a list of names, each once.

    Args:
      example: of such names, as a gin file has them.
    """
    sequence(name, values, f"names, such as {example}")
    for value in values:
        text(name, value)
    require(len(set(values)) == len(values), name, "a list of names that all differ", values)


def instance(name: str, value: Any, kind: type, example: str) -> None:
    """Raises ``ValueError`` unless the value is of a class.

    Args:
      kind: the class.
      example: of such a value, as a gin file has it.
    """
    article = "an" if kind.__name__[0] in "AEIOU" else "a"
    expected = f"{article} {kind.__name__}, such as {example}"
    require(isinstance(value, kind), name, expected, value)


def function(name: str, value: Any, *arguments: str, example: str) -> Callable[..., Any]:
    """Checks a function by what it can be called with.

    Args:
      *arguments: names of keyword arguments that it must take.
      example: of such a function, as a gin file has it.

    Returns:
      The function.

    Raises:
      ValueError: if it can't be called, or not with these.
    """
    fits = callable(value)
    if fits and arguments:
        try:
            # A metaclass, such as gin's, may hide what the class itself takes.
            made = value.__init__ if inspect.isclass(value) else value
            parameters = inspect.signature(made).parameters
        except (TypeError, ValueError):  # of what isn't written in Python
            parameters = dict.fromkeys(arguments)
        any_keyword = any(p is not None and p.kind == p.VAR_KEYWORD for p in parameters.values())
        fits = any_keyword or all(argument in parameters for argument in arguments)
    takes = f" of {', '.join(arguments)}" if arguments else ""
    require(fits, name, f"a function{takes}, such as {example}", value)
    return value


def on_device(name: str, part: str, array: Any) -> None:
    """Raises ``ValueError`` unless JAX holds an array as it is.

    JAX has no masks, and without its 64-bit mode an integer that 32 bits can't hold becomes another
    one, and a number that float32 can't hold becomes infinite.

    Args:
      name: of what the array is in.
      part: what it is of that, in the plural, such as "inputs".
      array: NumPy's; any other passes.
    """
    if np.ma.is_masked(array):
        raise ValueError(
            f"{name} must have {part} without masked ones, since JAX has no masks, but "
            f"{np.ma.count_masked(array)} are masked. Leave these out, or put numbers in their "
            "place with filled(), and tell the loss which they are."
        )
    is_wide = isinstance(array, np.ndarray) and array.dtype.kind in "iuf" and array.itemsize == 8
    held = jax.dtypes.canonicalize_dtype(array.dtype) if is_wide else None
    if held is None or held == array.dtype or not array.size:
        return
    if held.kind == "f":
        with np.errstate(over="ignore"):
            lost = np.isfinite(array) & ~np.isfinite(array.astype(held))
    else:
        lost = (array < np.iinfo(held).min) | (array > np.iinfo(held).max)
    if lost.any():
        raise ValueError(
            f"{name} must have {part} that {held} can hold, which JAX makes of {array.dtype}, but "
            f"one is {array[lost][0]}. Make them smaller (number what they name from 0), or switch "
            "JAX's 64-bit mode on: jax.config.update('jax_enable_x64', True)."
        )

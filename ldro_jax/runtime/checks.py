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
    """How an error calls a function, or a ``functools.partial`` or an object used like one."""
    while isinstance(function, functools.partial):
        function = function.func
    return getattr(function, "__name__", type(function).__name__)


def shown(value: Any) -> str:
    """How an error shows a value: at most about a line, without places in memory."""
    if inspect.isroutine(value) or inspect.isclass(value):
        return f"the {'class' if inspect.isclass(value) else 'function'} {called(value)}"
    text = printed(value)
    return text if len(text) <= 100 else f"{text[:100]}…"


def printed(value: Any) -> str:
    """The ``repr`` of a value on one line, without places in memory: the same in every process."""
    return re.sub(r" at 0x[0-9a-f]+", "", " ".join(repr(value).split()))


def require(holds: Any, name: str, expected: str, value: Any) -> None:
    """Raises ``ValueError`` unless a condition holds.

    Args:
      holds: the condition.
      expected: what the value must be, such as "a positive integer".
    """
    if not holds:
        raise ValueError(f"{name} must be {expected}, but it is {shown(value)}.")


def integer(name: str, value: Any, *, low: int = 1, high: int | None = None) -> int:
    """Python's integer for one of Python or NumPy from ``low`` to ``high``; else ``ValueError``."""
    if high is not None:
        expected = f"an integer from {low} to {high}"
    else:
        expected = "a positive integer" if low == 1 else f"an integer of at least {low}"
    is_integer = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    fits = is_integer and low <= int(value) and (high is None or int(value) <= high)
    require(fits, name, expected, value)
    return int(value)


def integers(name: str, values: Any) -> None:
    """Raises ``ValueError`` unless the values are a list of positive integers."""
    is_list = isinstance(values, (list, tuple))
    require(is_list, name, "a list of positive integers, such as (32, 16)", values)
    for value in values:
        integer(name, value)


def number(name: str, value: Any, interval: str = "(-inf, inf)") -> None:
    """Raises ``ValueError`` unless a value is a real number, Python's or NumPy's, in an interval.

    Args:
      interval: such as ``"[0, 1)"``, which has 0 and not 1.
    """
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    real: Any = value if is_number else float("nan")
    low, high = (float(end) for end in interval[1:-1].split(","))
    inside = (low <= real if interval[0] == "[" else low < real) and (
        real <= high if interval[-1] == "]" else real < high
    )
    require(inside, name, f"a number in {interval}", value)


def seed(name: str, value: Any) -> int:
    """Python's integer for a seed of JAX and NumPy; ``ValueError`` for more than 32 bits."""
    return integer(name, value, low=0, high=_MAX_SEED)


def seeds(name: str, values: Any) -> list[int]:
    """Python's integers for the seeds of several runs; ``ValueError`` unless each is there once."""
    sequence(name, values, "seeds, such as (0, 1, 2)")
    checked = [seed(name, value) for value in values]
    require(len(set(checked)) == len(checked), name, "seeds that are all different", values)
    return checked


def flag(name: str, value: Any) -> None:
    """Raises ``ValueError`` unless the value is ``True`` or ``False``."""
    require(isinstance(value, (bool, np.bool_)), name, "True or False", value)


def text(name: str, value: Any) -> None:
    """Raises ``ValueError`` unless the value is a text that isn't empty."""
    require(isinstance(value, str) and value.strip(), name, "a text in quotes", value)


def one_of(name: str, value: Any, known: Collection[str]) -> None:
    """Raises ``ValueError`` unless the value is one of the known names."""
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
    """The function, if it can be called with keyword arguments of these names; else ``ValueError``.

    Args:
      *arguments: the names.
      example: of such a function, as a gin file has it.
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
    """Raises ``ValueError`` unless JAX holds an array of NumPy as it is.

    JAX has no masks, and without its 64-bit mode an integer that 32 bits can't hold becomes another
    one, and a number that float32 can't hold becomes infinite.

    Args:
      part: what the array is of the thing with this name, in the plural, such as "inputs".
      array: any that isn't NumPy's passes.
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

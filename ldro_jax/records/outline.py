"""What functions and objects are made of, a line each, so that an error can name what has changed.

A learning rate is in the closure of an optimizer's ``update``, and the width of a layer in the
fields of a module. Whether two programs are the same doesn't depend on these lines, but on digests
(:mod:`ldro_jax.records.traced`).
"""

import dataclasses
import functools
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from ldro_jax.runtime import checks

_DEPTH, _LINES = 12, 200


def lines(name: str, value: Any) -> list[str]:
    """The numbers, texts and names of functions in a value of that name, at most 200 lines.

    Functions and objects with fields are looked into, which gives lines such as
    ``optimizer.update.update_fns[1].step_size = -0.1``.
    """
    walk = _walk(name, value, 0, set())
    return [line for line, _ in zip(walk, range(_LINES), strict=False)]


def _walk(name: str, value: Any, depth: int, seen: set[int]) -> Iterator[str]:
    if isinstance(value, (bool, int, float, complex, str, type(None), np.generic)):
        yield f"{name} = {checks.shown(value)}"
    elif isinstance(value, (np.ndarray, jax.Array)):
        yield f"{name} = {value.dtype}{list(value.shape)}"
    elif depth < _DEPTH:
        called, parts = _parts(value)
        if called:
            yield f"{name} = {called}"
        if id(value) in seen:
            return
        seen.add(id(value))
        for part, inner in parts.items():
            yield from _walk(f"{name}{part}", inner, depth + 1, seen)


def _parts(value: Any) -> tuple[str, dict[str, Any]]:
    """What a value is called, if that says something, and what it is made of."""
    if isinstance(value, functools.partial):
        _, inner = _parts(value.func)
        bound = {f"[{i}]": x for i, x in enumerate(value.args)}
        named = {f".{k}": x for k, x in value.keywords.items()}
        return checks.shown(value.func), {**inner, **bound, **named}
    if isinstance(value, tuple) and (fields := getattr(value, "_fields", ())):
        return "", {f".{k}": x for k, x in zip(fields, value, strict=True)}
    if isinstance(value, (list, tuple)):
        return "", {f"[{i}]": x for i, x in enumerate(value)}
    if isinstance(value, Mapping):
        return "", {f"[{k!r}]": x for k, x in value.items()}
    function = inspect.unwrap(value) if callable(value) else value
    if inspect.isfunction(function):
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        return f"the function {function.__qualname__}", {f".{k}": _held(c) for k, c in cells}
    if inspect.isclass(value) or inspect.isroutine(value):
        return checks.shown(value), {}
    if dataclasses.is_dataclass(value):
        fields = [field.name for field in dataclasses.fields(value)]
        return type(value).__name__, {f".{k}": getattr(value, k, None) for k in fields}
    return type(value).__name__, {f".{k}": x for k, x in getattr(value, "__dict__", {}).items()}


def _held(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # of a function that is still being defined
        return None

"""What JSON can hold of a value."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

_DIGITS = 6


def plain(value: Any) -> Any:
    """A value in the types that JSON has.

    Floats have six digits, one that is not finite is None, and anything but numbers, arrays,
    mappings, lists and dataclasses is a text. Fields of a dataclass that tell nothing apart
    (``compare=False``) are left out.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
    if dataclasses.is_dataclass(value):
        fields = (f.name for f in dataclasses.fields(value) if f.compare)
        return {name: plain(getattr(value, name)) for name in fields}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "__array__"):
        array = np.asarray(value)
        # Half-precision types of JAX are unknown to NumPy's own conversions.
        array = array if array.dtype.kind in "biu" else array.astype(np.float64)
        return plain(array.tolist())
    return str(value)

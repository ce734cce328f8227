"""Arrays as a text that JSON can hold: NumPy's own compressed file, in base64."""

import base64
import binascii
import io
import pathlib
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from ldro_jax.runtime import paths


def to_text(arrays: Mapping[str, np.ndarray]) -> str:
    """Writes arrays by name; the text is the same for the same arrays.

    Floats are stored in 32 bits, which is seven digits, and all that those have which were computed
    on a device; in 64 if they are too large or small for that.
    """
    file = io.BytesIO()
    stored: dict[str, Any] = {name: _narrowed(array) for name, array in arrays.items()}
    np.savez_compressed(file, **stored)
    return base64.b64encode(file.getvalue()).decode("ascii")


def from_text(text: str) -> dict[str, np.ndarray]:
    """Reads the arrays that :func:`to_text` wrote; raises ``ValueError`` for any other text."""
    try:
        file = io.BytesIO(base64.b64decode(text, validate=True))
        with np.load(file, allow_pickle=False) as stored:
            return dict(stored)
    except (binascii.Error, zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise ValueError(f"arrays that can't be read ({error})") from error


def save(arrays: Mapping[str, Any], path: pathlib.Path) -> None:
    """Writes arrays by name as an ``.npz`` file, as they are.

    Types that NumPy doesn't have, such as bfloat16, are stored as float32, which holds their
    numbers.
    """
    file = io.BytesIO()
    stored = {name: np.asarray(array) for name, array in arrays.items()}
    known: dict[str, Any] = {
        name: array.astype(np.float32) if array.dtype.kind == "V" else array
        for name, array in stored.items()
    }
    np.savez(file, **known)
    paths.write(path, file.getvalue())


def _narrowed(array: np.ndarray) -> np.ndarray:
    if array.dtype != np.float64:
        return array
    with np.errstate(over="ignore", under="ignore"):
        narrow = array.astype(np.float32)
    return narrow if np.allclose(narrow, array, rtol=1e-6, atol=0, equal_nan=True) else array

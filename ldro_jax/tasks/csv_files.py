"""Tables in CSV files of a user's directory."""

import os
import pathlib
import zipfile
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from ldro_jax.runtime import errors

# How to have the directory that is made of packages.
PUBLIC = (
    "python scripts/public_data.py --data_dir=DIRECTORY makes it; then pass --data_dir=DIRECTORY."
)


def read(
    data_dir: str | os.PathLike[str] | None, name: str, columns: Sequence[str], *, how: str = PUBLIC
) -> Any:
    """A file as a ``pandas.DataFrame`` that has these columns; it may be compressed.

    Args:
      data_dir: where it lies.
      name: of the file in the directory.
      columns: it must have, besides others.
      how: to have such a file, the end of every error.

    Raises:
      FileNotFoundError: if the file isn't there.
      ValueError: if it can't be read, or lacks a column.
    """
    if data_dir is None:
        raise FileNotFoundError(f"--data_dir must name the directory that holds {name}. {how}")
    path = pathlib.Path(data_dir).expanduser() / name
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}. {how}")
    import pandas as pd

    try:
        table = pd.read_csv(path, low_memory=False)
    except (ValueError, OSError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} can't be read ({errors.first_line(error)}). {how}") from error
    if lacking := [column for column in columns if column not in table]:
        raise ValueError(
            f"{path} must have the columns {', '.join(columns)}, but it lacks "
            f"{', '.join(lacking)}. {how}"
        )
    return table


def numbers(table: Any, columns: Sequence[str], *, how: str = PUBLIC) -> np.ndarray:
    """Columns as float32 ``[row, column]``.

    Raises:
      ValueError: if one holds something else than finite numbers.
    """
    try:
        values = table[list(columns)].to_numpy(np.float32)
    except ValueError as error:
        raise ValueError(f"{', '.join(columns)} must be numbers ({error}). {how}") from error
    if not np.isfinite(values).all():
        raise ValueError(f"{', '.join(columns)} must be finite numbers, but some aren't. {how}")
    return values

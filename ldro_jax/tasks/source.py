"""Where training rows come from."""

import abc
import pathlib
import types
from collections.abc import Mapping
from typing import Any

import numpy as np


class Source(abc.ABC):
    """Where the training rows of one run come from.

    Attributes:
      identity: what tells this source from others, in plain JSON types. A run that is resumed with
        another one is refused.
      has_state: whether the rows depend on more than their numbers, as those of a stream do. Its
        state is then saved beside each checkpoint, with checksums of its files, and ``save`` and
        ``restore`` are tried once before a run begins.
    """

    identity: Mapping[str, Any] = types.MappingProxyType({})
    has_state: bool = False

    @abc.abstractmethod
    def rows(self, tasks: np.ndarray, indices: np.ndarray) -> Any:
        """Rows to train on.

        Args:
          tasks: the task of each row, int32 ``[R]``.
          indices: its number: how many rows of that task the run draws before it, int64 ``[R]``.
            A row may be asked for more than once, to measure the interaction on it and to train.

        Returns:
          A pytree of NumPy arrays ``[R, ...]``, each time with the same keys, shapes and dtypes.
        """

    def save(self, directory: pathlib.Path) -> None:
        """Writes the state into an empty directory, so that another source can go on from there."""
        raise NotImplementedError(f"{type(self).__name__} has no state.")

    def restore(self, directory: pathlib.Path) -> None:
        """Goes on from the state that :meth:`save` wrote into a directory.

        An error ends the run if the files are as they were written; the checkpoints stay.
        """
        raise NotImplementedError(f"{type(self).__name__} has no state.")

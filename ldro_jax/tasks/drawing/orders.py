"""The order of the rows of each task in each epoch, as a function of a seed."""

from collections.abc import Sequence

import numpy as np


class Orders:
    """Every row of a task once in an epoch, in an order of its own each epoch.

    Args:
      counts: rows of each task, ``[N]``.
      seed: of the orders.
      remainders: how much further the rows of each task can begin, ``[N]``; not at all if not
        given.
    """

    def __init__(
        self,
        counts: Sequence[int] | np.ndarray,
        seed: int,
        remainders: Sequence[int] | np.ndarray | None = None,
    ):
        self._counts, self._seed = counts, seed
        self._remainders = [0] * len(counts) if remainders is None else remainders
        self._known: dict[int, tuple[int, int, np.ndarray]] = {}

    def __call__(self, task: int, index: int) -> tuple[int, int]:
        """Looks up the row before which ``index`` rows of its task come, in all epochs.

        Returns:
          Where the rows of its epoch begin, from 0 to the remainder, and which of them it is.
        """
        epoch, position = divmod(index, int(self._counts[task]))
        known = self._known.get(task)  # the last epoch asked for, with its offset and order
        if known is None or known[0] != epoch:
            rng = np.random.default_rng([self._seed, task, epoch])
            offset = int(rng.integers(self._remainders[task] + 1))
            order = rng.permutation(np.arange(self._counts[task], dtype=np.uint32))
            known = self._known[task] = (epoch, offset, order)
        return known[1], int(known[2][position])

"""Weights of tasks as the probabilities to draw their rows with."""

from typing import Any

import numpy as np


def probabilities(weights: Any) -> np.ndarray:
    """Scales one number for each task to probabilities, float32 ``[N]``.

    A negative one counts by its size. If they sum to zero or to no number, the probabilities are
    even.
    """
    sizes = np.abs(np.asarray(weights, np.float64))
    total = sizes.sum()
    even = np.full(sizes.shape, 1 / sizes.size)
    # As they are if they sum to one but for rounding, so that they stay the weights to the bit.
    if abs(total - 1) < 1e-5 and np.min(weights) >= 0:
        return np.asarray(weights, np.float32)
    return (sizes / total if 0 < total < np.inf else even).astype(np.float32)


def probabilities_of_weights(weights: Any, seen: Any = True) -> np.ndarray:
    """The probabilities to draw rows with until the weights are looked at again.

    These are the weights, with two exceptions, since a row that is never drawn counts for nothing
    however large the weight of its task becomes meanwhile: no task has less than a hundredth of an
    even share, and one that was in no batch yet, whose weight means nothing, has an even share.

    Args:
      weights: of the last step, ``[N]``, which may sum to any number.
      seen: the tasks that were in some batch so far, bool ``[N]``.

    Returns:
      ``[N]``, float32, which sum to one and are positive.
    """
    shares = probabilities(weights)
    even = np.float32(1 / shares.size)
    raised = np.where(seen, np.maximum(shares, even / 100), even)
    # As they are if none was raised, so that they stay the weights to the bit.
    return shares if np.array_equal(raised, shares) else probabilities(raised)

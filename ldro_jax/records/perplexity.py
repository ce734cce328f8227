"""Perplexity of language models."""

import numpy as np
from numpy.typing import ArrayLike


def perplexity(losses: ArrayLike) -> np.ndarray:
    """Perplexity of each task.

    Args:
      losses: mean cross-entropy of a token, in nats, shape [N].

    Returns:
      Their exponentials, shape [N], float64; infinite where that is too large for a float.

    Example:
      >>> perplexity([0.0, 1000.0]).tolist()
      [1.0, inf]
    """
    with np.errstate(over="ignore"):
        return np.exp(np.asarray(losses, dtype=np.float64))

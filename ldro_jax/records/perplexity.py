"""Perplexity of language models, alone and next to a model of each language alone."""

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


def relative_perplexity(values: ArrayLike, references: ArrayLike) -> np.ndarray:
    """How far each task's perplexity lies above that of a model trained on this task alone.

    Args:
      values: perplexities, shape [N].
      references: those of the models trained on one task each, shape [N]; positive, or NaN where
        there is no such model.

    Returns:
      `100 (values − references) / references`, in per cent, shape [N]: negative where training on
      all tasks helps; NaN without a reference.

    Raises:
      ValueError: if the two don't have one value per task each, or a reference isn't positive.

    Example:
      >>> relative_perplexity([30.0, 15.0], [20.0, 20.0]).tolist()
      [50.0, -25.0]

    References:
      Michel, Ruder and Yogatama, "Balancing Average and Worst-case Accuracy in Multitask Learning",
      2021, table 1.
    """
    values = np.asarray(values, dtype=np.float64)
    references = np.asarray(references, dtype=np.float64)
    if values.ndim != 1 or values.shape != references.shape:
        raise ValueError(
            "Expected one perplexity and one reference for each task; found shapes "
            f"{values.shape} and {references.shape}."
        )
    if np.any(references <= 0):
        worst = int(np.nanargmin(references))
        raise ValueError(
            f"Expected positive references; found {references[worst]:g} for task {worst}."
        )
    return 100 * (values - references) / references

"""Weights that never change: the average loss, the mean over all rows, mixing by data size.

References:
  Conneau et al., *Unsupervised Cross-lingual Representation Learning at Scale*, ACL 2020, for the
  exponent of the data size.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from ldro_jax.runtime import checks
from ldro_jax.weighting import about, base


@about.method(about.FIXED, weights="1/N", scale_free=True)
def average() -> base.Weighting:
    """The average loss: every task weighs ``1 / N``, however many rows it has.

    This is the baseline of a comparison. The mean over all rows is :func:`erm`.
    """
    return base.stateless(
        lambda statistics: jnp.full_like(statistics.losses, 1 / statistics.losses.size)
    )


@about.method(
    about.FIXED,
    weights="∝ size: the mean over all rows",
    usual=lambda numbers: {"sizes": numbers},
    scale_free=True,
)
def erm(sizes: Sequence[float]) -> base.Weighting:
    """Empirical risk minimisation: the mean over all rows, whatever their task.

    A task weighs ``n_i / n``, its share of the rows, so two tasks of 980 and 20 rows weigh 0.98 and
    0.02. With plain random batches every row of a batch counts the same, as in ordinary training.

    Args:
      sizes: number of rows of each task, ``[N]``, or any numbers in the same proportions.

    Raises:
      ValueError: if a size is not positive and finite, or their number isn't that of the tasks.
    """
    return static_mixing(sizes, exponent=1.0)


@about.method(
    about.FIXED,
    weights="∝ size^α",
    paper="Conneau 2020",
    usual=lambda numbers: {"sizes": numbers},
    scale_free=True,
)
def static_mixing(sizes: Sequence[float], *, exponent: float = 0.3) -> base.Weighting:
    r"""Static mixing with temperature, :math:`w_i ∝ |D_i|^α`.

    Args:
      sizes: amount of data of each task, ``[N]``, in any unit.
      exponent: α, the inverse temperature. 0 weighs all tasks the same, 1 by their size.

    Raises:
      ValueError: if a size is not positive and finite, if their number isn't that of the tasks, or
        if the exponent is negative.
    """
    amounts = base.numbers_per_task("sizes", sizes, positive=True)
    checks.number("exponent", exponent, "[0, inf)")
    # In logarithms, since |D|^α overflows float32 for sizes in bytes and α > 1.
    logits = exponent * np.log(amounts)
    weights = np.exp(logits - logits.max())
    return _fixed(weights / weights.sum())


@about.method(
    about.FIXED,
    weights="even, at most n epochs of any",
    paper="Chung 2023",
    usual=lambda numbers: {"sizes": numbers, "epochs": 1.5},
    scale_free=True,
)
def unimax(sizes: Sequence[float], *, budget: float = 1.0, epochs: float = 4.0) -> base.Weighting:
    r"""UniMax: as even as it can be with no task seen more than some epochs.

    Tasks are filled in ascending order of their size: each gets an equal share of what is left of
    the budget, or as many epochs of its own data as are allowed, whichever is less.

    Args:
      sizes: amount of data of each task, ``[N]``, in any unit.
      budget: amount of data to train on, relative to that of all tasks together.
      epochs: how often the data of a task may be seen.

    Raises:
      ValueError: if a number is not positive and finite, or the sizes aren't those of the tasks.

    References:
      Chung, Constant, Garcia, Roberts, Tay, Narang and Firat, *UniMax: Fairer and More Effective
      Language Sampling for Large-Scale Multilingual Pretraining*, ICLR 2023, Algorithm 1.
    """
    amounts = base.numbers_per_task("sizes", sizes, positive=True)
    checks.number("budget", budget, "(0, inf)")
    checks.number("epochs", epochs, "(0, inf)")
    amounts = amounts / amounts.sum()
    taken, left = np.zeros_like(amounts), budget
    for place, task in enumerate(np.argsort(amounts, kind="stable")):
        taken[task] = min(left / (len(amounts) - place), epochs * amounts[task])
        left -= taken[task]
    return _fixed(taken / taken.sum())


def _fixed(weights: np.ndarray) -> base.Weighting:
    def update(statistics):
        base.check_per_task("sizes", weights, statistics.losses.size)
        return jnp.asarray(weights, statistics.losses.dtype)

    return base.stateless(update)

"""How numbers are written in tables and sentences: few digits, one precision a column."""

import math
from collections.abc import Iterable

from ldro_jax.reporting.summary import Difference, Spread

MISSING = "n/a"


def decimals_for(values: Iterable[float]) -> int:
    """Decimals that show three digits of the largest value, and accuracies to a thousandth.

    Args:
      values: the numbers of a column; those that are not finite are ignored.

    Returns:
      The number of decimals, from 0 to 9.
    """
    largest = max((abs(v) for v in values if math.isfinite(v)), default=0.0)
    if largest == 0.0 or 0.1 <= largest < 10.0:
        return 3
    return min(max(2 - math.floor(math.log10(largest)) + (largest >= 10), 0), 9)


def number(value: float | None, decimals: int = 3, *, signed: bool = False) -> str:
    """A number as text, "n/a" if there is none.

    Args:
      value: the number, NaN or None.
      decimals: digits after the point.
      signed: whether to write a plus sign.

    Returns:
      The text; a rounded zero has no sign.
    """
    if value is None or not math.isfinite(value):
        return MISSING
    if round(value, decimals) == 0:
        return f"{0:.{decimals}f}"
    return f"{value:{'+' if signed else ''}.{decimals}f}".replace("-", "−")


def mean_and_std(spread: Spread, decimals: int = 3) -> str:
    """`mean ± std`, or the mean alone if one seed has no spread."""
    text = number(spread.mean, decimals)
    return f"{text} ± {number(spread.std, decimals)}" if math.isfinite(spread.std) else text


def with_interval(difference: Difference, decimals: int = 3) -> str:
    """A signed difference with its 95 % interval, if there is one."""
    text = number(difference.mean, decimals, signed=True)
    if not math.isfinite(difference.half_width):
        return text
    return f"{text} ± {number(difference.half_width, decimals)}"

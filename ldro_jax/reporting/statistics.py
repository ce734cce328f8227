"""Means over seeds, differences between methods seed by seed, and when one counts.

Two methods that ran with the same seeds share their data order and initial parameters, so they are
compared seed by seed. A difference counts as **clear** when there are at least three common seeds
and the 95 % interval of the mean paired difference (Student's t) leaves out zero. The interval
speaks of seeds only, not of other test examples, and isn't corrected for comparing many methods.
"""

import collections
import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from scipy import special

from ldro_jax.reporting.frame import Series

MIN_SEEDS = 3
MISSING = "n/a"
_VERDICTS = {
    "better": "clearly better",
    "worse": "clearly worse",
    "not separated": "not separated",
    MISSING: "cannot be compared",
}


@dataclasses.dataclass(frozen=True)
class Spread:
    """A mean over `n` seeds and their sample standard deviation (NaN for fewer than two)."""

    mean: float
    std: float
    n: int


@dataclasses.dataclass(frozen=True)
class Difference:
    """A mean over `n` seeds with half the width of its 95 % interval (NaN for fewer than two)."""

    mean: float
    half_width: float
    n: int

    @property
    def clear(self) -> bool:
        """Whether the seeds tell it from zero: three or more, and zero is outside the interval."""
        return self.n >= MIN_SEEDS and abs(self.mean) > self.half_width

    def verdict(self, higher_is_better: bool) -> str:
        """What it says of two methods: "better", "worse", "not separated" or "n/a"."""
        if not math.isfinite(self.mean):
            return MISSING
        if not self.clear:
            return "not separated"
        return "better" if (self.mean > 0) == higher_is_better else "worse"


def spread(values: Iterable[float]) -> Spread:
    """Mean and sample standard deviation of one number per seed; NaN if one isn't finite."""
    array = np.asarray(list(values), dtype=np.float64)
    n = len(array)
    if not n or not np.isfinite(array).all():
        return Spread(math.nan, math.nan, n)
    return Spread(float(array.mean()), float(array.std(ddof=1)) if n > 1 else math.nan, n)


def interval(values: Iterable[float]) -> Difference:
    """The mean of one number per seed, with its 95 % interval (Student's t)."""
    sample = spread(values)
    if sample.n < 2:
        return Difference(sample.mean, math.nan, sample.n)
    quantile = float(special.stdtrit(sample.n - 1, 0.975))
    return Difference(sample.mean, quantile * sample.std / math.sqrt(sample.n), sample.n)


def difference(ours: Series, theirs: Series) -> Difference:
    """The mean of "ours minus theirs" over the seeds that both have; both are by seed."""
    common = ours.index[ours.index.isin(theirs.index)]
    return interval(ours[common] - theirs[common])


def sorted_out(differences: Mapping[str, Difference], higher_is_better: bool) -> str:
    """Lists of methods by verdict, such as "clearly better: A, B; not separated: C"."""
    lists = collections.defaultdict(list)
    for method, each in differences.items():
        lists[each.verdict(higher_is_better)].append(method)
    names = {
        key: f"all {len(methods)}" if len(methods) == len(differences) > 3 else ", ".join(methods)
        for key, methods in lists.items()
    }
    return "; ".join(f"{text}: {names[key]}" for key, text in _VERDICTS.items() if key in names)


def best_places(values: Sequence[float], higher_is_better: bool, decimals: int) -> list[int]:
    """Where the best value of a column is, as it is shown; nowhere if only one is finite."""
    values = [round(v, decimals) if math.isfinite(v) else v for v in values]
    finite = [v for v in values if math.isfinite(v)]
    if len(finite) < 2:
        return []
    best = max(finite) if higher_is_better else min(finite)
    return [place for place, value in enumerate(values) if value == best]


def decimals_for(values: Iterable[float]) -> int:
    """Decimals that show three digits of the largest finite value, accuracies to a thousandth."""
    largest = max((abs(v) for v in values if math.isfinite(v)), default=0.0)
    if largest == 0.0 or 0.1 <= largest < 10.0:
        return 3
    return min(max(2 - math.floor(math.log10(largest)) + (largest >= 10), 0), 9)


def number(value: float | None, decimals: int = 3, *, signed: bool = False) -> str:
    """A number as text, "n/a" if there is none; a rounded zero has no sign."""
    if value is None or not math.isfinite(value):
        return MISSING
    if round(value, decimals) == 0:
        return f"{0:.{decimals}f}"
    return f"{value:{'+' if signed else ''}.{decimals}f}".replace("-", "−")


def mean_and_std(value: Spread, decimals: int = 3) -> str:
    """`mean ± std`, or the mean alone if one seed has no spread."""
    text = number(value.mean, decimals)
    return f"{text} ± {number(value.std, decimals)}" if math.isfinite(value.std) else text


def with_interval(value: Difference, decimals: int = 3, *, signed: bool = True) -> str:
    """`mean ± half width`; a dash where fewer than two seeds have no interval."""
    if not math.isfinite(value.mean):
        return MISSING
    half = number(value.half_width, decimals) if value.n > 1 else "–"
    return f"{number(value.mean, decimals, signed=signed)} ± {half}"

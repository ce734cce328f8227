"""The tables of a sweep: hypervolumes of all checkpoints, and what validation would have chosen."""

import math
from collections.abc import Mapping

from ldro_jax.records.results import Results
from ldro_jax.reporting.comparison import verdict
from ldro_jax.reporting.layout import Table, best_rows
from ldro_jax.reporting.numbers import MISSING, decimals_for, mean_and_std, number
from ldro_jax.reporting.summary import (
    Difference,
    mean_interval,
    mean_spread,
    seed_difference,
)
from ldro_jax.reporting.sweeps import (
    RULES,
    baseline_method,
    choose,
    default_reference,
    for_metric,
    frontier_split,
    hypervolumes,
    settings,
)


def hypervolume_table(
    results: Results,
    *,
    metric: str | None = None,
    split: str | None = None,
    baseline: str | None = None,
    per_setting: bool = False,
) -> Table:
    """Every method's hypervolume, and its paired difference to the baseline.

    Args:
      results: the record.
      metric: by default `results.metric`.
      split: by default see `frontier_split`.
      baseline: by default see `default_baseline`.
      per_setting: as in `hypervolumes`. A method with more settings has more checkpoints, and so an
        advantage in the hypervolume of all together, which it hasn't in this one.

    Returns:
      A row per method. ± is half a 95 % interval, a dash where fewer than two seeds have none.
    """
    split = split or frontier_split(for_metric(results, metric))
    base = baseline_method(results, baseline)
    areas = hypervolumes(results, metric=metric, split=split, per_setting=per_setting)
    decimals = 1 + decimals_for(v for found in areas.values() for v in found.values())
    rows = []
    for method, groups in settings(results).items():
        found = mean_interval(list(areas[method].values()))
        started = len({run.seed for group in groups for run in group.runs})
        rows.append(
            [
                method,
                str(len(groups)),
                _with_dash(number(found.mean, decimals), found, decimals),
                *_against(areas[method], areas[base], decimals, True, method == base),
                str(found.n) if found.n == started else f"{found.n} of {started}",
            ]
        )
    header = ["method", "settings", "hypervolume", f"minus {base}", "", "seeds"]
    corner = default_reference(for_metric(results, metric), split)
    title = (
        f"{'one setting, mean over settings' if per_setting else 'all settings together'}: "
        f"hypervolume of {split} {metric or results.metric} over ({corner[0]:.3g}, {corner[1]:.3g})"
    )
    return Table(title, header, rows, _best({2: areas}, True, decimals), (0, 4))


def choice_table(
    results: Results, *, by: str = "worst", metric: str | None = None, baseline: str | None = None
) -> Table:
    """Every method's test values at the checkpoints chosen on validation.

    Args:
      results: the record.
      by: as in `choose`.
      metric: by default `results.metric`.
      baseline: by default see `default_baseline`.

    Returns:
      A row per method: mean ± standard deviation over seeds, and the paired differences.
    """
    chosen = choose(results, by=by, metric=metric)
    results = for_metric(results, metric)
    base = baseline_method(results, baseline)
    values = {
        which: {m: {s: getattr(c, which) for s, c in v.items()} for m, v in chosen.items()}
        for which in ("average", "worst")
    }
    decimals = decimals_for(
        v for m in values.values() for found in m.values() for v in found.values()
    )
    rows = []
    for method in chosen:
        row = [method]
        for which in values:
            ours, theirs = values[which][method], values[which][base]
            row.append(mean_and_std(mean_spread(ours.values()), decimals))
            row += _against(ours, theirs, decimals, results.higher_is_better, method == base)
        rows.append([*row, str(len(chosen[method]))])
    best = _best({1: values["average"], 4: values["worst"]}, results.higher_is_better, decimals)
    minus = f"minus {base}"
    header = ["method", "average", minus, "", "worst task", minus, "", "seeds"]
    title = f"test {results.metric} of the checkpoints best on validation by {RULES[by]}"
    return Table(title, header, rows, best, (0, 3, 6))


def _against(ours, theirs, decimals, higher_is_better, is_baseline) -> list[str]:
    if is_baseline:
        return ["", ""]
    found = seed_difference(ours, theirs)
    text = number(found.mean, decimals, signed=True)
    return [_with_dash(text, found, decimals), verdict(found, higher_is_better)]


def _with_dash(text: str, found: Difference, decimals: int) -> str:
    if not math.isfinite(found.mean):
        return MISSING
    half = number(found.half_width, decimals) if found.n > 1 else "–"
    return f"{text} ± {half}"


def _best(columns: Mapping[int, Mapping[str, Mapping[int, float]]], higher_is_better, decimals):
    """Row and column of the best mean of each column, given values by method and seed."""
    means = {
        j: [mean_spread(v.values()).mean for v in found.values()] for j, found in columns.items()
    }
    return {
        (i, j) for j, column in means.items() for i in best_rows(column, higher_is_better, decimals)
    }

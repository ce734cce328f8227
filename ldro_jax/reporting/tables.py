"""The tables of a report, as texts that a page or a terminal shows."""

import collections
import math
import re
from collections.abc import Sequence

from ldro_jax.records.provenance import machine
from ldro_jax.records.results import summarise_evaluation
from ldro_jax.records.shown import Table
from ldro_jax.reporting import statistics
from ldro_jax.reporting.comparison import Comparison
from ldro_jax.reporting.frame import DataFrame, Setting
from ldro_jax.reporting.statistics import MISSING, Spread, best_places, decimals_for, spread
from ldro_jax.reporting.sweeps import RULES, Frontiers, choices
from ldro_jax.weighting import about

MONOLINGUAL = "Monolingual"
# What settings of a method change about its formula.
_CHANGED = {
    "signal_power": "of ℓ·s, s the share of signal",
    "smoothing": "on running means",
    "floor": "and a part spread evenly",
}


def of_rows(rows: Sequence[Sequence[str]]) -> Table:
    """A table of rows of texts, the first of them the header; columns of numbers stand right."""
    header, *below = rows
    numbers = re.compile(r"([-−+]?[\d,. ]*\d[\d.]*( ± [\d.]+)?( ×)?|[–]|)")
    text = [j for j in range(len(header)) if not all(numbers.fullmatch(row[j]) for row in below)]
    return Table("", header, below, (), text)


def step_seconds(setting: Setting) -> Spread:
    """The time of a training step, over the runs that measured it."""
    times = [run.seconds_per_step for run in setting.runs]
    return spread(t for t in times if t is not None and math.isfinite(t) and t > 0)


def headline(comparison: Comparison) -> Table:
    """Every method's average and worst task, and what its step costs; the best of each marked."""
    values = comparison.values
    averages, worsts = values.spreads("average"), values.spreads("worst")
    seconds = [step_seconds(s) for s in comparison.shown]
    ratios = [s.mean / step_seconds(comparison.baseline).mean for s in seconds]
    milliseconds = [s.mean * 1e3 for s in seconds]
    quality = decimals_for(s.mean for s in [*averages, *worsts])
    fine = decimals_for(milliseconds)
    compared = comparison.delta_p
    gains = [spread(compared.values[s].values()) for s in comparison.shown] if compared else []
    # Finer than a tenth of a per cent says nothing.
    per_cent = min(decimals_for(s.mean for s in gains), 1)
    rows = [
        [
            setting.label,
            statistics.mean_and_std(averages[i], quality),
            statistics.mean_and_std(worsts[i], quality),
            _worst_task(values.overall[setting]),
            *(statistics.mean_and_std(s, per_cent) for s in gains[i : i + 1]),
            statistics.number(ratios[i], 2) + ("×" if math.isfinite(ratios[i]) else ""),
            statistics.number(milliseconds[i], fine),
            _seeds(len(values.overall[setting]), len(setting.runs)),
        ]
        for i, setting in enumerate(comparison.shown)
    ]
    columns = {
        1: best_places([s.mean for s in averages], values.higher_is_better, quality),
        2: best_places([s.mean for s in worsts], values.higher_is_better, quality),
        4 + bool(gains): best_places(ratios, False, 2),
        5 + bool(gains): best_places(milliseconds, False, fine),
    }
    if gains:
        columns[4] = best_places([s.mean for s in gains], True, per_cent)
    delta = ["Δp %"] if gains else []
    header = ["method", "average", "worst task", "which task", *delta, "step time", "ms", "seeds"]
    title = f"{values.split} {values.metric} ({values.better})"
    note = compared.note if compared else ""
    return Table(title, header, rows, _marks(columns), (0, 3), note)


def methods(comparison: Comparison) -> Table | None:
    """What each method is, in a few signs; None if the record has no names of the library's."""
    if all(setting.runs[0].weighting not in about.ABOUT for setting in comparison.shown):
        return None
    rows = []
    for setting in comparison.shown:
        said = about.ABOUT.get(setting.runs[0].weighting)
        changed = [words for name, words in _CHANGED.items() if setting.hyperparameters.get(name)]
        cells = [said.family, said.weights, said.paper] if said else ["–", "–", ""]
        cells[1] += "".join(f"; {words}" for words in changed)
        rows.append([setting.label, *cells])
    return Table("", ["method", "kind", "weights", "paper"], rows, (), range(4)) if rows else None


def paired(comparison: Comparison) -> Table:
    """Every other method's paired difference to the baseline, and whether it is clear."""
    values, rows = comparison.values, [[s.label] for s in comparison.values.others]
    for which in ("worst", "average"):
        decimals = decimals_for(values.overall[values.baseline][which])
        differences = values.differences(which)
        for row in rows:
            ours = differences[row[0]]
            row += [statistics.with_interval(ours, decimals), ours.verdict(values.higher_is_better)]
    pairs = values.differences("average")
    rows = [[*row, str(pairs[row[0]].n)] for row in rows]
    label = values.baseline.label
    header = ["method", f"worst, minus {label}", "", f"average, minus {label}", "", "pairs"]
    return Table("", header, rows, (), (0, 2, 4))


def tasks(comparison: Comparison) -> Table:
    """Tasks by methods, from the baseline's worst task to its best; the best of each marked.

    Where directions differ, an arrow says which way a task is better.
    """
    values = comparison.values
    spreads = [
        [values.task_spread(s, name) for s in comparison.shown] for name in comparison.task_order
    ]
    decimals = [decimals_for(s.mean for row in spreads for s in row)] * len(spreads)
    if values.lower_tasks:  # each has a unit of its own
        decimals = [decimals_for(s.mean for s in row) for row in spreads]
    rows = [
        [values.named(name), *(statistics.mean_and_std(s, places) for s in row)]
        for name, row, places in zip(comparison.task_order, spreads, decimals, strict=True)
    ]
    best = {
        (i, j + 1)
        for i, (name, row) in enumerate(zip(comparison.task_order, spreads, strict=True))
        for j in best_places([s.mean for s in row], values.task_direction(name), decimals[i])
    }
    return Table("", ["task", *(s.label for s in comparison.shown)], rows, best)


def relative(comparison: Comparison) -> Table | None:
    """Table 1 of Michel et al. 2021: average and worst task, absolute and relative.

    The relative value of a task is `100 (value - own) / own` per cent, where `own` is the value of
    the model trained on this task alone.

    Returns:
      The table, None if no task has such a model.
    """
    values, ratios = comparison.values, comparison.relative
    if ratios is None:
        return None
    columns = [v.spreads(which) for v in (values, ratios) for which in ("average", "worst")]
    absolute = decimals_for([s.mean for c in columns[:2] for s in c] + [*comparison.own.values()])
    # Finer than a tenth of a per cent, differences of perplexity don't matter.
    per_cent = min(decimals_for(s.mean for c in columns[2:] for s in c), 1)
    decimals = (absolute, absolute, per_cent, per_cent)
    rows = []
    for i, setting in enumerate(comparison.shown):
        cells = [statistics.mean_and_std(c[i], d) for c, d in zip(columns, decimals, strict=True)]
        first, second = (_worst_task(v.overall[setting]) for v in (values, ratios))
        seeds = _seeds(len(values.overall[setting]), len(setting.runs))
        rows.append([setting.label, *cells[:2], first, *cells[2:], second, seeds])
    names, own = zip(*comparison.own.items(), strict=True)
    alone = summarise_evaluation(0, values.split, "", names, own, values.direction)
    worst_task = alone.worst_task if math.isfinite(alone.worst) else MISSING
    zero = statistics.number(0.0, per_cent)
    means = [statistics.number(v, absolute) for v in (alone.average, alone.worst)]
    rows.append([MONOLINGUAL, *means, worst_task, zero, zero, "", ""])
    best = {
        j: best_places([s.mean for s in c], values.higher_is_better, d)
        for j, c, d in zip((1, 2, 4, 5), columns, decimals, strict=True)
    }
    title = (
        f"{values.split} {values.metric}, and per cent above a model of each task alone "
        f"({values.better})"
    )
    header = ["method", "average", "worst task", "which task", "average %", "worst %", "which task"]
    return Table(title, [*header, "seeds"], rows, _marks(best), (0, 3, 6))


def hypervolumes(comparison: Comparison, frontiers: Frontiers, *, per_setting: bool) -> Table:
    """Every method's hypervolume and its paired difference to the baseline, with 95 % intervals."""
    areas = frontiers.single if per_setting else frontiers.pooled
    decimals = 1 + decimals_for(v for series in areas.values() for v in series)
    base, rows = comparison.baseline.method, []
    for method, settings in comparison.methods.items():
        mean = statistics.interval(areas[method])
        text = statistics.with_interval(mean, decimals, signed=False)
        against = _against(areas[method], areas[base], decimals, True, method == base)
        seeds = _seeds(mean.n, len({run.seed for s in settings for run in s.runs}))
        rows.append([method, str(len(settings)), text, *against, seeds])
    means = [spread(series).mean for series in areas.values()]
    title = (
        f"{'one setting, mean over settings' if per_setting else 'all settings together'}: "
        f"hypervolume of {frontiers.split} {frontiers.metric} over "
        f"({frontiers.corner[0]:.3g}, {frontiers.corner[1]:.3g})"
    )
    header = ["method", "settings", "hypervolume", f"minus {base}", "", "seeds"]
    return Table(title, header, rows, _marks({2: best_places(means, True, decimals)}), (0, 4))


def chosen(comparison: Comparison, by: str) -> Table:
    """Every method's test values at the checkpoints chosen on validation, see `choices`."""
    chosen_by, higher = choices(comparison, by), comparison.values.higher_is_better
    base = comparison.baseline.method
    columns = {
        j: {m: t[w] for m, t in chosen_by.items()} for j, w in ((1, "average"), (4, "worst"))
    }
    decimals = decimals_for(v for column in columns.values() for c in column.values() for v in c)
    rows = []
    for method in chosen_by:
        row = [method]
        for column in columns.values():
            row.append(statistics.mean_and_std(spread(column[method]), decimals))
            row += _against(column[method], column[base], decimals, higher, method == base)
        rows.append([*row, str(len(chosen_by[method]))])
    best = {
        j: best_places([spread(c).mean for c in column.values()], higher, decimals)
        for j, column in columns.items()
    }
    minus = f"minus {base}"
    header = ["method", "average", minus, "", "worst task", minus, "", "seeds"]
    title = f"test {comparison.record.metric} of the checkpoints best on validation by {RULES[by]}"
    return Table(title, header, rows, _marks(best), (0, 3, 6))


def provenance(comparison: Comparison) -> list[Table]:
    """What was run, and where."""
    rows = [
        [
            setting.label,
            ", ".join(f"{k} = {v}" for k, v in setting.hyperparameters.items()) or "–",
            ", ".join(str(run.seed) for run in setting.runs),
            _steps(setting),
        ]
        for setting in comparison.settings
    ]
    record = comparison.record
    packages = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    facts = {
        "date": record.occasion.get("date"),
        "command": record.occasion.get("command"),
        **({"commit": record.occasion["commit"][:10]} if "commit" in record.occasion else {}),
        "machine": machine(record.device),
        "versions": packages,
    }
    facts = [[name, said or "not recorded"] for name, said in facts.items()]
    header = ["method", "hyperparameters", "seeds", "steps"]
    return [Table("", header, rows, (), range(4)), Table("", [], facts, (), (0, 1))]


def _against(ours, theirs, decimals, higher_is_better, is_baseline) -> list[str]:
    if is_baseline:
        return ["", ""]
    difference = statistics.difference(ours, theirs)
    return [statistics.with_interval(difference, decimals), difference.verdict(higher_is_better)]


def _marks(columns: dict[int, list[int]]) -> set[tuple[int, int]]:
    return {(i, j) for j, places in columns.items() for i in places}


def _worst_task(overall: DataFrame) -> str:
    """The task that is worst in most seeds."""
    names = collections.Counter(overall.worst_task)
    return names.most_common(1)[0][0] if names else MISSING


def _steps(setting: Setting) -> str:
    """How long the runs were to be, and which of them ended early."""
    text = ", ".join(str(steps) for steps in sorted({run.num_steps for run in setting.runs}))
    early = {r.seed: r.early_stop for r in setting.runs if r.early_stop not in (None, r.num_steps)}
    if early:
        ends = (f"seed {seed} at step {step}" for seed, step in early.items())
        text += f"; stopped early: {', '.join(ends)}"
    return text


def _seeds(finished: int, started: int) -> str:
    return str(started) if finished == started else f"{finished} of {started}"

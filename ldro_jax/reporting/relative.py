"""Results next to models that were trained on one task each, as in table 1 of the paper.

The relative value of a task is `100 (value − own) / own` per cent, where `own` is the value of the
model trained on this task alone. A relative average or worst task is that of the tasks' relative
values. Tasks without such a model are left out of the relative values, and named.

Every method is shown with one setting, the one `select_best` chooses by `Results.select_by`.

References:
  Michel, Ruder and Yogatama, "Balancing Average and Worst-case Accuracy in Multitask Learning",
  2021.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from ldro_jax.evaluation.perplexity import relative_perplexity
from ldro_jax.records.results import Results, summarise_evaluation
from ldro_jax.reporting.comparison import headline_rows, sorted_out
from ldro_jax.reporting.layout import Table, best_rows
from ldro_jax.reporting.numbers import MISSING, decimals_for, mean_and_std, number
from ldro_jax.reporting.summary import (
    MIN_SEEDS,
    Group,
    Spread,
    default_baseline,
    final_evaluation,
    final_values,
    group_runs,
    mean_spread,
    report_split,
    seed_difference,
    select_best,
)
from ldro_jax.reporting.sweeps import baseline_method
from ldro_jax.reporting.tables import seeds_text

MONOLINGUAL = "Monolingual"


def relative_record(results: Results) -> Results | None:
    """The record with its final values relative to the models of each task alone.

    Args:
      results: the record.

    Returns:
      A record whose metric is the relative one, in per cent, whose tasks are those with a model of
      their own, and whose runs have one setting per method and the final evaluation alone; or None
      if no task has such a model on the reported split.

    Raises:
      ValueError: if a model's own value isn't positive.
    """
    results = select_best(results, by=results.select_by)
    split = report_split(results)
    own = _own_values(results, split)
    known = np.isfinite(own)
    if not known.any():
        return None
    names = [name for name, there in zip(results.task_names, known, strict=True) if there]
    metric = f"relative {results.metric}"
    runs = []
    for run in results.runs:
        entries = []
        if final := final_evaluation(run, split, results.metric):
            values = [final.per_task.get(name, math.nan) for name in results.task_names]
            found = relative_perplexity(values, own)[known]
            entries.append(
                summarise_evaluation(
                    final.step, split, metric, names, found, results.higher_is_better
                )
            )
        runs.append(dataclasses.replace(run, evaluations=entries))
    return dataclasses.replace(results, task_names=names, metric=metric, runs=runs)


def table1_html(results: Results) -> str:
    """Every method's average and worst task, absolute and relative, the best in bold.

    Args:
      results: the record.

    Returns:
      A `<table>` element, "" if the record has no references for the reported split.
    """
    table = _table1(results)
    return table.html() if table else ""


def table1_text(results: Results) -> str:
    """Every method's average and worst task, absolute and relative, for a terminal.

    Args:
      results: the record.

    Returns:
      Aligned lines, the best of each column marked with `*`; "" if the record has no references
      for the reported split.
    """
    table = _table1(results)
    return table.text() if table else ""


def table1_words(results: Results, *, baseline: str | None = None) -> list[str]:
    """Which method is best in each column of the table, and whether the seeds show it.

    Args:
      results: the record.
      baseline: by default see `default_baseline`.

    Returns:
      Sentences, as plain text; none if the record has no references for the reported split.
    """
    columns = _columns(results)
    if not columns:
        return []
    sentences = []
    if best := [text for column in columns if (text := _best_words(column))]:
        sentences.append(f"Best on {columns[0].split} by the mean over seeds – {'; '.join(best)}.")
    groups = group_runs(columns[0].record.runs)
    if len(groups) > 1:
        base = default_baseline(groups, baseline_method(results, baseline)).label
        sentences += _difference_words(columns, base)
    relative = columns[-1].record
    missing = [name for name in results.task_names if name not in relative.task_names]
    if missing:
        sentences.append(f"Relative values leave out, without own models: {', '.join(missing)}.")
    return sentences + _size_words(relative, columns[-1].decimals)


@dataclasses.dataclass(frozen=True)
class _Column:
    """What one column of numbers shows; `record` has one setting per method."""

    name: str
    record: Results
    which: str
    decimals: int
    unit: str

    @property
    def split(self) -> str:
        return report_split(self.record)

    def values(self, group: Group) -> dict[int, float]:
        return final_values(group, self.split, self.record.metric, self.which)

    def spreads(self) -> dict[str, Spread]:
        return {g.label: mean_spread(self.values(g).values()) for g in group_runs(self.record.runs)}

    def best(self) -> list[int]:
        means = [spread.mean for spread in self.spreads().values()]
        return best_rows(means, self.record.higher_is_better, self.decimals)


def _columns(results: Results) -> list[_Column]:
    """The four columns of numbers, or none without references."""
    relative = relative_record(results)
    if relative is None or not results.runs:
        return []
    shown = select_best(results, by=results.select_by)
    own = _own_values(shown, report_split(shown))
    finals = [value for row in headline_rows(shown) for value in (row.average.mean, row.worst.mean)]
    absolute = decimals_for([*finals, *own])
    finals = [v for row in headline_rows(relative) for v in (row.average.mean, row.worst.mean)]
    # Finer than a tenth of a per cent, differences of perplexity don't matter.
    per_cent = min(decimals_for(finals), 1)
    return [
        _Column("average", shown, "average", absolute, ""),
        _Column("worst task", shown, "worst", absolute, ""),
        _Column("relative average", relative, "average", per_cent, " %"),
        _Column("relative worst task", relative, "worst", per_cent, " %"),
    ]


def _own_values(results: Results, split: str) -> np.ndarray:
    """The values of the models of one task each, shape [N]; NaN where there is none."""
    known = results.references.get(split, {})
    own = np.array([known.get(name, math.nan) for name in results.task_names], dtype=float)
    return np.where(np.isfinite(own), own, math.nan)


def _table1(results: Results) -> Table | None:
    columns = _columns(results)
    if not columns:
        return None
    first, relative = columns[0], columns[-1].record
    shown, split = first.record, first.split
    own = _own_values(shown, split)
    alone = summarise_evaluation(
        0, split, shown.metric, shown.task_names, own, shown.higher_is_better
    )
    body = []
    cells = [[mean_and_std(s, c.decimals) for s in c.spreads().values()] for c in columns]
    rows = zip(headline_rows(shown), headline_rows(relative), *cells, strict=True)
    for absolute, ratio, average, worst, relative_average, relative_worst in rows:
        body.append(
            [
                *(absolute.label, average, worst, absolute.worst_task or MISSING),
                *(relative_average, relative_worst, ratio.worst_task or MISSING),
                seeds_text(absolute),
            ]
        )
    zero = number(0.0, columns[-1].decimals)
    worst_task = alone.worst_task if math.isfinite(alone.worst) else MISSING
    values = [number(v, first.decimals) for v in (alone.average, alone.worst)]
    body.append([MONOLINGUAL, *values, worst_task, zero, zero, "", ""])
    direction = "higher" if shown.higher_is_better else "lower"
    header = ["method", "average", "worst task", "which task", "average %", "worst %", "which task"]
    return Table(
        f"{split} {shown.metric}, and per cent above a model of each task alone ({direction} is "
        "better)",
        [*header, "seeds"],
        body,
        {(i, j) for j, c in zip((1, 2, 4, 5), columns, strict=True) for i in c.best()},
        (0, 3, 6),
    )


def _best_words(column: _Column) -> str:
    """The best methods of a column, "" if fewer than two have a value."""
    spreads = list(column.spreads().items())
    found = [spreads[i] for i in column.best()]
    if not found:
        return ""
    value = mean_and_std(found[0][1], column.decimals)
    return f"{column.name}: {' and '.join(label for label, _ in found)} ({value}{column.unit})"


def _difference_words(columns: Sequence[_Column], base: str) -> list[str]:
    found = {}
    for column in columns:
        groups = {g.label: g for g in group_runs(column.record.runs)}
        theirs = column.values(groups[base])
        found[column.name] = {
            label: seed_difference(column.values(group), theirs)
            for label, group in groups.items()
            if label != base
        }
    pairs = [difference.n for d in found.values() for difference in d.values() if difference.n]
    if pairs and max(pairs) < MIN_SEEDS:
        return [f"Differences to {base} cannot be told from chance with so few seeds."]
    sentences = [
        f"Against {base}, on the {name} – {sorted_out(d, columns[0].record.higher_is_better)}."
        for name, d in found.items()
    ]
    if pairs and min(pairs) < MIN_SEEDS:
        sentences.append(f"With fewer than {MIN_SEEDS} common seeds no difference is clear.")
    return sentences


def _size_words(relative: Results, decimals: int) -> list[str]:
    """How the thirds of the tasks with least and with most training data compare."""
    sizes = {name: relative.task_sizes.get(name, math.nan) for name in relative.task_names}
    known = sorted((n for n in sizes if math.isfinite(sizes[n])), key=lambda n: sizes[n])
    third = len(known) // 3
    if not third:
        return []
    split = report_split(relative)
    parts = []
    for group in group_runs(relative.runs):
        means = []
        for names in (known[:third], known[-third:]):
            values = [final_values(group, split, relative.metric, f"task:{n}") for n in names]
            means.append(float(np.mean([mean_spread(v.values()).mean for v in values])))
        if all(map(math.isfinite, means)):
            parts.append(f"{group.label} {' and '.join(number(m, decimals) for m in means)} %")
    if not parts:
        return []
    tasks = f"{third} task{'s' if third > 1 else ''}"
    return [
        f"Mean {relative.metric} on the {tasks} with the least training data and on the {third} "
        f"with the most – {'; '.join(parts)}."
    ]

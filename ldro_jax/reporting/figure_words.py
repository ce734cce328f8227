"""Plain sentences beside each figure, made from the numbers the figure shows.

As in `findings`, a difference is called clear only by the rule of `summary`.
"""

import collections
import math

import numpy as np

from ldro_jax.records.results import Results
from ldro_jax.reporting.comparison import step_seconds
from ldro_jax.reporting.numbers import decimals_for, number
from ldro_jax.reporting.plots.balance import checkpoint_means
from ldro_jax.reporting.summary import (
    default_baseline,
    final_evaluation,
    final_values,
    group_runs,
    mean_spread,
    paired_difference,
    progress_split,
    report_split,
)

# With more methods than this, sentences keep to the extremes and leave the rest to the table.
_MANY = 5


def balance_words(results: Results, *, split: str | None = None) -> list[str]:
    """Which methods another has better means than, on both the average and the worst task.

    Args:
      results: the record.
      split: by default `report_split(results)`.

    Returns:
      Sentences, as plain text.
    """
    split = split or report_split(results)
    sign = 1.0 if results.higher_is_better else -1.0
    points = {}
    for group in group_runs(results.runs):
        point = [
            sign * mean_spread(final_values(group, split, results.metric, which).values()).mean
            for which in ("average", "worst")
        ]
        if np.isfinite(point).all():
            points[group.label] = point
    if len(points) < 2:
        return []
    beaten = {
        label: [k for k, q in points.items() if q[0] > p[0] and q[1] > p[1]]
        for label, p in points.items()
    }
    standing = [label for label, by in beaten.items() if not by]
    sentences = [f"No method has better means than {_listed(standing)} on both axes."]
    for winner in standing:
        losers = [label for label, by in beaten.items() if winner in by]
        if losers:
            sentences.append(f"{winner} has better means than {_listed(losers)} on both.")
    return [*sentences, "The summary says which differences are clear."]


def progress_words(results: Results, *, split: str | None = None) -> list[str]:
    """Whether the worst task was better before the end of training.

    Args:
      results: the record.
      split: by default `progress_split(results)`.

    Returns:
      Sentences, as plain text.
    """
    split = split or progress_split(results)
    sign = 1.0 if results.higher_is_better else -1.0
    early, compared = [], 0
    for group in group_runs(results.runs):
        table = checkpoint_means(group, split, results.metric)
        table = table[np.isfinite(table[:, 2])]
        if len(table) < 2:
            continue
        compared += 1
        best = int(np.argmax(sign * table[:, 2]))
        if best < len(table) - 1:
            decimals = decimals_for(table[:, 2])
            early.append(
                f"{group.label} ({number(table[best, 2], decimals)} at step {table[best, 0]:.0f}, "
                f"{number(table[-1, 2], decimals)} at the end)"
            )
    if not compared:
        return []
    if not early:
        return ["Every method's mean worst-task value is best at its last evaluation."]
    return [f"The mean worst-task value was best before the end for {'; '.join(early)}."]


def _listed(names) -> str:
    return ", ".join(names[:-1]) + " and " + names[-1] if len(names) > 1 else names[0]


def task_words(
    results: Results, *, split: str | None = None, baseline: str | None = None
) -> list[str]:
    """Which task is worst, and on how many tasks each method differs from the baseline.

    Args:
      results: the record.
      split: by default `report_split(results)`.
      baseline: by default see `default_baseline`.

    Returns:
      Sentences, as plain text.
    """
    split = split or report_split(results)
    groups = group_runs(results.runs)
    final = [final_evaluation(run, split, results.metric) for run in results.runs]
    counts = collections.Counter(e.worst_task for e in final if e is not None)
    if not counts:
        return []
    name, count = counts.most_common(1)[0]
    sentences = [
        f"The task most often worst is {name}: in {count} of {counts.total()} finished runs."
    ]
    base = default_baseline(groups, baseline)
    decimals = decimals_for(v for e in final if e is not None for v in e.per_task.values())
    others = [g for g in groups if g is not base]
    if len(others) > _MANY:
        others = _best_worst(results, others, split)
        sentences.append("Of the other methods, the one with the best mean worst task:")
    for group in others:
        found = {
            task: paired_difference(
                group, base, split=split, metric=results.metric, which=f"task:{task}"
            )
            for task in results.task_names
        }
        found = {task: d for task, d in found.items() if math.isfinite(d.mean)}
        if found:
            sentences.append(_task_sentence(group, base, found, results.higher_is_better, decimals))
    return sentences


def _best_worst(results, groups, split):
    sign = 1.0 if results.higher_is_better else -1.0
    means = [
        sign * mean_spread(final_values(g, split, results.metric, "worst").values()).mean
        for g in groups
    ]
    return [groups[int(np.nanargmax(means))]] if np.isfinite(means).any() else []


def _task_sentence(group, base, found, higher_is_better, decimals):
    sign = 1.0 if higher_is_better else -1.0
    better = [d for d in found.values() if sign * d.mean > 0]
    worse = [d for d in found.values() if sign * d.mean < 0]
    ordered = sorted(found, key=lambda task: sign * found[task].mean)
    extremes = []
    if better:
        top = ordered[-1]
        extremes.append(f"gains most on {top} ({number(found[top].mean, decimals, signed=True)})")
    if worse:
        low = ordered[0]
        extremes.append(f"loses most on {low} ({number(found[low].mean, decimals, signed=True)})")
    return (
        f"{group.label} has a better mean than {base.label} on {len(better)} of {len(found)} tasks "
        f"({sum(d.clear for d in better)} of them clear) and a worse one on {len(worse)} "
        f"({sum(d.clear for d in worse)} clear)" + "".join(f"; it {e}" for e in extremes) + "."
    )


def weight_words(results: Results, panels) -> list[str]:
    """Which task ends with the most weight, per method.

    Args:
      results: the record.
      panels: steps and mean weights by label, from `plots.training.moving_weights`.

    Returns:
      Sentences, as plain text.
    """
    sentences, count = [], len(results.task_names)
    for label, (steps, values) in panels.items():
        last = values[-1]
        if np.isfinite(last).all():
            top = int(np.argmax(last))
            sentences.append(
                f"{label} gives most to {results.task_names[top]}, {last[top]:.2g} at step "
                f"{steps[-1]} ({last[top] * count:.2g} times uniform)"
            )
    return [f"At the end {'; '.join(sentences)}."] if sentences else []


def interaction_words(results: Results, found) -> list[str]:
    """The most aligned and the most opposed pair of tasks, and the range of gradient norms.

    Args:
      results: the record.
      found: from `plots.interaction.last_interaction`.

    Returns:
      Sentences, as plain text.
    """
    if found is None or len(results.task_names) < 2:
        return []
    cosines, norms, names = found[3], found[4], results.task_names
    pairs = [(float(cosines[i, j]), i, j) for i in range(len(names)) for j in range(i)]
    low, high = min(pairs), max(pairs)
    opposed = sum(cosine < 0 for cosine, _, _ in pairs)
    low_norm, high_norm = int(np.argmin(norms)), int(np.argmax(norms))
    return [
        f"The most aligned pair is {names[high[2]]} and {names[high[1]]} (cosine "
        f"{number(high[0], 2)}), the least aligned {names[low[2]]} and {names[low[1]]} "
        f"({number(low[0], 2)}); {opposed} of {len(pairs)} pairs have a negative cosine.",
        f"Gradient norms go from {norms[low_norm]:.3g} ({names[low_norm]}) to "
        f"{norms[high_norm]:.3g} ({names[high_norm]}).",
    ]


def time_words(results: Results, *, baseline: str | None = None) -> list[str]:
    """What a step of each method costs next to the baseline's.

    Args:
      results: the record.
      baseline: by default see `default_baseline`.

    Returns:
      One sentence, or none if no time was measured.
    """
    groups = group_runs(results.runs)
    base = default_baseline(groups, baseline)
    reference = step_seconds(base).mean
    ratios = [(step_seconds(g).mean / reference, g.label) for g in groups if g is not base]
    ratios = [pair for pair in ratios if math.isfinite(pair[0])]
    if not ratios:
        return []
    if len(ratios) > _MANY:
        ratios = [min(ratios), max(ratios)]
    parts = [f"{label} {ratio:.2f} times" for ratio, label in ratios]
    return [f"A step of {base.label} takes {reference * 1e3:.3g} ms; {', '.join(parts)} as long."]


def problem_words(results: Results) -> list[str]:
    """Runs that stopped early, and losses and interactions that were not finite.

    Args:
      results: the record.

    Returns:
      One sentence per run with a problem.
    """
    label = {id(run): g.label for g in group_runs(results.runs) for run in g.runs}
    sentences = []
    for run in results.runs:
        who = f"{label[id(run)]}, seed {run.seed}"
        if run.stopped is not None:
            sentences.append(f"{who} stopped before step {run.num_steps}: {run.stopped}")
        for what, counts in [
            ("losses that were not finite", run.nonfinite_losses),
            ("interactions that could not be measured", run.unmeasured_interactions),
        ]:
            if tasks := ", ".join(f"{task} ({n})" for task, n in counts.items() if n):
                sentences.append(f"{who} had {what}: {tasks}.")
    return sentences

"""Plain sentences on what the tables and figures show, made from the same numbers.

A sentence says that one method is better than another only where the paired difference over seeds
is clear (see `summary`): at least three common seeds, and zero outside the 95 % interval. Anything
else is called not separated, whoever has the higher mean, and whoever wrote the method.
"""

import math
from collections.abc import Sequence

from ldro_jax.records.results import Results
from ldro_jax.reporting.comparison import judgement, sorted_out
from ldro_jax.reporting.numbers import decimals_for, mean_and_std, number, with_interval
from ldro_jax.reporting.summary import (
    MIN_SEEDS,
    Group,
    default_baseline,
    final_values,
    group_runs,
    mean_spread,
    paired_difference,
    report_split,
)


def headline_words(
    results: Results, *, split: str | None = None, baseline: str | None = None
) -> list[str]:
    """Who has the best worst task, at what price in the average, and whether the seeds show it.

    Args:
      results: the record.
      split: by default `report_split(results)`.
      baseline: by default see `default_baseline`.

    Returns:
      Sentences, as plain text.
    """
    split = split or report_split(results)
    groups = group_runs(results.runs)
    means = {g.label: _mean(results, g, split, "worst") for g in groups}
    ranked = [g for g in groups if math.isfinite(means[g.label])]
    ranked.sort(key=lambda g: means[g.label], reverse=results.higher_is_better)
    if not ranked:
        return ["No run finished with an evaluation, so there is nothing to compare."]
    words = _Words(results, split)
    if len(groups) == 1:
        return [words.alone(ranked[0])]
    base = default_baseline(groups, baseline)
    tied = [g for g in ranked if means[g.label] == means[ranked[0].label]]
    sentences = [words.best(tied)]
    if len(tied) == 1 and tied[0] is not base:
        sentences += words.against(tied[0], base)
        if len(ranked) > 1 and ranked[1] is not base:
            sentences.append(words.next_best(ranked[0], ranked[1]))
    others = [g for g in groups if g is not base]
    if len(others) > 1 or others[0] is not tied[0]:
        sentences += [words.sorted_out(others, base, which) for which in ("worst", "average")]
    if any(len(final_values(g, split, results.metric, "worst")) < MIN_SEEDS for g in groups):
        sentences.append(
            f"A method with fewer than {MIN_SEEDS} finished seeds cannot differ clearly."
        )
    return sentences


class _Words:
    """Sentences on the final values of one split; `results` and `split` stay the same in all."""

    def __init__(self, results: Results, split: str):
        self.results, self.split = results, split
        finals = [
            value
            for group in group_runs(results.runs)
            for which in ("average", "worst")
            for value in final_values(group, split, results.metric, which).values()
        ]
        self.decimals = decimals_for(finals)
        self.worst = f"worst-task {results.metric}"

    def difference(self, group: Group, base: Group, which: str):
        return paired_difference(
            group, base, split=self.split, metric=self.results.metric, which=which
        )

    def alone(self, group: Group) -> str:
        average, worst = (self._value(group, which) for which in ("average", "worst"))
        return (
            f"{group.label} is the only method: its average {self.split} {self.results.metric} is "
            f"{average}, its worst task's {worst}. There is nothing to compare it with."
        )

    def best(self, tied: Sequence[Group]) -> str:
        value, names = self._value(tied[0], "worst"), " and ".join(g.label for g in tied)
        seeds = len(final_values(tied[0], self.split, self.results.metric, "worst"))
        over = f"{seeds} seeds" if seeds > 1 else "one seed"
        verb = "has" if len(tied) == 1 else "share"
        return f"{names} {verb} the best mean {self.worst} ({self.split}): {value} over {over}."

    def against(self, group: Group, base: Group) -> list[str]:
        worst, average = (self.difference(group, base, which) for which in ("worst", "average"))
        if not math.isfinite(worst.mean):
            return [f"It shares no finished seed with {base.label}, the baseline, to compare with."]
        sentences = [
            f"Seed by seed, its worst task is {with_interval(worst, self.decimals)} against "
            f"{base.label}'s: {self._judgement(worst)}."
        ]
        if math.isfinite(average.mean):
            size = number(abs(average.mean), self.decimals)
            side = f"{size} {'higher' if average.mean > 0 else 'lower'} than"
            side = side if average.mean else "equal to"
            sentences.append(
                f"Its average is {side} {base.label}'s "
                f"({with_interval(average, self.decimals)}): {self._judgement(average)}."
            )
        return sentences

    def next_best(self, first: Group, second: Group) -> str:
        found = self.difference(first, second, "worst")
        if not math.isfinite(found.mean):
            return f"Next is {second.label}, with no finished seed in common."
        text = with_interval(found, self.decimals)
        return f"Next is {second.label}; the difference is {text}: {self._judgement(found)}."

    def sorted_out(self, groups: Sequence[Group], base: Group, which: str) -> str:
        found = {g.label: self.difference(g, base, which) for g in groups}
        what = "the worst task" if which == "worst" else "the average"
        lists = sorted_out(found, self.results.higher_is_better)
        return f"Against {base.label}, on {what} – {lists}."

    def _value(self, group: Group, which: str) -> str:
        values = final_values(group, self.split, self.results.metric, which).values()
        return mean_and_std(mean_spread(values), self.decimals)

    def _judgement(self, difference) -> str:
        return judgement(difference, self.results.higher_is_better)


def _mean(results, group, split, which):
    return mean_spread(final_values(group, split, results.metric, which).values()).mean

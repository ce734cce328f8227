"""What a report says of a sweep before it turns to one setting per method.

As in `findings`, a method is called better only where the paired difference over seeds is clear.
"""

import math
from collections.abc import Mapping

from ldro_jax.records.results import Results
from ldro_jax.reporting import plots, sweep_tables
from ldro_jax.reporting.comparison import sorted_out
from ldro_jax.reporting.numbers import decimals_for, number
from ldro_jax.reporting.page import Page, note, paragraph, slug, wide
from ldro_jax.reporting.summary import (
    MIN_SEEDS,
    final_evaluation,
    mean_spread,
    report_split,
    seed_difference,
    select_best,
)
from ldro_jax.reporting.sweeps import (
    RULES,
    baseline_method,
    choose,
    for_metric,
    frontier_split,
    further_metrics,
    hypervolumes,
    settings,
)


def add_sections(page: Page, results: Results, baseline: str | None = None) -> None:
    """Adds the sections on all settings: frontiers, choices on validation, worst task over time.

    Args:
      page: where to add them; without matplotlib they have tables only.
      results: the record of a sweep.
      baseline: by default see `default_baseline`.
    """
    _frontiers(page, results, baseline, results.metric, "Pareto frontiers")
    parts = []
    if any(choose(results, by=results.select_by).values()):
        parts = [
            wide(sweep_tables.choice_table(results, by=by, baseline=baseline).html())
            for by in (results.select_by, "balance")
        ]
        parts.append(
            note(
                "For each method and seed, one tested checkpoint of one setting is chosen by its "
                "validation values alone, the earliest of equals, and shown with its test values: "
                "mean ± standard deviation over seeds. A difference is shown with its 95 % "
                "interval over common seeds."
            )
        )
    missing = "<p>No checkpoint was evaluated on both validation and test.</p>"
    page.section("Chosen on validation", *(parts or [missing]))
    if plots.available():
        title = "Worst task over time"
        caption = (
            "Mean over seeds, faint, and its running exponential average (0.6 of the last average, "
            "0.4 of the new value; on a logarithmic axis, of logarithms). Settings go from dark to "
            "light in the order of the record."
        )
        figure = plots.worst_over_time(results)
        alt = f"{title}, a panel per method with several settings."
        page.section(title, page.figure("worst_over_time", figure, caption, alt))
    for metric in further_metrics(results):
        _frontiers(page, results, baseline, metric, f"Pareto frontiers: {metric}")


def selection_words(results: Results) -> str:
    """Which setting of each method the rest of the report shows, and why that one."""
    chosen = settings(select_best(results, by=results.select_by))
    names = []
    for method, groups in settings(results).items():
        if len(groups) > 1:
            # Its label in the sweep says what tells it from the other settings.
            setting = chosen[method][0].hyperparameters
            names += [g.label for g in groups if g.hyperparameters == setting][:1]
    if any(final_evaluation(run, "validation", results.metric) for run in results.runs):
        tested = report_split(results) == "test"
        why = (
            f"for which {RULES[results.select_by]} was best on validation, mean over seeds, "
            f"{'at the last checkpoint that was tested' if tested else 'at the end of training'}"
        )
    else:
        why = "that comes first in the record, as no run finished with a validation value"
    return (
        "Except in the sections on all settings, each method is shown with the setting "
        f"{why}: {', '.join(names)}."
    )


def frontier_words(
    results: Results, *, metric: str | None = None, baseline: str | None = None
) -> list[str]:
    """Who has the largest hypervolume, and whether the seeds separate the methods.

    Args:
      results: the record of a sweep.
      metric: by default `results.metric`.
      baseline: by default see `default_baseline`.

    Returns:
      Sentences, as plain text.
    """
    base = baseline_method(results, baseline)
    pooled = hypervolumes(results, metric=metric)
    means = {method: mean_spread(areas.values()).mean for method, areas in pooled.items()}
    finite = [mean for mean in means.values() if math.isfinite(mean)]
    if not finite:
        return [
            "No method has all its settings with the same seed, so there is nothing to compare."
        ]
    decimals = 1 + decimals_for(finite)
    best = [method for method, mean in means.items() if mean == max(finite)]
    sentences = [
        f"{' and '.join(best)} {'has' if len(best) == 1 else 'share'} the largest mean "
        f"hypervolume, {number(max(finite), decimals)}."
    ]
    if len(pooled) > 1:
        single = hypervolumes(results, metric=metric, per_setting=True)
        sentences += [
            f"Against {base}, all settings together – {_sorted_out(pooled, base)}.",
            f"One setting, mean over settings – {_sorted_out(single, base)}.",
        ]
    if any(len(areas) < MIN_SEEDS for areas in pooled.values()):
        sentences.append(
            f"A method with fewer than {MIN_SEEDS} complete seeds cannot differ clearly."
        )
    return sentences


def _sorted_out(areas: Mapping[str, Mapping[int, float]], base: str) -> str:
    """The methods by verdict against the baseline; a larger area is always better."""
    found = {m: seed_difference(areas[m], areas[base]) for m in areas if m != base}
    return sorted_out(found, higher_is_better=True)


def _frontiers(page: Page, results: Results, baseline, metric: str, title: str) -> None:
    split = frontier_split(for_metric(results, metric))
    all_settings, one_setting = (
        sweep_tables.hypervolume_table(
            results, metric=metric, split=split, baseline=baseline, per_setting=per_setting
        )
        for per_setting in (False, True)
    )
    picture = ""
    if plots.available():
        caption = (
            f"All checkpoints of all settings, on {split}. Lines join those that no other "
            "checkpoint of the same method and seed beats on both axes; the rest are faint, and "
            "may lie outside."
        )
        name = "pareto_frontiers"
        name += "" if metric == results.metric else f"_{slug(metric).replace('-', '_')}"
        alt = f"{title}, a panel per seed."
        picture = page.figure(name, plots.pareto_frontiers(results, metric, split), caption, alt)
    page.section(
        title,
        paragraph(frontier_words(results, metric=metric, baseline=baseline)),
        picture,
        wide(all_settings.html()),
        wide(one_setting.html()),
        note(
            "Hypervolume: the area of all pairs of average and worst value that some checkpoint "
            "reaches; larger is better. A method with more settings has more checkpoints, hence an "
            "advantage where all settings are taken together; the second table is fair in this: it "
            "has the hypervolume of one setting's checkpoints, mean over the settings. ± is half "
            "the 95 % interval (Student's t) of a mean over seeds, or of a mean paired difference. "
            "A seed counts for a method if all its settings were run with it. A frontier is picked "
            "on the split it is shown for: it is not what one chosen model would reach."
        ),
    )

"""One page about one experiment: a self-contained HTML file, and its figures as PNG files.

The page is a pure function of the record. Which differences it calls clear, and why, is written
down in `summary` and `findings`, and repeated on the page.
"""

import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from ldro_jax import paths
from ldro_jax.records.results import Results
from ldro_jax.reporting import figure_words, findings, plots, relative, sweep_sections, tables
from ldro_jax.reporting.page import Page, note, paragraph, slug, table, wide
from ldro_jax.reporting.plots.balance import checkpoint_means
from ldro_jax.reporting.plots.interaction import last_interaction
from ldro_jax.reporting.plots.training import moving_weights
from ldro_jax.reporting.summary import (
    MIN_SEEDS,
    default_baseline,
    final_evaluation,
    group_runs,
    progress_split,
    report_split,
    select_best,
)
from ldro_jax.reporting.sweeps import baseline_method, is_sweep


def write_report(
    results: Results,
    output_dir: str | os.PathLike,
    *,
    config_text: str,
    extra_sections: Sequence[tuple[str, str, Any]] = (),
    baseline: str | None = None,
) -> Path:
    """Writes `report.html` and `figures/*.png`.

    For a sweep it shows the frontiers of all settings, and everything else with one setting per
    method, the one that `select_best` chooses by `results.select_by`.

    A difference between two methods is called clear only if both finished at least three common
    seeds and the 95 % interval of the mean paired difference (Student's t) leaves out zero.

    Args:
      results: the record.
      output_dir: the folder; it is made if missing.
      config_text: the resolved configuration, shown as it is.
      extra_sections: shown after the summary; title, caption, and a matplotlib figure or trusted
        HTML. The figure is saved too. Title and caption are escaped.
      baseline: what methods are compared with; by default the one that trains on the average loss.

    Returns:
      The path of `report.html`. Without matplotlib it says so, and has no figures.

    Raises:
      ValueError: if there is no method of the name `baseline`.
    """
    folder = paths.make(output_dir)
    page = Page(folder / "figures")
    shown, selection = results, ""
    if sweep := is_sweep(results):
        baseline = baseline_method(results, baseline)
        shown = select_best(results, by=results.select_by)
        selection = sweep_sections.selection_words(results)
    if results.runs:
        if baseline is not None:
            default_baseline(group_runs(results.runs), baseline)
        _summary(page, shown, baseline, selection)
        _relative(page, results, baseline)
        if problems := figure_words.problem_words(results):
            items = "".join(f"<li>{escape(text)}</li>" for text in problems)
            page.section("Problems", f'<div class="warn"><ul>{items}</ul></div>')
    else:
        page.section("Results", "<p>The record has no runs.</p>")
    if sweep:
        sweep_sections.add_sections(page, results, baseline)
    for title, caption, content in extra_sections:
        if isinstance(content, str):
            page.section(title, content, note(caption))
        else:
            page.section(title, page.figure(slug(title), content, caption, title))
    if results.runs:
        _figures(page, shown, baseline)
    page.section("How it was run", _provenance(results))
    config = f"<pre>{escape(config_text)}</pre>"
    page.section("Configuration", f"<details><summary>As resolved</summary>{config}</details>")
    path = folder / "report.html"
    title = f"{results.experiment}: average and worst task"
    paths.write(path, page.html(title, _introduction(results)))
    return path


def _summary(page: Page, results: Results, baseline: str | None, selection: str) -> None:
    words = findings.headline_words(results, baseline=baseline)
    rule = (
        "± in the table is the standard deviation over seeds. In a difference it is half the 95 % "
        "interval of the mean paired difference over common seeds (Student's t). A difference is "
        f"called clear with at least {MIN_SEEDS} common seeds and zero outside that interval, "
        "without correction for the number of comparisons. Seeds that stopped early are left out."
    )
    bold = "Bold: the best of its column, which need not be a clear difference."
    comparison = tables.comparison_html(results, baseline=baseline)
    page.section(
        "Summary",
        note(selection),
        wide(tables.headline_html(results, baseline=baseline)),
        note(bold if comparison else ""),
        paragraph(words),
        wide(comparison),
        note(rule if comparison else ""),
    )


def _relative(page: Page, results: Results, baseline: str | None) -> None:
    content = relative.table1_html(results)
    if not content:
        return
    title, picture = "Relative to one model for each task", ""
    words = relative.table1_words(results, baseline=baseline)
    items = "".join(f"<li>{escape(text)}</li>" for text in words)
    if plots.available():
        caption = (
            "Mean over seeds; the dashed line is a model trained on the task alone. Points below "
            f"it are {'worse' if results.higher_is_better else 'better'} than that."
        )
        if results.task_sizes:
            caption += " The task with the most training data is at the left."
        figure = plots.relative_by_task(results)
        picture = page.figure(
            "relative_by_task", figure, caption, " ".join([f"{title}.", *words[:2]])
        )
    page.section(
        title,
        wide(content),
        note(
            "The relative value of a task is 100 · (value − own) / own per cent, where own is the "
            "value of a model trained on this task alone; the average and the worst task are those "
            "of the tasks' relative values. ± is the standard deviation over seeds. Bold: the best "
            f"method of a column, which need not be a clear difference. {relative.MONOLINGUAL}: "
            "the models of one task each."
        ),
        f"<ul>{items}</ul>" if words else "",
        picture,
    )


def _figures(page: Page, results: Results, baseline: str | None) -> None:
    if not plots.available():
        hint = (
            "Figures need matplotlib: pip install 'ldro-jax[plots]', then write the report again."
        )
        page.section("Figures", f"<p>{escape(hint)}</p>")
        return
    split = report_split(results)

    def add(name, title, figure, words, caption, *more):
        alt = " ".join([f"{title}.", *words[:2]])
        page.section(title, paragraph(words), page.figure(name, figure, caption, alt), *more)

    groups = group_runs(results.runs)
    if any(final_evaluation(run, split, results.metric) for run in results.runs):
        caption = (
            f"Further {'up and right' if results.higher_is_better else 'down and left'} is better. "
            "Small points are seeds, the large point their mean, bars one standard deviation."
        )
        if any(len(checkpoint_means(g, split, results.metric)) > 1 for g in groups):
            caption += " Thin lines join the checkpoints that no other checkpoint beats on both."
        balance = figure_words.balance_words(results)
        figure = plots.average_vs_worst(results)
        add("average_vs_worst", "Average against worst task", figure, balance, caption)
        details = tables.task_table_html(results, baseline=baseline)
        add(
            "task_values",
            "Every task",
            plots.task_values(results, baseline=baseline),
            figure_words.task_words(results, baseline=baseline),
            "Tasks from the baseline's worst (top) to its best; bars are one standard deviation "
            "over seeds. Of many tasks, about one in twenty looks clear by chance alone.",
            f"<details><summary>All values</summary>{wide(details)}</details>" if details else "",
        )
    # One evaluation per run makes no curve.
    if any(len(checkpoint_means(g, progress_split(results), results.metric)) > 1 for g in groups):
        add(
            "metric_over_steps",
            "Over training",
            plots.metric_over_steps(results),
            figure_words.progress_words(results),
            f"Mean over seeds on the {progress_split(results)} split; the band is one standard "
            "deviation.",
        )
    if panels := moving_weights(results):
        add(
            "weights_over_time",
            "Task weights",
            plots.weights_over_time(results),
            figure_words.weight_words(results, panels),
            "Mean over seeds; a line above the dashed one is a task that counts more than it would "
            "in the average loss.",
        )
    if found := last_interaction(results):
        add(
            "interaction_matrix",
            "Interaction of tasks",
            plots.interaction_matrix(results),
            figure_words.interaction_words(results, found),
            "Orange: a small step for one task also lowers the other's loss; purple: it raises it. "
            "Similar tasks stand side by side; bars are the lengths of the gradients.",
        )
    if words := figure_words.time_words(results, baseline=baseline):
        caption = (
            "Shorter is cheaper; the dashed line is the baseline, bars one standard deviation."
        )
        add(
            "step_time",
            "Time per step",
            plots.step_time(results, baseline=baseline),
            words,
            caption,
        )


def _provenance(results: Results) -> str:
    rows = []
    for group in group_runs(results.runs):
        seeds = ", ".join(str(run.seed) for run in group.runs)
        steps = ", ".join(str(s) for s in sorted({run.num_steps for run in group.runs}))
        setting = ", ".join(f"{k} = {v}" for k, v in group.hyperparameters.items()) or "–"
        rows.append((group.label, setting, seeds, steps))
    runs = table(("method", "hyperparameters", "seeds", "steps"), rows)
    device = results.device
    machine = " ".join(str(device[k]) for k in ("count", "platform", "kind") if device.get(k))
    versions = ", ".join(f"{name} {version}" for name, version in results.versions.items())
    facts = [("device", machine or "not recorded"), ("versions", versions or "not recorded")]
    return wide(runs) + wide(table(("", ""), facts))


def _introduction(results: Results) -> str:
    methods = len({run.method for run in results.runs})
    seeds = len({run.seed for run in results.runs})
    counts = [_count(methods, "method")]
    if is_sweep(results):
        counts.append(_count(len(group_runs(results.runs)), "setting"))
    counts += [_count(len(results.task_names), "task"), _count(seeds, "seed")]
    direction = "higher" if results.higher_is_better else "lower"
    facts = f"{', '.join(counts)}; {results.metric}, {direction} is better."
    return " ".join(filter(None, [results.description.strip(), facts]))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"

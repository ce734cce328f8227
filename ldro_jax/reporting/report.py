"""One page about one experiment: a self-contained HTML file, and its figures as PNG files.

The page is a pure function of the record. Which differences it calls clear, and why, is written
down in `summary` and `findings`, and repeated on the page.
"""

import base64
import io
import os
import re
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ldro_jax.reporting import figure_words, findings, plots, tables
from ldro_jax.reporting.plots.balance import checkpoint_means
from ldro_jax.reporting.plots.interaction import last_interaction
from ldro_jax.reporting.plots.training import moving_weights
from ldro_jax.reporting.results import Results
from ldro_jax.reporting.summary import (
    MIN_SEEDS,
    default_baseline,
    final_evaluation,
    group_runs,
    progress_split,
    report_split,
)

_CSS = """
:root { color-scheme: light; }
body { max-width: 1000px; margin: 0 auto; padding: 1.5rem; background: #fff; color: #1a1a1a;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.8rem; line-height: 1.2; margin: 0 0 .5rem; }
h2 { font-size: 1.25rem; margin: 2.4rem 0 .5rem; border-bottom: 1px solid #ddd; }
nav { font-size: .9rem; margin: 1rem 0; }
nav a { margin-right: 1rem; white-space: nowrap; }
a { color: #0060a0; }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: #555; padding: .2rem .7rem; }
th, td { padding: .3rem .7rem; text-align: left; border-bottom: 1px solid #e2e2e2;
  vertical-align: top; }
thead th { border-bottom: 2px solid #888; vertical-align: bottom; }
.n { text-align: right; }
td.n { white-space: nowrap; }
figure { margin: 1rem 0; }
img { max-width: 100%; height: auto; display: block; margin: 0 auto; }
figcaption, .note { color: #555; font-size: .9rem; }
.warn { border-left: 4px solid #D55E00; padding: .2rem 1rem; background: #fdf3ec; }
pre { overflow-x: auto; background: #f6f6f6; padding: .8rem; font-size: .85rem; }
@media print { body { padding: 0; } figure, tr { break-inside: avoid; }
  h2 { break-after: avoid; } nav { display: none; } pre { white-space: pre-wrap; } }
"""


def write_report(
    results: Results,
    output_dir: str | os.PathLike,
    *,
    config_text: str,
    extra_sections: Sequence[tuple[str, str, Any]] = (),
    baseline: str | None = None,
) -> Path:
    """Writes `report.html` and `figures/*.png`.

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
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    page = _Page(folder / "figures")
    if results.runs:
        if baseline is not None:
            default_baseline(group_runs(results.runs), baseline)
        _summary(page, results, baseline)
    else:
        page.section("Results", "<p>The record has no runs.</p>")
    for title, caption, content in extra_sections:
        if isinstance(content, str):
            page.section(title, content, _note(caption))
        else:
            page.section(title, page.figure(_slug(title), content, caption, title))
    if results.runs:
        _figures(page, results, baseline)
    page.section("How it was run", _provenance(results))
    config = f"<pre>{escape(config_text)}</pre>"
    page.section("Configuration", f"<details><summary>As resolved</summary>{config}</details>")
    path = folder / "report.html"
    path.write_text(_html(results, page), encoding="utf-8")
    return path


class _Page:
    """The sections so far; figures are written as they come."""

    def __init__(self, figures: Path):
        self.figures = figures
        self.sections: list[tuple[str, str, str]] = []

    def section(self, title: str, *parts: str) -> None:
        slugs = {slug for slug, _, _ in self.sections}
        slug = base = _slug(title)
        # Two extra sections may share a title; an id may not.
        while slug in slugs:
            slug = f"{base}-{len(slugs)}"
        self.sections.append((slug, title, "\n".join(part for part in parts if part)))

    def figure(self, name: str, figure, caption: str, alt: str) -> str:
        self.figures.mkdir(exist_ok=True)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", facecolor="white")
        data = buffer.getvalue()
        (self.figures / f"{name}.png").write_bytes(data)
        width, height = (int.from_bytes(data[i : i + 4], "big") for i in (16, 20))
        source = f"data:image/png;base64,{base64.b64encode(data).decode('ascii')}"
        return (
            f'<figure><img src="{source}" width="{width}" height="{height}" '
            f'alt="{escape(alt)}"><figcaption>{escape(caption)}</figcaption></figure>'
        )


def _summary(page: _Page, results: Results, baseline: str | None) -> None:
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
        _wide(tables.headline_html(results, baseline=baseline)),
        _note(bold if comparison else ""),
        _paragraph(words),
        _wide(comparison),
        _note(rule if comparison else ""),
    )
    if problems := figure_words.problem_words(results):
        items = "".join(f"<li>{escape(text)}</li>" for text in problems)
        page.section("Problems", f'<div class="warn"><ul>{items}</ul></div>')


def _figures(page: _Page, results: Results, baseline: str | None) -> None:
    if not plots.available():
        hint = (
            "Figures need matplotlib: pip install 'ldro-jax[plots]', then write the report again."
        )
        page.section("Figures", f"<p>{escape(hint)}</p>")
        return
    split = report_split(results)

    def add(name, title, figure, words, caption, *more):
        alt = " ".join([f"{title}.", *words[:2]])
        page.section(title, _paragraph(words), page.figure(name, figure, caption, alt), *more)

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
            f"<details><summary>All values</summary>{_wide(details)}</details>" if details else "",
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
    runs = _table(("method", "hyperparameters", "seeds", "steps"), rows)
    device = results.device
    machine = " ".join(str(device[k]) for k in ("count", "platform", "kind") if device.get(k))
    versions = ", ".join(f"{name} {version}" for name, version in results.versions.items())
    facts = [("device", machine or "not recorded"), ("versions", versions or "not recorded")]
    return _wide(runs) + _wide(_table(("", ""), facts))


def _html(results: Results, page: _Page) -> str:
    title = f"{results.experiment}: average and worst task"
    count = len(group_runs(results.runs))
    seeds = len({run.seed for run in results.runs})
    facts = (
        f"{_count(count, 'method')}, {_count(len(results.task_names), 'task')}, "
        f"{_count(seeds, 'seed')}; {results.metric}, "
        f"{'higher' if results.higher_is_better else 'lower'} is better."
    )
    links = "\n".join(f'<a href="#{slug}">{escape(text)}</a>' for slug, text, _ in page.sections)
    body = "\n".join(
        f'<section id="{slug}">\n<h2>{escape(text)}</h2>\n{content}\n</section>'
        for slug, text, content in page.sections
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n"
        f"<p>{escape(' '.join(filter(None, [results.description.strip(), facts])))}</p>\n"
        f"<nav>{links}</nav>\n{body}\n</body>\n</html>\n"
    )


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = "".join(f"<th>{escape(text)}</th>" for text in header)
    head = f"<thead><tr>{head}</tr></thead>" if any(header) else ""
    lines = ("".join(f"<td>{escape(text)}</td>" for text in row) for row in rows)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table>{head}<tbody>{body}</tbody></table>"


def _wide(table: str) -> str:
    return f'<div class="wide">{table}</div>' if table else ""


def _note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>' if text else ""


def _paragraph(sentences: Sequence[str]) -> str:
    return f"<p>{escape(' '.join(sentences))}</p>" if sentences else ""


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "section"

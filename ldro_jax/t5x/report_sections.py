"""Parts of the report that only T5X's runs have: their evaluation, machines and configuration."""

import re
import statistics
from collections.abc import Sequence
from typing import Any

from ldro_jax.records.results import Results
from ldro_jax.t5x.summaries import WHOLE, Summaries

_EVALUATION = (
    "Perplexities are the exponential of the cross entropy of a token, without z-loss. Of each run "
    "its best evaluation is shown, the earliest of equals, by the {} loss over tasks; values of "
    "later steps are left out."
)
_TOKENS = "Tokens of one evaluation; perplexities at the best step, means over seeds."
_MACHINES = "As recorded when a run evaluated, from that step on."


def description(runs: Sequence[Summaries], tokens: Sequence[int]) -> str:
    """A paragraph on how much was evaluated.

    Args:
      runs: all runs, those of one task alone among them.
      tokens: of each task; empty if it is not known.
    """
    text = "Language models that T5X trained. "
    partial: dict[str, list[str]] = {}
    for run in runs:
        if run.coverage != WHOLE:
            partial.setdefault(run.coverage, []).append(run.model_dir)
    if partial:
        parts = [f"{coverage} ({', '.join(where)})" for coverage, where in partial.items()]
        text += f"Perplexities are not over the whole {runs[0].split} split: {'; '.join(parts)}."
    else:
        text += f"Perplexities are over the whole {runs[0].split} split."
    return text + (f" {sum(tokens):,} tokens were evaluated." if tokens else "")


def sections(record: Results, runs: Sequence[Summaries]) -> list[tuple[str, str, Any]]:
    """Tables for :func:`ldro_jax.reporting.write_report`: titles, captions, and rows of texts.

    The runs have the order of the record that was made of them.
    """
    rows = [["run", "split", "evaluated on", "best step", "its checkpoint", "parameters"]]
    # The evaluations of a run end with its best one.
    for label, run, read in zip(_labels(record), runs, record.runs, strict=True):
        step = read.evaluations[-1].step
        kept = "there" if run.has_checkpoint(step) else "not there"
        size = f"{run.parameters:,}" if run.parameters else "–"
        rows.append([label, run.split, run.coverage, str(step), kept, size])
    return [
        ("Evaluation", _EVALUATION.format(record.select_by), rows),
        ("Tokens and perplexities", _TOKENS, _by_task(record)),
        ("Devices and versions", _MACHINES, _machines(record, runs)),
    ]


def configurations(record: Results, runs: Sequence[Summaries]) -> str:
    """The ``config.gin`` of the first run, and the lines in which the others differ."""
    labels = _labels(record)
    first = _lines(runs[0].config_text)
    text = f"# {labels[0]}\n{runs[0].config_text}"
    for label, run in zip(labels[1:], runs[1:], strict=True):
        if more := [line for line in _lines(run.config_text) if line not in first]:
            text += "\n".join([f"\n# {label}, where it differs", *more, ""])
    return text


def _labels(record: Results) -> list[str]:
    return [f"{run.method}, seed {run.seed}" for run in record.runs]


def _lines(text: str) -> list[str]:
    # gin breaks long lines with a backslash.
    return [line for line in re.sub(r"\\\n\s*", "", text).splitlines() if " = " in line]


def _by_task(record: Results) -> list[list[str]]:
    methods = list(dict.fromkeys(run.method for run in record.runs))
    tokens = record.data["tokens"]
    rows = [["task", "tokens", *methods]]
    for name in record.task_names:
        values = [
            statistics.fmean(
                run.evaluations[-1].per_task[name] for run in record.runs if run.method == method
            )
            for method in methods
        ]
        count = f"{tokens[name]:,}" if name in tokens else "–"
        rows.append([name, count, *(f"{value:#.4g}" for value in values)])
    return rows


def _machines(record: Results, runs: Sequence[Summaries]) -> list[list[str]]:
    # The labels of the runs by what is known of a machine.
    made_on: dict[tuple[str, ...], list[str]] = {}
    for label, run in zip(_labels(record), runs, strict=True):
        for machine in run.file.machines if run.file else []:
            device = machine["device"]
            what = f"{device['count']} × {device['kind']} ({device['platform']})"
            what += f" on {device['hosts']} hosts" if device.get("hosts", 1) > 1 else ""
            mesh = " × ".join(f"{size} {axis}" for axis, size in machine["mesh"].items())
            versions = ", ".join(f"{name} {v}" for name, v in machine["versions"].items())
            made_on.setdefault((f"step {machine['step']}", what, mesh, versions), []).append(label)
        if not run.file:
            unknown = ("–", "not recorded", "–", "by T5X's own trainer")
            made_on.setdefault(unknown, []).append(label)
    rows = [["; ".join(labels), *facts] for facts, labels in made_on.items()]
    return [["runs", "from", "devices", "mesh", "versions"], *rows]

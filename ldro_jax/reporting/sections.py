"""What the page of a report shows, in order, and the few sentences that it says.

A method is called better than another only where the paired difference over seeds is clear (see
`statistics`). Anything else is called not separated, whoever has the higher mean, and whoever wrote
the method.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ldro_jax.records.shown import count
from ldro_jax.reporting import diagnostics, sweeps, tables
from ldro_jax.reporting.comparison import Comparison
from ldro_jax.reporting.figures import balance, interaction, pareto, style, training
from ldro_jax.reporting.figures import relative as relative_figure
from ldro_jax.reporting.page import Block, Picture, Section, slug
from ldro_jax.reporting.statistics import MIN_SEEDS, decimals_for, mean_and_std, sorted_out
from ldro_jax.runtime import errors

_RULE = (
    "± is the standard deviation over seeds; in a difference it is half the 95 % interval of the "
    "mean paired difference over common seeds (Student's t). A difference is called clear with at "
    f"least {MIN_SEEDS} common seeds and zero outside that interval, without correction for the "
    "number of comparisons. Bold: the best of its column, which need not be a clear difference. "
    "Seeds that stopped early are left out."
)
_MINIMUM = (
    "Worst task: in each seed the value of its worst task; mean over seeds. Which task that is may "
    "change from seed to seed, so that no single task need have a mean as bad as this."
)
_RELATIVE = (
    "The relative value of a task is 100 · (value − own) / own per cent, where own is the value of "
    "a model trained on this task alone; the average and the worst task are those of the tasks' "
    f"relative values. {tables.MONOLINGUAL}: the models of one task each."
)
_HYPERVOLUME = (
    "Hypervolume: the area of all pairs of average and worst value that some checkpoint reaches; "
    "larger is better. A method with more settings has an advantage where all are taken together; "
    "the second table, of one setting each, is fair in this. ± is half the 95 % interval of a mean "
    "over the seeds that all settings have. A frontier is picked on the split it is shown for: it "
    "is not what one chosen model would reach."
)
_CHOSEN = (
    "For each method and seed, one tested checkpoint of one setting is chosen by its validation "
    "values alone, the earliest of equals, and shown with its test values."
)


def of_page(
    comparison: Comparison, config_text: str, extra: Sequence[tuple[str, str, Any]]
) -> Iterator[Section]:
    """The sections of the page; see :func:`ldro_jax.reporting.write_report` for what is `extra`."""
    has_runs = bool(comparison.shown)
    if has_runs:
        yield _summary(comparison)
        yield from _relative(comparison)
        yield from _problems(comparison)
    else:
        yield Section("Results", [Block("text", "The record has no runs.")])
    for title, caption, content in extra:
        if isinstance(content, str):
            yield Section(title, [Block("trusted", content), Block("note", caption)])
        elif isinstance(content, list):
            table = tables.of_rows(content)
            yield Section(title, [Block("table", table), Block("note", caption)])
        else:
            yield _figure(slug(title), title, content, caption)
    if comparison.is_sweep:
        yield from _sweep(comparison)
    if has_runs:
        yield from _final(comparison)
        yield from _over_training(comparison)
    yield from _numbered(comparison.record.task_names)
    yield Section("How it was run", [Block("table", t) for t in tables.provenance(comparison)])
    yield Section("Configuration", [Block("code", config_text)])


def so_far(comparison: Comparison) -> Iterator[Section]:
    """The sections of an experiment that trains: those that call no method better than another.

    What the numbers so far aren't enough for is said to be missing.
    """
    for part in (_newest, _problems, _frontier, _over_training):
        try:
            yield from part(comparison)
        except Exception as error:
            yield Section("Not shown yet", [Block("note", errors.first_line(error))])


def _newest(comparison: Comparison) -> Iterator[Section]:
    if comparison.values.any:
        ends = {run.evaluations[-1].step for run in comparison.record.runs if run.evaluations}
        note = "Runs are at different steps, so which method is better can't be told yet."
        table = dataclasses.replace(tables.headline(comparison), best=())
        blocks = [Block("picture", _average_vs_worst(comparison)), Block("table", table)]
        notes = _notes(table.note, note if len(ends) > 1 else "")
        yield Section("Average and worst task", [*blocks, *notes])


def _frontier(comparison: Comparison) -> Iterator[Section]:
    if comparison.is_sweep:
        section = _frontiers(comparison, None, "Pareto frontiers")
        # Its tables say who is better.
        yield dataclasses.replace(
            section, blocks=[x for x in section.blocks if x.kind == "picture"]
        )


def introduction(comparison: Comparison) -> str:
    """What was compared, in a paragraph."""
    record = comparison.record
    counts = [count(len(comparison.methods), "method")]
    if comparison.is_sweep:
        counts.append(count(len(comparison.settings), "setting"))
    counts.append(count(len(record.task_names), "task"))
    counts.append(count(len({run.seed for run in record.runs}), "seed"))
    facts = f"{', '.join(counts)}; {record.metric}, {comparison.values.better}."
    if lower := comparison.values.lower_tasks:
        facts += f" Lower is better for {', '.join(lower)}."
    return " ".join(filter(None, [record.description.strip(), facts]))


def verdict(comparison: Comparison) -> str:
    """Who clearly has a better worst task than the baseline, and what it costs: one sentence."""
    values, baseline = comparison.values, comparison.baseline.label
    found = {}
    for which in ("worst", "average"):
        for label, difference in values.differences(which).items():
            found.setdefault(label, {})[which] = difference
    if not found:
        return ""
    most = max(d.n for both in found.values() for d in both.values())
    if most < MIN_SEEDS:
        return f"With {count(most, 'common seed')} no difference to {baseline} is clear."

    def where(which: str, said: str, among: Iterable[str] = found) -> list[str]:
        return [m for m in among if found[m][which].verdict(values.higher_is_better) == said]

    if better := where("worst", "better"):
        paid = where("average", "worse", better)
        has = "has" if len(better) == 1 else "have"
        text = f"{_listed(better)} {has} a clearly better worst task than {baseline}"
        if not paid:
            return f"{text}, at no clear cost to the average."
        if len(paid) == len(better):
            return f"{text}, and a clearly worse average."
        return f"{text}; {_listed(paid)} for a clearly worse average."
    text = f"No method has a clearly better worst task than {baseline}"
    for which, said, words in (
        ("average", "better", "a clearly better average"),
        ("worst", "worse", "a clearly worse worst task"),
    ):
        if some := where(which, said):
            text += f"; {_listed(some)} {'has' if len(some) == 1 else 'have'} {words}"
    return f"{text}."


def _listed(names: Sequence[str]) -> str:
    if len(names) > 4:
        return f"{len(names)} methods"
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def conclusion(comparison: Comparison) -> str:
    """Who has the best worst task, and what the seeds show against the baseline."""
    values = comparison.values
    worst = {s.label: v for s, v in zip(values.settings, values.spreads("worst"), strict=True)}
    finite = {label: v for label, v in worst.items() if math.isfinite(v.mean)}
    if not finite:
        return "No run finished with an evaluation, so there is nothing to compare."
    averages = values.spreads("average")
    decimals = decimals_for(v.mean for v in [*finite.values(), *averages])
    if len(worst) == 1:
        ((label, value),) = worst.items()
        return (
            f"{label} is the only method: its average {values.split} {values.metric} is "
            f"{mean_and_std(averages[0], decimals)}, its worst task's "
            f"{mean_and_std(value, decimals)}."
        )
    best = max(finite.values(), key=lambda v: values.sign * v.mean)
    names = [label for label, v in finite.items() if v.mean == best.mean]
    text = (
        f"{' and '.join(names)} {'has' if len(names) == 1 else 'share'} the best mean worst-task "
        f"{values.metric} ({values.split}): {mean_and_std(best, decimals)} over "
        f"{count(best.n, 'seed')}. Against {comparison.baseline.label}"
    )
    for which, name in (("worst", ", on the worst task"), ("average", "; on the average")):
        text += f"{name} – {sorted_out(values.differences(which), values.higher_is_better)}"
    if any(v.n < MIN_SEEDS for v in worst.values()):
        text += f". With fewer than {MIN_SEEDS} finished seeds no difference is clear"
    return f"{text}."


def selection(comparison: Comparison) -> str:
    """Which setting of each method the page shows, and why that one; "" without a sweep."""
    if not comparison.is_sweep:
        return ""
    chosen = {setting.place for setting in comparison.shown}
    several = [s for settings in comparison.methods.values() if len(settings) > 1 for s in settings]
    names = [setting.label for setting in several if setting.place in chosen]
    rows = comparison.evaluations
    rows = rows[(rows.metric == comparison.record.metric) & ~rows.stopped]
    if (rows.split == "validation").any():
        tested = comparison.values.split == "test"
        why = (
            f"for which {sweeps.RULES[comparison.record.select_by]} was best on validation, mean "
            "over seeds, "
            f"{'at the last checkpoint that was tested' if tested else 'at the end of training'}"
        )
    else:
        why = "that comes first in the record, as no run finished with a validation value"
    return (
        "Except in the sections on all settings, each method is shown with the setting "
        f"{why}: {', '.join(names)}."
    )


def problems(comparison: Comparison) -> list[str]:
    """Runs that stopped early, and losses, interactions and weights that were not found."""
    sentences = []
    for setting in comparison.settings:
        for run in setting.runs:
            who = f"{setting.label}, seed {run.seed}"
            if run.stopped is not None:
                sentences.append(f"{who} stopped before step {run.num_steps}: {run.stopped}")
            for what, counts in [
                ("losses that were not finite", run.nonfinite_losses),
                ("interactions that could not be measured", run.unmeasured_interactions),
                ("losses below zero, for which it has no meaning", run.negative_losses),
            ]:
                if tasks := ", ".join(f"{task} ({n})" for task, n in counts.items() if n):
                    sentences.append(f"{who} had {what}: {tasks}.")
            if run.unsolved_steps:
                sentences.append(
                    f"{who} had steps in which the method found no weights, because its solver had "
                    f"no solution or they were not finite: {run.unsolved_steps} of "
                    f"{run.early_stop or run.num_steps}."
                )
    return sentences


def _problems(comparison: Comparison) -> Iterator[Section]:
    if sentences := problems(comparison):
        yield Section("Problems", [Block("warnings", sentences)])


def _notes(*texts: str) -> list[Block]:
    return [Block("note", text) for text in texts if text]


def _summary(comparison: Comparison) -> Section:
    blocks = [Block("verdict", text)] if (text := verdict(comparison)) else []
    if comparison.values.any:
        blocks.append(Block("picture", _average_vs_worst(comparison)))
    if text := selection(comparison):
        blocks.append(Block("note", text))
    table = tables.headline(comparison)
    blocks += [Block("table", table), *_notes(table.note)]
    if said := tables.methods(comparison):
        blocks.append(Block("table", said))
    blocks.append(Block("note", _MINIMUM))
    blocks.append(Block("text", conclusion(comparison)))
    if comparison.values.others:
        blocks += [Block("table", tables.paired(comparison)), Block("note", _RULE)]
    return Section("Summary", blocks)


def _average_vs_worst(comparison: Comparison) -> Picture:
    caption = (
        "Average against worst task. Further "
        f"{'up and right' if comparison.values.higher_is_better else 'down and left'} is better. "
        "Small points are seeds, the large point their mean, bars one standard deviation."
    )
    if any(len(comparison.checkpoints(s)) > 1 for s in comparison.shown):
        caption += " Thin lines join the checkpoints that no other checkpoint beats on both."
    return Picture("average_vs_worst", balance.average_vs_worst(comparison).figure, caption)


def _relative(comparison: Comparison) -> Iterator[Section]:
    table = tables.relative(comparison)
    if table is None:
        return
    left_out = [name for name, value in comparison.own.items() if not math.isfinite(value)]
    note = _RELATIVE
    if left_out:
        note += f" Relative values leave out, without own models: {', '.join(left_out)}."
    title = "Relative to one model for each task"
    blocks = [Block("table", table), Block("note", note)]
    if comparison.values.any:
        better = "worse" if comparison.values.higher_is_better else "better"
        caption = (
            "Mean over seeds; the dashed line is a model trained on the task alone. Points below "
            f"it are {better} than that."
        )
        if comparison.record.task_sizes:
            caption += " The task with the most training data is at the left."
        figure = relative_figure.relative_by_task(comparison)
        blocks.append(Block("picture", Picture("relative_by_task", figure, caption)))
    yield Section(title, blocks)


def _sweep(comparison: Comparison) -> Iterator[Section]:
    yield _frontiers(comparison, None, "Pareto frontiers")
    by = comparison.record.select_by
    if any(map(len, sweeps.choices(comparison, by).values())):
        blocks = [Block("table", tables.chosen(comparison, rule)) for rule in (by, "balance")]
        blocks.append(Block("note", _CHOSEN))
    else:
        blocks = [Block("text", "No checkpoint was evaluated on both validation and test.")]
    yield Section("Chosen on validation", blocks)
    if any(len(comparison.rows(s, comparison.progress_split)) for s in comparison.settings):
        caption = (
            "Mean over seeds, faint, and its running exponential average (0.6 of the last average, "
            "0.4 of the new value; on a logarithmic axis, of logarithms). Settings go from dark to "
            "light in the order of the record."
        )
        figure = pareto.worst_over_time(comparison)
        yield _figure("worst_over_time", "Worst task over time", figure, caption)
    for metric in sweeps.further_metrics(comparison):
        yield _frontiers(comparison, metric, f"Pareto frontiers: {metric}")


def _frontiers(comparison: Comparison, metric: str | None, title: str) -> Section:
    frontiers, blocks = sweeps.frontiers(comparison, metric), []
    if any(len(cloud) for clouds in frontiers.clouds.values() for cloud in clouds.values()):
        caption = (
            f"All checkpoints of all settings, on {frontiers.split}, a panel per seed. Lines join "
            "those that no other checkpoint of the same method and seed beats on both axes; the "
            "rest are faint, and may lie outside."
        )
        name = "pareto_frontiers"
        name += "" if metric is None else f"_{slug(metric).replace('-', '_')}"
        blocks.append(Block("picture", Picture(name, pareto.pareto_frontiers(frontiers), caption)))
    for per_setting in (False, True):
        table = tables.hypervolumes(comparison, frontiers, per_setting=per_setting)
        blocks.append(Block("table", table))
    return Section(title, [*blocks, Block("note", _HYPERVOLUME)])


def _final(comparison: Comparison) -> Iterator[Section]:
    values = comparison.values
    if not values.any:
        return
    if comparison.has_many:
        caption = (
            "Points are means over seeds, bars one standard deviation, strokes the seeds; the "
            f"dashed line is {comparison.baseline.label}. The pictures below show it and the "
            f"{len(comparison.notable) - 1} others with the best worst task."
        )
        yield _figure("ranking", "All methods", balance.rankings(comparison), caption)
    is_many = len(comparison.task_order) > style.MANY
    spreads = "bars are one standard deviation over seeds"
    caption = (
        "Tasks from the baseline's worst (top) to its best; "
        f"{'at the left only some of their names' if is_many else spreads}. Of many tasks, about "
        "one in twenty looks clear by chance alone."
    )
    more = Block("more", tables.tasks(comparison))
    figure = balance.task_values(comparison).figure
    yield _figure("task_values", "Every task", figure, caption, more)


def _over_training(comparison: Comparison) -> Iterator[Section]:
    split = comparison.progress_split
    # One evaluation per run makes no curve.
    if any(comparison.rows(s, split).step.nunique() > 1 for s in comparison.shown):
        caption = f"Mean over seeds on the {split} split; the band is one standard deviation."
        figure = training.both_over_steps(comparison)
        yield _figure("metric_over_steps", "Over training", figure, caption)
    if training.moving_weights(comparison):
        caption = (
            "Mean over seeds; a line above the dashed one is a task that counts more than it would "
            "in the average loss."
        )
        figure = training.weights_over_time(comparison)
        yield _figure("weights_over_time", "Task weights", figure, caption)
    if training.signal(comparison):
        caption = (
            "How much of a task's squared minibatch gradient is its true gradient, and not noise; "
            "mean over seeds. A task that stays near zero from the start can't be learnt like "
            "this; one that gets there is learnt. Coloured: the least at the end."
        )
        figure = training.signal_over_time(comparison)
        yield _figure("signal_over_time", "Signal", figure, caption)
    if last := interaction.last_interaction(comparison):
        caption = (
            "Orange: a small step for one task also lowers the other's loss; purple: it raises it. "
            "Similar tasks stand side by side; bars are the lengths of the gradients."
        )
        figure = interaction.interaction_matrix(last, comparison.record.tasks)
        more = []
        if (table := diagnostics.table(comparison)) is not None:
            more = [Block("table", table), Block("note", diagnostics.CAPTION)]
        yield _figure("interaction_matrix", "Interaction of tasks", figure, caption, *more)
    seconds = [
        tables.step_seconds(s).mean for s in (comparison.baseline, *comparison.values.others)
    ]
    if math.isfinite(seconds[0]) and any(map(math.isfinite, seconds[1:])):
        caption = "Shorter is cheaper; the dashed line is the baseline, bars a standard deviation."
        figure = balance.step_time(comparison).figure
        yield _figure("step_time", "Time per step", figure, caption)


def _numbered(task_names: Sequence[str]) -> Iterator[Section]:
    """The tasks that pictures can't call by their names."""
    labels = style.task_labels(task_names)
    if rows := [(label, name) for name, label in labels.items() if label != name]:
        note = "No font here has the letters of these names, so pictures show the tasks' numbers."
        table = tables.of_rows([("in pictures", "task"), *rows])
        yield Section("Tasks by number", [Block("note", note), Block("table", table)])


def _figure(name: str, title: str, figure: Any, caption: str, *more: Block) -> Section:
    return Section(title, [Block("picture", Picture(name, figure, caption)), *more])

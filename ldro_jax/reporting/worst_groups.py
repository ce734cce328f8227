"""What the report of an experiment on groups says: average and worst group, and how chosen."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ldro_jax.records.results import Results, Run
from ldro_jax.reporting.statistics import interval, number, with_interval

# What each group counts in an average.
Shares = Mapping[str, float]


class Groups(NamedTuple):
    """What the accuracies of groups are put together to.

    Attributes:
      names: of the groups.
      validation: shares of the groups on validation.
      test: those on the test set.
      training: those in training; ``None`` where they aren't known.
      classes: for each class, the shares of the groups on validation in its accuracy.
    """

    names: Sequence[str]
    validation: Shares
    test: Shares
    training: Shares | None
    classes: Sequence[Shares]


class Chosen(NamedTuple):
    """One approach with the setting and the checkpoints that were chosen.

    Attributes:
      setting: of all seeds.
      steps: of the checkpoint of each seed.
      tested: by seed, the accuracy of each group at its checkpoint.
    """

    setting: Mapping[str, Any]
    steps: Mapping[int, int]
    tested: Mapping[int, Mapping[str, float]]


def sections(
    record: Results, groups: Mapping[int, Groups], knows: Mapping[str, str]
) -> list[tuple[str, str, Any]]:
    """Sections for :func:`ldro_jax.reporting.write_report`.

    Args:
      record: the approaches as methods, the groups among the tasks.
      groups: by seed, how their accuracies are put together.
      knows: of each approach, what it knows of the groups.
    """
    shown = {
        rule: x for rule, x in _RULES.items() if rule != "worst group" or _known(record, groups)
    }
    best = {rule: {way: chosen(record, way, groups, rule) for way in knows} for rule in shown}
    found: list[tuple[str, str, Any]] = [
        (title, _CAPTION.format(best=what), _table(groups, knows, best[rule]))
        for rule, (title, what) in shown.items()
    ]
    first, *_ = best
    return [
        *found,
        ("Every group", f"{_EVERY} Chosen by the {first}.", _every(groups, best[first])),
        ("What was chosen", f"By the {first}. {_LEFT_OUT}", _settings(best[first])),
    ]


# Titles, and what is best on validation.
_RULES = {
    "worst group": ("Worst group and average", "worst group"),
    "average": ("Chosen by the average", "average over all examples, which needs no groups,"),
    "worst class": ("Chosen by the worst class", "worst class, which needs no groups,"),
}


def _known(record: Results, groups: Mapping[int, Groups]) -> bool:
    """Whether each group has a value on validation."""
    names = next(iter(groups.values())).names
    held_out = (e for run in record.runs for e in run.evaluations if e.split == "validation")
    return all(math.isfinite(e.per_task[name]) for e in held_out for name in names)


_CAPTION = (
    "On the test set. Of each approach the setting and the checkpoint of each seed that have the "
    "best {best} on validation; one setting for all seeds, by the mean of their best checkpoints, "
    "of those with the fewest seeds that ended early (the summary above is of the end of training, "
    "and its average the plain mean of the groups). Average: over all examples of the test set. By "
    "training shares: the mean of the groups' accuracies by their shares in training, as most "
    "papers print it. ± is half the 95 % interval of the mean over seeds (Student's t), and so are "
    "the differences, which are paired by seed with the first approach."
)
_LEFT_OUT = "Seeds that ended early are left out."
_EVERY = "Accuracy on the test set, mean over seeds."


def _criteria(groups: Groups) -> dict[str, Callable[[Mapping[str, float]], float]]:
    """What checkpoints are chosen by, of the accuracies of the groups on validation."""
    return {
        "worst group": lambda values: min(values[name] for name in groups.names),
        "average": lambda values: mean(groups.validation, values),
        "worst class": lambda values: min(mean(shares, values) for shares in groups.classes),
    }


def mean(shares: Shares, values: Mapping[str, float]) -> float:
    """The mean of the groups' values, each by its share."""
    return math.fsum(share * values[name] for name, share in shares.items())


def chosen(record: Results, method: str, groups: Mapping[int, Groups], rule: str) -> Chosen | None:
    """The setting and the checkpoints of a method that are best on validation.

    The earliest of equal checkpoints, and the first of equal settings. Runs that ended early are
    left out, and a setting with fewer runs than others isn't chosen, since it may lack the seeds
    that do worst. Without any run the result is ``None``.

    Args:
      record: of all runs.
      method: its name.
      groups: by seed, how accuracies are put together.
      rule: "worst group", "average" or "worst class".
    """
    settings: dict[str, list[Run]] = {}
    for run in record.runs:
        if run.method == method and run.stopped is None:
            settings.setdefault(repr(dict(run.hyperparameters)), []).append(run)
    found: list[tuple[tuple[int, float], Chosen]] = []
    for runs in settings.values():
        best, steps, tested = [], {}, {}
        for run in runs:
            ours = [e for e in run.evaluations if e.metric == record.metric]
            test = {e.step: e.per_task for e in ours if e.split == "test"}
            of = _criteria(groups[run.seed])[rule]
            values = {e.step: of(e.per_task) for e in ours if e.split == "validation"}
            step = max(values, key=lambda step: (values[step], -step))
            best.append(values[step])
            steps[run.seed], tested[run.seed] = step, test[step]
        rank = len(runs), float(np.mean(best))
        found.append((rank, Chosen(runs[0].hyperparameters, steps, tested)))
    # The first of equals.
    return max(found, key=lambda one: one[0])[1] if found else None


def _table(
    groups: Mapping[int, Groups], knows: Mapping[str, str], best: Mapping[str, Chosen | None]
) -> list[list[str]]:
    columns = ["average", "worst group"]
    if all(each.training is not None for each in groups.values()):
        columns.append("by training shares")
    first, *_ = knows
    values = {way: _values(groups, mine) for way, mine in best.items()}
    rows = [["approach", "knows", *columns, *(f"{name} − {first}’s" for name in columns[:2])]]
    for way, mine in values.items():
        cells = [
            with_interval(interval(x[name] for x in mine.values()), signed=False)
            for name in columns
        ]
        common = [seed for seed in mine if seed in values[first] and way != first]
        cells += [
            with_interval(interval(mine[s][name] - values[first][s][name] for s in common))
            if common
            else ""
            for name in columns[:2]
        ]
        rows.append([way, knows[way], *cells])
    return rows


def _values(groups: Mapping[int, Groups], best: Chosen | None) -> dict[int, dict[str, float]]:
    """By seed, the columns of the table."""
    found = {}
    for seed, tested in (best.tested if best else {}).items():
        of = groups[seed]
        found[seed] = {
            "average": mean(of.test, tested),
            "worst group": min(tested[name] for name in of.names),
            "by training shares": math.nan if of.training is None else mean(of.training, tested),
        }
    return found


def _every(groups: Mapping[int, Groups], best: Mapping[str, Chosen | None]) -> list[list[str]]:
    names = next(iter(groups.values())).names
    there = {way: mine for way, mine in best.items() if mine is not None}
    rows = [["group", *there]]
    for name in names:
        values = ([x[name] for x in mine.tested.values()] for mine in there.values())
        rows.append([name, *(number(float(np.mean(x))) for x in values)])
    return rows


def _settings(best: Mapping[str, Chosen | None]) -> list[list[str]]:
    rows = [["approach", "setting", "mean step", "seeds"]]
    for way, mine in best.items():
        if mine is None:
            rows.append([way, "", "", "0"])
            continue
        setting = ", ".join(f"{name} {value}" for name, value in mine.setting.items())
        steps = number(float(np.mean(list(mine.steps.values()))), 0)
        rows.append([way, setting, steps, str(len(mine.steps))])
    return rows

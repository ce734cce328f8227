"""Δp: how much better a method is than another one or than models of one task each, in per cent.

Values of tasks with units and directions of their own have no mean that says anything; differences
relative to what each task has otherwise do::

    Δp = 100 / N Σ_t 1 / K_t Σ_k s_tk (M_tk − B_tk) / |B_tk|

where M_tk is the value of metric k of task t and B_tk what it is compared with. The sign s_tk is −1
where lower is better, so more is better. The papers divide by B_tk, which is the same for positive
values; ``|B_tk|`` keeps the sign right where values are below zero.

References:
  Maninis, Radosavovic and Kokkinos, "Attentive Single-Tasking of Multiple Tasks", CVPR 2019.
  Vandenhende et al., "Multi-Task Learning for Dense Prediction Tasks: A Survey", TPAMI 2021.
"""

import dataclasses
import json
import math
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ldro_jax.records.json_types import plain

if TYPE_CHECKING:
    from ldro_jax.records.results import Evaluation, Results, Run

_SPLITS = ("test", "validation", "train")
# What can't be compared is named so far.
_NAMED = 3
Key = TypeVar("Key", bound=Hashable)


@dataclasses.dataclass(frozen=True)
class DeltaP:
    """The mean relative difference of some methods to a baseline; see the module.

    Attributes:
      against: what they are compared with.
      split: where.
      metrics: what was measured.
      values: by method, or setting, and by seed of each finished run, Δp in per cent. It is NaN if
        a value of the run isn't finite, or nothing can be compared.
      left_out: the tasks, with the metric where there are several, that don't count, as the
        baseline's value is 0 or not finite.
    """

    against: str
    split: str
    metrics: Sequence[str]
    values: Mapping[Any, Mapping[int, float]]
    left_out: Sequence[str]

    @property
    def means(self) -> dict[Any, float]:
        """The mean over seeds of each method; NaN without a finished run."""
        of_seeds = {name: list(by_seed.values()) for name, by_seed in self.values.items()}
        return {name: float(np.mean(v)) if v else math.nan for name, v in of_seeds.items()}

    @property
    def note(self) -> str:
        """What the numbers are, for a line below a table."""
        text = f"Δp: mean relative difference of tasks to {self.against}, in %; higher is better."
        if self.left_out:
            names = ", ".join(self.left_out[:_NAMED])
            more = len(self.left_out) - _NAMED
            names += f" and {more} more" if more > 0 else ""
            text += f" Left out, since theirs is 0 or not finite: {names}."
        return text


def delta_p(results: "Results", *, baseline: str | None = None) -> DeltaP | None:
    """Compares all settings of a record with models of one task each, or with one of them.

    Args:
      results: the record. With ``references`` of the split that is reported, its metric is compared
        with these; otherwise all metrics are, with the mean over seeds of the baseline.
      baseline: the name of a method, or the label of a setting; by default the one that trains on
        the average loss, going by its name, or else the first.

    Returns:
      Δp by label, which is the method, with what differs where it has several settings; ``None`` if
      there is nothing to compare with.

    Raises:
      ValueError: if there is no such method.
    """
    by_label = groups(results.runs)
    if not by_label:
        return None
    names = [(label, runs[0].method) for label, runs in by_label.items()]
    base = list(by_label)[choose(names, baseline)]
    return of_groups(results, by_label, base, split_of(results))


def of_groups(
    results: "Results",
    by_name: Mapping[Key, Sequence["Run"]],
    baseline: Key,
    split: str,
    against: str | None = None,
) -> DeltaP | None:
    """Compares groups of runs, each of one setting; see :func:`delta_p`.

    Args:
      results: the record that they are of.
      by_name: the groups.
      baseline: the name of one of them.
      split: where.
      against: how texts call the baseline, by default by its name.
    """
    own = results.references.get(split, {})
    has_own = any(map(math.isfinite, own.values()))
    if not has_own and len(by_name) < 2:
        return None
    names = list(results.task_names)
    found = {e.metric for runs in by_name.values() for r in runs for e in r.evaluations}
    metrics = [results.metric] if has_own else [results.metric, *sorted(found - {results.metric})]
    values = {
        name: {r.seed: _values(r, split, metrics, names) for r in runs if r.stopped is None}
        for name, runs in by_name.items()
    }
    if has_own:
        base, against = np.array([[own.get(n, math.nan) for n in names]]), "models of one task each"
    else:
        ours = list(values[baseline].values())
        base = np.mean(ours, axis=0) if ours else np.full((len(metrics), len(names)), math.nan)
        against = against or str(baseline)
    directions = [results.direction(metric) for metric in metrics]
    signed = np.array([signs(direction, names) for direction in directions])
    places = np.argwhere(~_comparable(base))
    return DeltaP(
        against=against,
        split=split,
        metrics=metrics,
        values={
            name: {seed: mean_difference(x, base, signed) for seed, x in by_seed.items()}
            for name, by_seed in values.items()
        },
        left_out=[names[t] + (f" ({metrics[k]})" if len(metrics) > 1 else "") for k, t in places],
    )


def mean_difference(values: np.ndarray, baseline: np.ndarray, signs: np.ndarray) -> float:
    """Δp of some values.

    Args:
      values: of K metrics of N tasks, ``[K, N]``.
      baseline: what they are compared with, ``[K, N]``. What is 0 or not finite isn't compared.
      signs: 1 where higher is better, else -1, ``[K, N]``.

    Returns:
      In per cent; NaN if nothing can be compared, or a value that is compared isn't finite.

    Example:
      >>> import numpy as np
      >>> values, baseline = np.array([[0.6, 3.0]]), np.array([[0.5, 4.0]])
      >>> round(mean_difference(values, baseline, np.array([[1.0, -1.0]])), 6)
      22.5
    """
    compared = _comparable(baseline)
    by = np.where(compared, np.abs(baseline), 1.0)
    differences = np.where(compared, signs * (values - np.where(compared, baseline, 0.0)) / by, 0.0)
    counts = compared.sum(axis=0)
    if not counts.any():
        return math.nan
    each = differences.sum(axis=0)[counts > 0] / counts[counts > 0]
    found = 100 * float(np.mean(each))
    return found if math.isfinite(found) else math.nan


def _comparable(baseline: np.ndarray) -> np.ndarray:
    return np.isfinite(baseline) & (baseline != 0)


def _values(
    run: "Run", split: str, metrics: Sequence[str], task_names: Sequence[str]
) -> np.ndarray:
    """The final values of a run, ``[K, N]``, NaN where there are none."""
    ends = [last(run, split, metric) for metric in metrics]
    return np.array(
        [[e.per_task.get(n, math.nan) if e else math.nan for n in task_names] for e in ends]
    )


def signs(direction: bool | Mapping[str, bool], task_names: Sequence[str]) -> np.ndarray:
    """1 for each task whose values are better the higher they are, else −1, ``[N]``."""
    if not isinstance(direction, Mapping):
        return np.full(len(task_names), 1.0 if direction else -1.0)
    return np.array([1.0 if direction[name] else -1.0 for name in task_names])


def better(direction: bool | Mapping[str, bool]) -> str:
    """Which averages and worst values of a metric are better, in words."""
    if isinstance(direction, Mapping):
        return "values with a minus where lower is better"
    return f"{'higher' if direction else 'lower'} is better"


def split_of(results: "Results") -> str:
    """The split to report: "test" if a finished run has it, else "validation", else "train"."""
    finished = [run for run in results.runs if run.stopped is None]
    splits = {e.split for run in finished for e in run.evaluations if e.metric == results.metric}
    return next((name for name in _SPLITS if name in splits), "test")


def last(run: "Run", split: str, metric: str) -> "Evaluation | None":
    """The last evaluation of a run that reached its end."""
    if run.stopped is not None:
        return None
    ours = [e for e in run.evaluations if (e.split, e.metric) == (split, metric)]
    return max(ours, key=lambda e: e.step, default=None)


def groups(runs: Iterable["Run"]) -> dict[str, list["Run"]]:
    """Runs of one setting, one for each seed, in order of first appearance.

    They go by the method, with the hyperparameters that differ where it has several settings. Of
    two runs with the same setting and seed the last counts.
    """
    by_setting: dict[tuple[str, str], dict[int, Run]] = {}
    for run in runs:
        key = (run.method, json.dumps(plain(run.hyperparameters), sort_keys=True))
        by_setting.setdefault(key, {})[run.seed] = run
    same = {key: list(by_seed.values()) for key, by_seed in by_setting.items()}
    choices: dict[str, list[Mapping[str, Any]]] = {}
    for (method, _), ours in same.items():
        choices.setdefault(method, []).append(ours[0].hyperparameters)
    found: dict[str, list[Run]] = {}
    for (method, settings), ours in same.items():
        label = _label(ours[0], choices[method])
        found[f"{label} {settings}" if label in found else label] = ours
    return found


def _label(run: "Run", choices: Sequence[Mapping[str, Any]]) -> str:
    names = dict.fromkeys(name for choice in choices for name in choice)
    shown = []
    for name in names:
        if len({json.dumps(plain(choice.get(name))) for choice in choices}) > 1:
            value = run.hyperparameters.get(name)
            shown.append(f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}")
    return f"{run.method} ({', '.join(shown)})" if shown else run.method


def choose(settings: Sequence[tuple[str, str]], name: str | None) -> int:
    """The place of the baseline: of that name, or the one on the average loss, or the first.

    Args:
      settings: the label and the method of each.
      name: of a method, or a label.

    Raises:
      ValueError: if there is no such method.
    """
    if name is not None:
        for place, setting in enumerate(settings):
            if name in setting:
                return place
        labels = ", ".join(repr(label) for label, _ in settings)
        raise ValueError(f"Expected the baseline to be one of {labels}; found {name!r}.")
    for place, (_, method) in enumerate(settings):
        if re.search(r"\b(average|uniform|equal|erm)\b", method.lower().replace("_", " ")):
            return place
    return 0

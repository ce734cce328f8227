"""The record of a run, stretch by stretch."""

import dataclasses
import functools
import itertools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging

from ldro_jax import transform
from ldro_jax.grouping import affinities as affinity_lib
from ldro_jax.records import results
from ldro_jax.training.engine import Trial
from ldro_jax.training.schedule import Schedule
from ldro_jax.training.step import TrainState
from ldro_jax.transform import diagnostics
from ldro_jax.weighting.signal import signal_shares

# The series that grow with each evaluation, beside the evaluations themselves.
_SERIES = ("weights", "signal", "losses", "diagnostics", "descent", "path")
# What a record takes from the state of a weighting.
_RECORDED = (
    *("weights", "interaction", "descent", "nonfinite", "nonfinite_streak"),
    *("negative", "unmeasured", "unsolved"),
)


def empty_run(trial: Trial, schedule: Schedule) -> results.Run:
    """The record of a run before its first step."""
    weighting = trial.method.weighting
    return results.Run(
        method=trial.method.name,
        hyperparameters=trial.method.settings(),
        seed=trial.seed,
        num_steps=schedule.train_steps,
        weighting=weighting if isinstance(weighting, str) else "",
    )


class Record:
    """The record of a run that is being trained; to extend it takes the same time at any length."""

    def __init__(self, run: results.Run) -> None:
        self._run = run
        self._evaluations = list(run.evaluations)
        self._steps: dict[str, list[int]] = {}
        self._values: dict[str, list[np.ndarray]] = {}
        for name in _SERIES:
            if (series := getattr(run, name)) is not None:
                self._append(name, series.steps.tolist(), series.values)

    @property
    def label(self) -> str:
        """The method and the seed."""
        return f"{self._run.method}, seed {self._run.seed}"

    @property
    def stopped(self) -> str | None:
        """The error that ended the run before its last step, or None."""
        return self._run.stopped

    @property
    def is_going(self) -> bool:
        """Whether the run hasn't ended before its last step."""
        return self._run.stopped is None and self._run.early_stop is None

    @property
    def run(self) -> results.Run:
        """The record so far."""
        series = {n: results.Series(self._steps[n], np.stack(v)) for n, v in self._values.items()}
        return dataclasses.replace(self._run, evaluations=list(self._evaluations), **series)

    @property
    def latest(self) -> list[results.Evaluation]:
        """The evaluations of the last step, of all splits and metrics."""
        step = self._measured_at
        newest = itertools.takewhile(lambda e: e.step == step, reversed(self._evaluations))
        return list(newest)[::-1]

    @property
    def _measured_at(self) -> int | None:
        return self._evaluations[-1].step if self._evaluations else None

    def last(self, name: str) -> np.ndarray:
        """The newest values of "weights", "losses" or "diagnostics"."""
        return self._values[name][-1]

    def go_on(self, schedule: Schedule, state: TrainState) -> None:
        """Takes the length of the run from a schedule, after the step of a state.

        What counted as stopped at the end of a shorter run may still recover.
        """
        run = dataclasses.replace(self._run, num_steps=schedule.train_steps)
        if run.stopped is not None and self._measured_at == int(state.step):
            streak = int(transform.find_state(state.opt_state).nonfinite_streak)
            if _reason_to_stop(run, run, int(state.step), streak, schedule) is None:
                run = dataclasses.replace(run, stopped=None)
        self._run = run

    def extend(
        self,
        schedule: Schedule,
        state: TrainState,
        *,
        task_names: Sequence[str],
        losses: jax.typing.ArrayLike,
        evaluations: Sequence[results.Evaluation],
        seconds_per_step: float,
        observed: np.ndarray | None = None,
        is_last: bool = False,
    ) -> None:
        """Adds one stretch of steps.

        The run is ``stopped`` if losses or weights never became finite again: in the last
        ``max_nonfinite_steps`` steps, or at the end of the run in the last two; and if a loss was
        below zero though the method needs positive losses.

        Args:
          schedule: says when a run without finite losses stops.
          state: after the stretch.
          task_names: of the N tasks.
          losses: mean training losses of the stretch, ``[N]``.
          evaluations: after the stretch, of all that is measured.
          seconds_per_step: the time of one step so far.
          observed: what the problem observed after each step of the stretch, ``[steps, D]``.
          is_last: whether the run ends here though it has steps left.
        """
        weighting = transform.find_state(state.opt_state)
        numbers, signal = diagnostics.numbers(weighting), signal_shares(weighting.weighting)
        fetched, numbers, signal, step, losses = _on_host(
            ({n: getattr(weighting, n) for n in _RECORDED}, numbers, signal, state.step, losses)
        )
        step, matrix = int(step), None
        if fetched["interaction"].any():
            matrix = results.Series([step], fetched["interaction"][None])
            self._append("descent", [step], [fetched["descent"]])
        tracked = affinity_lib.find_state(weighting.weighting)
        affinity = None
        if tracked is not None:
            affinity = results.Series([step], affinity_lib.means_of(tracked)[None])
        run = dataclasses.replace(
            self._run,
            early_stop=step if is_last else None,
            seconds_per_step=seconds_per_step,
            interaction=matrix,
            affinity=affinity,
            nonfinite_losses=_counts(task_names, fetched["nonfinite"]),
            unmeasured_interactions=_counts(task_names, fetched["unmeasured"]),
            negative_losses=_counts(task_names, fetched["negative"]),
            unsolved_steps=int(fetched["unsolved"]),
        )
        _warn(f"{self.label}, step {step}", self._run, run)
        streak = int(fetched["nonfinite_streak"])
        if stopped := _reason_to_stop(self._run, run, step, streak, schedule):
            logging.error("%s: %s", self.label, stopped)
        self._run = dataclasses.replace(run, stopped=stopped)
        self._append("weights", [step], [fetched["weights"]])
        if signal is not None:
            self._append("signal", [step], [signal])
        self._append("losses", [step], [np.asarray(losses)])
        in_order = np.array([numbers[name] for name in diagnostics.NAMES])
        self._append("diagnostics", [step], [in_order])
        if observed is not None:
            self._append("path", range(step - len(observed) + 1, step + 1), observed)
        self._evaluations += evaluations

    def begin(self, evaluations: Sequence[results.Evaluation]) -> None:
        """Adds what was measured before the first step."""
        self._evaluations += evaluations

    def _append(self, name: str, steps: Iterable[int], values: Iterable[np.ndarray]) -> None:
        self._steps.setdefault(name, []).extend(steps)
        self._values.setdefault(name, []).extend(values)


def _on_host(tree: Any) -> Any:
    """NumPy's copies of all arrays, asked for at once, as each transfer from a device is a wait."""
    if jax.default_backend() != "cpu":
        tree = jax.device_get(tree)
    return jax.tree.map(np.array, tree)


def _counts(task_names: Sequence[str], counts: np.ndarray) -> dict[str, int]:
    """The counts that aren't zero, by task."""
    pairs = zip(task_names, counts.tolist(), strict=True)
    return {name: n for name, n in pairs if n}


def _grown(counts: Mapping[str, int], before: Mapping[str, int]) -> dict[str, int]:
    return {name: n for name, n in counts.items() if n > before.get(name, 0)}


def _warn(who: str, before: results.Run, now: results.Run) -> None:
    """Logs which counts of a record have grown."""
    for what, name in [
        ("losses that are not finite so far, and steps left out for them", "nonfinite_losses"),
        (
            "interactions that could not be measured so far, because a gradient was not finite or "
            "its norm too large or too small",
            "unmeasured_interactions",
        ),
    ]:
        if grown := _grown(getattr(now, name), getattr(before, name)):
            tasks = ", ".join(f"{task} {n}" for task, n in grown.items())
            logging.warning("%s: %s: %s.", who, what, tasks)
    if now.unsolved_steps > before.unsolved_steps:
        logging.warning(
            "%s: the method found no weights in %d steps so far, because its solver had no "
            "solution or they were not finite.",
            *(who, now.unsolved_steps),
        )


def _reason_to_stop(
    before: results.Run, now: results.Run, step: int, streak: int, schedule: Schedule
) -> str | None:
    """Why a run ends here, None if it goes on; `streak` steps in a row had no finite losses."""
    # At the end two in a row are no accident of one batch, and there is nothing to wait for.
    enough = schedule.max_nonfinite_steps
    if step >= schedule.train_steps or now.early_stop is not None:
        enough = min(enough, step, 2)
    if streak >= enough:
        last = f"{streak} steps" if streak > 1 else "step"
        new = _grown(now.nonfinite_losses, before.nonfinite_losses)
        lost = now.unsolved_steps > before.unsolved_steps
        reasons = [
            *([f"the loss of a task was not finite ({', '.join(new)})"] if new else []),
            *(["the method's weights were not finite"] if lost else []),
        ]
        look = "the data of that task" if new else "what the method computes them from"
        return (
            f"stopped at step {step}: for the last {last} {' or '.join(reasons)}. Look at {look}, "
            "or try a smaller learning rate."
        )
    if now.negative_losses:
        # What goes on is no method's: the weights stand still in these steps.
        return (
            f"stopped at step {step}: the method has no meaning for losses below zero, but those "
            f"of {', '.join(now.negative_losses)} were. Subtract a lower bound of each loss, or "
            "take a method that only compares losses, such as group_dro or term."
        )
    return None


# What a run's newest numbers are told to: its step, and the numbers by name.
Tell = Callable[[int, dict[str, float]], None]


class Log(NamedTuple):
    """Where the numbers of a run go besides its record.

    Attributes:
      writer: of TensorBoard's events.
      tell: called with the same numbers.
    """

    writer: Any
    tell: Tell | None = None

    def write_scalars(self, step: int, names: tuple[str, ...], values: Sequence[float]) -> None:
        """Writes the scalars of one step, a value for each name."""
        self.writer.write_scalars(step, names, values)
        if self.tell is not None:
            self.tell(step, dict(zip(names, values, strict=True)))


def charts(splits: Iterable[str], metrics: Iterable[str]) -> dict[str, str]:
    """The charts that show all tasks at once in TensorBoard: patterns of names, by title."""
    measured = [f"{split}/{metric}" for metric in metrics for split in splits]
    of_tasks = {name: f"{re.escape(name)}/task/" for name in measured}
    return {"weight": "weight/", "train loss": "train loss/", **of_tasks}


def write_scalars(log: Log, record: Record, task_names: Sequence[str]) -> None:
    """Writes the newest numbers of a run."""
    latest = record.latest
    values = _values(latest)
    numbers, trained = {}, latest[-1].step > 0
    if trained:
        numbers = zip(diagnostics.NAMES, record.last("diagnostics").tolist(), strict=True)
        numbers = {name: x for name, x in numbers if math.isfinite(x)}
        values += [*record.last("weights").tolist(), *record.last("losses").tolist()]
    tasks = tuple(task_names) if trained else ()
    names = _scalar_names(_measured(latest), tuple(latest[-1].per_task), tuple(numbers), tasks)
    log.write_scalars(latest[-1].step, names, [*values, *numbers.values()])


def write_tested(log: Log, tested: Sequence[results.Evaluation]) -> None:
    """Writes what was measured once, when the training was over."""
    names = _scalar_names(_measured(tested), tuple(tested[0].per_task), (), ())
    log.write_scalars(tested[0].step, names, _values(tested))


def _measured(evaluations: Sequence[results.Evaluation]) -> tuple[tuple[str, str], ...]:
    return tuple((e.split, e.metric) for e in evaluations)


def _values(evaluations: Sequence[results.Evaluation]) -> list[float]:
    return [x for e in evaluations for x in (e.average, e.worst, *e.per_task.values())]


@functools.lru_cache(maxsize=16)
def _scalar_names(
    measured: tuple[tuple[str, str], ...],
    of: tuple[str, ...],
    numbers: tuple[str, ...],
    tasks: tuple[str, ...],
) -> tuple[str, ...]:
    names = []
    for split, metric in measured:
        of_each = (f"task/{name}" for name in of)
        names += [f"{split}/{metric}/{name}" for name in ("average", "worst", *of_each)]
    names += [f"{what}/{task}" for what in ("weight", "train loss") for task in tasks]
    return (*names, *(f"tasks/{name}" for name in numbers))


def progress_text(record: Record) -> str:
    """The newest values of a run, on validation where there is such a split, for a progress bar."""
    if not (latest := record.latest):  # where what was measured isn't wanted any more
        return record.stopped or "not evaluated"
    last = next((e for e in latest if e.split == "validation"), latest[0])
    return f"average {last.average:.3f}, worst {last.worst:.3f} ({last.worst_task})"

"""The record of a run, stretch by stretch."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import logging

from ldro_jax import diagnostics, transform
from ldro_jax.records import results
from ldro_jax.training.engine import Trial
from ldro_jax.training.schedule import Schedule
from ldro_jax.training.step import TrainState


def empty_run(trial: Trial, schedule: Schedule) -> results.Run:
    """The record of a run before its first step."""
    return results.Run(
        method=trial.method.name,
        hyperparameters=trial.method.settings(),
        seed=trial.seed,
        num_steps=schedule.train_steps,
    )


def extended(
    run: results.Run,
    task_names: Sequence[str],
    schedule: Schedule,
    state: TrainState,
    *,
    losses: jax.typing.ArrayLike,
    evaluations: Sequence[results.Evaluation],
    seconds_per_step: float,
    observed: np.ndarray | None = None,
) -> results.Run:
    """The record of a run, extended by one stretch of steps.

    Args:
      run: the record so far.
      task_names: N names.
      schedule: says when a run without finite losses stops.
      state: after the stretch.
      losses: mean training losses of the stretch, ``[N]``.
      evaluations: after the stretch.
      seconds_per_step: the time of one step so far.
      observed: what the problem observed after each step of the stretch, ``[steps, D]``.

    Returns:
      The record; it is ``stopped`` if losses or weights never became finite again: in the last
      ``max_nonfinite_steps`` steps, or at the end of the run in the last two; and if one was below
      zero though the method needs positive losses.
    """
    weighting = transform.find_state(state.opt_state)
    step = int(state.step)
    nonfinite, new = _counts(task_names, weighting.nonfinite, run.nonfinite_losses)
    unmeasured, unmeasured_now = _counts(
        task_names, weighting.unmeasured, run.unmeasured_interactions
    )
    for what, found in [
        ("losses that are not finite so far, and steps left out for them", new),
        (
            "interactions that could not be measured so far, because a gradient was not finite or "
            "its norm too large or too small",
            unmeasured_now,
        ),
    ]:
        if found:
            tasks = ", ".join(f"{name} {n}" for name, n in found.items())
            logging.warning(
                "%s, seed %d, step %d: %s: %s.", run.method, run.seed, step, what, tasks
            )
    unsolved = int(weighting.unsolved)
    if unsolved > run.unsolved_steps:
        logging.warning(
            "%s, seed %d, step %d: the method found no weights in %d steps so far, because its "
            "solver had no solution or they were not finite.",
            *(run.method, run.seed, step, unsolved),
        )
    stopped = None
    negative, _ = _counts(task_names, weighting.negative, {})
    if negative:
        # What goes on is no method's: the weights stand still in these steps.
        stopped = (
            f"stopped at step {step}: the method has no meaning for losses below zero, but those "
            f"of {', '.join(negative)} were. Subtract a lower bound of each loss, or take a method "
            "that only compares losses, such as group_dro or term."
        )
    streak = int(weighting.nonfinite_streak)
    # At the end two in a row are no accident of one batch, and there is nothing to wait for.
    enough = schedule.max_nonfinite_steps
    if step >= schedule.train_steps:
        enough = min(enough, step, 2)
    if streak >= enough:
        last = f"{streak} steps" if streak > 1 else "step"
        reasons = [
            *([f"the loss of a task was not finite ({', '.join(new)})"] if new else []),
            *(["the method's weights were not finite"] if unsolved > run.unsolved_steps else []),
        ]
        look = "the data of that task" if new else "what the method computes them from"
        stopped = (
            f"stopped at step {step}: for the last {last} {' or '.join(reasons)}. Look at {look}, "
            "or try a smaller learning rate."
        )
    if stopped is not None:
        logging.error("%s, seed %d: %s", run.method, run.seed, stopped)
    taken = [] if observed is None else range(step - len(observed) + 1, step + 1)
    interaction, descent = None, run.descent
    if (matrix := np.asarray(weighting.interaction)).any():
        interaction = results.Series([step], matrix[None])
        descent = _append(descent, [step], np.asarray(weighting.descent)[None])
    found = diagnostics.diagnose(weighting)
    numbers = np.array([float(found[name]) for name in diagnostics.NAMES])
    return dataclasses.replace(
        run,
        seconds_per_step=seconds_per_step,
        evaluations=[*run.evaluations, *evaluations],
        weights=_append(run.weights, [step], np.asarray(weighting.weights)[None]),
        losses=_append(run.losses, [step], np.asarray(losses)[None]),
        interaction=interaction,
        diagnostics=_append(run.diagnostics, [step], numbers[None]),
        descent=descent,
        path=run.path if observed is None else _append(run.path, taken, observed),
        nonfinite_losses=nonfinite,
        unmeasured_interactions=unmeasured,
        negative_losses=negative,
        unsolved_steps=unsolved,
        stopped=stopped,
    )


def _counts(task_names, counts, before) -> tuple[dict[str, int], dict[str, int]]:
    """The counts that aren't zero by task, and those of them that have grown."""
    pairs = zip(task_names, np.asarray(counts), strict=True)
    found = {name: int(n) for name, n in pairs if n}
    return found, {name: n for name, n in found.items() if n > before.get(name, 0)}


def _append(
    series: results.Series | None, steps: Sequence[int], values: np.ndarray
) -> results.Series:
    if series is None:
        return results.Series(steps, values)
    return results.Series([*series.steps, *steps], np.concatenate([series.values, values]))


def _latest(run: results.Run) -> list[results.Evaluation]:
    """The evaluations of the last step, of all splits and metrics."""
    return [e for e in run.evaluations if e.step == run.evaluations[-1].step]


def write_scalars(writer: Any, run: results.Run) -> None:
    """Writes the newest numbers of a run for TensorBoard."""
    scalars = {}
    for evaluation in _latest(run):
        prefix = f"{evaluation.split}/{evaluation.metric}"
        scalars[f"{prefix}/average"] = evaluation.average
        scalars[f"{prefix}/worst"] = evaluation.worst
        scalars |= {f"{prefix}/task/{name}": x for name, x in evaluation.per_task.items()}
    for name, series in [("weight", run.weights), ("train loss", run.losses)]:
        assert series is not None
        tasks = zip(run.evaluations[-1].per_task, series.values[-1], strict=True)
        scalars |= {f"{name}/{task}": float(value) for task, value in tasks}
    assert run.diagnostics is not None
    numbers = dict(zip(diagnostics.NAMES, run.diagnostics.values[-1].tolist(), strict=True))
    scalars |= {f"tasks/{name}": x for name, x in numbers.items() if math.isfinite(x)}
    writer.write_scalars(run.evaluations[-1].step, scalars)


def progress_text(run: results.Run) -> str:
    """The newest values of a run, on validation where there is such a split, for a progress bar."""
    latest = _latest(run)
    last = next((e for e in latest if e.split == "validation"), latest[0])
    return f"average {last.average:.3f}, worst {last.worst:.3f} ({last.worst_task})"

"""The training loop: stretches of steps, evaluation, checkpoints, a record of each run."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import logging

from ldro_jax import transform
from ldro_jax.reporting import results
from ldro_jax.training import checkpoints, writers
from ldro_jax.training.program import Program, Trial


def train(
    program: Program,
    trials: Sequence[Trial],
    *,
    checkpoint_dir: pathlib.Path,
    tensorboard_dirs: Sequence[pathlib.Path],
    progress: Any,
) -> list[results.Run]:
    """Trains runs together, from their newest good checkpoint if there is one.

    Args:
      program: what to train.
      trials: the R runs.
      checkpoint_dir: where the checkpoints of these runs are.
      tensorboard_dirs: where the TensorBoard events of each run go.
      progress: a tqdm progress bar over the steps of all runs.

    Returns:
      The records of the runs. If the losses of one never became finite again, it says so in
      ``stopped``.

    Raises:
      ValueError: if a method needs another program.
    """
    for method, _ in trials:
        if method.program() != program.method.program():
            raise ValueError(f"{method} can't be trained by the program of {program.method}.")
    schedule = program.schedule
    with contextlib.ExitStack() as stack:
        saved = stack.enter_context(contextlib.closing(checkpoints.Checkpoints(checkpoint_dir)))
        log = [
            stack.enter_context(contextlib.closing(writers.tensorboard_writer(directory)))
            for directory in tensorboard_dirs
        ]
        states = program.start(trials)
        runs = [_empty_run(program, trial) for trial in trials]
        if (restored := saved.restore(states)) is not None:
            states, record = restored
            runs = [results.run_from_record(run) for run in record["runs"]]
            which = ", ".join(f"{run.method}, seed {run.seed}" for run in runs)
            progress.write(f"{which}: resumed at step {int(states.step[0])}.")
        last_saved = int(states.step[0])
        progress.update(last_saved * len(runs))

        timed = []
        while (start := int(states.step[0])) < schedule.train_steps and _going(runs):
            num_steps = min(schedule.eval_interval, schedule.train_steps - start)
            states, losses, seconds = program.train(states, num_steps, trials)
            timed.append(seconds)
            evaluations = program.evaluate(states)
            for index, run in enumerate(runs):
                if run.stopped is None:
                    state = jax.tree.map(lambda x, i=index: x[i], states)
                    new = (state, losses[index], evaluations[index], float(np.median(timed)))
                    runs[index] = _extended(run, program, *new)
                    _write(log[index], runs[index])
            progress.update(num_steps * len(runs))
            progress.set_postfix_str(_progress_text(runs[-1]))
            if start + num_steps - last_saved >= schedule.checkpoint_interval and _going(runs):
                last_saved = start + num_steps
                record = {"runs": [results.run_to_record(run) for run in runs]}
                saved.save(last_saved, states, record)
    return runs


def _going(runs: Sequence[results.Run]) -> bool:
    return any(run.stopped is None for run in runs)


def _empty_run(program: Program, trial: Trial) -> results.Run:
    return results.Run(
        method=trial.method.name,
        hyperparameters=trial.method.settings(),
        seed=trial.seed,
        num_steps=program.schedule.train_steps,
    )


def _extended(run, program, state, losses, evaluations, seconds_per_step) -> results.Run:
    """The record with what there is to say after one more stretch."""
    weighting = transform.find_state(state.opt_state)
    step = int(state.step)
    names = program.data.task_names
    counts = {name: int(n) for name, n in zip(names, weighting.nonfinite, strict=True) if n}
    new = {name: n for name, n in counts.items() if n > run.nonfinite_losses.get(name, 0)}
    if new:
        logging.warning(
            "%s, seed %d, step %d: losses that are not finite so far, and steps left out for them: "
            "%s.",
            run.method,
            run.seed,
            step,
            ", ".join(f"{name} {n}" for name, n in new.items()),
        )
    stopped = None
    schedule = program.schedule
    if weighting.nonfinite_streak >= min(schedule.max_nonfinite_steps, schedule.train_steps):
        stopped = (
            f"stopped at step {step}: for the last {int(weighting.nonfinite_streak)} steps the "
            f"loss of a task was not finite ({', '.join(new)}). Look at the data of that task, or "
            "try a smaller learning rate."
        )
        logging.error("%s, seed %d: %s", run.method, run.seed, stopped)
    interaction = None
    if weighting.interaction.any():
        interaction = results.Series([step], np.asarray(weighting.interaction)[None])
    return dataclasses.replace(
        run,
        seconds_per_step=seconds_per_step,
        evaluations=[*run.evaluations, *evaluations],
        weights=_append(run.weights, step, weighting.weights),
        losses=_append(run.losses, step, losses),
        interaction=interaction,
        nonfinite_losses=counts,
        stopped=stopped,
    )


def _append(series: results.Series | None, step: int, values: jax.Array) -> results.Series:
    new = np.asarray(values)[None]
    if series is None:
        return results.Series([step], new)
    return results.Series([*series.steps, step], np.concatenate([series.values, new]))


def _latest(run: results.Run) -> list[results.Evaluation]:
    """The evaluations of the last step, of all splits and metrics."""
    return [e for e in run.evaluations if e.step == run.evaluations[-1].step]


def _write(writer, run: results.Run) -> None:
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
    writer.write_scalars(run.evaluations[-1].step, scalars)
    # What isn't on disk when a checkpoint is, a resumed run won't write again.
    writer.flush()


def _progress_text(run: results.Run) -> str:
    last = next(e for e in _latest(run) if e.split == "validation")
    return f"average {last.average:.3f}, worst {last.worst:.3f} ({last.worst_task})"

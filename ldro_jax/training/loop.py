"""The training loop: stretches of steps, evaluation, checkpoints, a record of each run."""

import contextlib
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from ldro_jax.records import results
from ldro_jax.training import checkpoints, preemption, records, writers
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
      PreemptedError: after SIGTERM, at the end of the stretch, when the state is saved.
      ValueError: if a method needs another program, or a checkpoint was made with other data or
        another model.
    """
    for method, _ in trials:
        if method.program() != program.method.program():
            raise ValueError(f"{method} can't be trained by the program of {program.method}.")
    schedule = program.schedule
    with contextlib.ExitStack() as stack:
        saved = checkpoints.Checkpoints(checkpoint_dir, identity=program.data.identity)
        stack.enter_context(contextlib.closing(saved))
        log = [
            stack.enter_context(contextlib.closing(writers.tensorboard_writer(directory)))
            for directory in tensorboard_dirs
        ]
        preempted = stack.enter_context(preemption.watch())
        states = program.start(trials)
        runs = [records.empty_run(trial, schedule) for trial in trials]
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
                    runs[index] = records.extended(
                        run,
                        program.data.task_names,
                        schedule,
                        state,
                        losses=losses[index],
                        evaluations=evaluations[index],
                        seconds_per_step=float(np.median(timed)),
                    )
                    records.write_scalars(log[index], runs[index])
            progress.update(num_steps * len(runs))
            progress.set_postfix_str(records.progress_text(runs[-1]))
            step = start + num_steps
            asked = preempted(step)
            due = step - last_saved >= schedule.checkpoint_interval or asked
            if due and _going(runs):
                last_saved = step
                record = {"runs": [results.run_to_record(run) for run in runs]}
                saved.save(step, states, record)
            if asked:
                names = ", ".join(f"{run.method}, seed {run.seed}" for run in runs)
                raise preemption.PreemptedError(f"{names}: stopped, saved at step {last_saved}.")
    return runs


def _going(runs: Sequence[results.Run]) -> bool:
    return any(run.stopped is None for run in runs)

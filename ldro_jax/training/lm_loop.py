"""The training loop of language models: steps, evaluation, checkpoints, a record of each run."""

import contextlib
import dataclasses
import math
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from ldro_jax.evaluation import perplexity
from ldro_jax.reporting import results
from ldro_jax.training import checkpoints, preemption, records, writers
from ldro_jax.training.lm_program import LanguageModelProgram, prefetched
from ldro_jax.training.program import Trial
from ldro_jax.training.schedule import Schedule

METRIC = "perplexity"
# Steps are queued faster than they run, and a queue without end would hold as many batches.
_QUEUED_STEPS = 32


def train(
    program: LanguageModelProgram,
    trial: Trial,
    schedule: Schedule,
    *,
    checkpoint_dir: pathlib.Path,
    tensorboard_dir: pathlib.Path,
    progress: Any,
    max_validation_tokens: int | None = None,
    max_test_tokens: int | None = None,
) -> results.Run:
    """Trains one run, from its newest good checkpoint if there is one.

    The run ends with the perplexities on test of the checkpoint whose validation loss, averaged
    over the tasks, was lowest.

    Args:
      program: what to train.
      trial: the method and the seed.
      schedule: lengths and intervals. A checkpoint is also saved at each evaluation that is the
        best so far.
      checkpoint_dir: where the checkpoints of this run are.
      tensorboard_dir: where its TensorBoard events go.
      progress: a tqdm progress bar over the steps.
      max_validation_tokens: take only so many tokens of each task for validation.
      max_test_tokens: the same for the test.

    Returns:
      The record of the run. If its losses never became finite again, it says so in ``stopped``.

    Raises:
      PreemptedError: after SIGTERM, when the state is saved.
      ValueError: if a checkpoint was made with another vocabulary or other tasks.
    """
    with contextlib.ExitStack() as stack:

        def opened(name, keep):
            found = checkpoints.Checkpoints(checkpoint_dir / name, keep=keep)
            return stack.enter_context(contextlib.closing(found))

        latest, best = opened("latest", 2), opened("best", 1)
        log = stack.enter_context(contextlib.closing(writers.tensorboard_writer(tensorboard_dir)))
        preempted = stack.enter_context(preemption.watch())
        state = program.init(trial.seed)
        now = _Progress(
            records.empty_run(trial, schedule), program.first_probabilities(trial.method)
        )
        if (restored := latest.restore(state)) is not None:
            state, saved = restored
            now = _Progress.from_record(saved, program, checkpoint_dir)
            progress.write(f"{now.run.method}, seed {now.run.seed}: resumed at step {now.step}.")
            progress.update(now.step)
        last_saved, seconds = now.step, []
        while now.step < schedule.train_steps and now.run.stopped is None:
            end = min(
                (now.step // schedule.eval_interval + 1) * schedule.eval_interval,
                schedule.train_steps,
            )
            state, time_per_step = _stretch(program, trial, state, now, end, preempted, progress)
            if now.step < end:
                latest.save(now.step, state, now.record(program))
                raise preemption.PreemptedError(
                    f"{now.run.method}, seed {now.run.seed}: asked to stop, saved at step "
                    f"{now.step}."
                )
            seconds += [time_per_step] if math.isfinite(time_per_step) else []
            losses = program.evaluate(state.params, "validation", max_validation_tokens)
            now.run = records.extended(
                now.run,
                program.corpus.task_names,
                schedule,
                state,
                losses=np.mean(now.losses, axis=0),
                evaluations=[_evaluation(program, now.step, "validation", losses)],
                seconds_per_step=float(np.median(seconds)) if seconds else math.nan,
            )
            now.losses.clear()
            now.probabilities = program.weights(state)
            records.write_scalars(log, now.run)
            progress.set_postfix_str(records.progress_text(now.run))
            improved = losses.mean() < now.best_loss
            if improved:
                now.best_loss, now.best_step = float(losses.mean()), now.step
                best.save(now.step, state, now.record(program))
            if improved or now.step - last_saved >= schedule.checkpoint_interval:
                last_saved = now.step
                latest.save(now.step, state, now.record(program))
        if now.run.stopped is None and (restored := best.restore(state)) is not None:
            losses = program.evaluate(restored[0].params, "test", max_test_tokens)
            tested = _evaluation(program, int(restored[0].step), "test", losses)
            now.run = dataclasses.replace(now.run, evaluations=[*now.run.evaluations, tested])
    return now.run


@dataclasses.dataclass
class _Progress:
    """What a run is besides its training state.

    Attributes:
      run: its record.
      probabilities: of the tasks, where rows are drawn by them, ``[N]``; those of the weights at
        the last evaluation, so that a run that is resumed draws the same rows.
      drawn: sequences of each task drawn so far, ``[N]``.
      step: number of steps taken.
      losses: of the steps since the last evaluation, each ``[N]``.
      best_loss: lowest average validation loss.
      best_step: when it was.
    """

    run: results.Run
    probabilities: np.ndarray
    drawn: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))
    step: int = 0
    losses: list[np.ndarray] = dataclasses.field(default_factory=list)
    best_loss: float = math.inf
    best_step: int = 0

    def __post_init__(self):
        if not self.drawn.size:
            self.drawn = np.zeros(self.probabilities.size, np.int64)

    def record(self, program: LanguageModelProgram) -> dict[str, Any]:
        """All of it, and what the checkpoint belongs to, as JSON can hold it."""
        return {
            "run": results.run_to_record(self.run),
            "probabilities": self.probabilities.tolist(),
            "drawn": self.drawn.tolist(),
            "step": self.step,
            "losses": [loss.tolist() for loss in self.losses],
            "best_loss": self.best_loss if math.isfinite(self.best_loss) else None,
            "best_step": self.best_step,
            "vocabulary": program.corpus.vocabulary,
            "task_names": list(program.corpus.task_names),
        }

    @classmethod
    def from_record(cls, record, program, directory) -> "_Progress":
        for name in ("vocabulary", "task_names"):
            ours = getattr(program.corpus, name)
            ours = list(ours) if name == "task_names" else ours
            if record[name] != ours:
                raise ValueError(
                    f"The checkpoints in {directory} were made with other text: {name} was "
                    f"{record[name]}, now it is {ours}. Give the run the text it began with, or "
                    "choose another --output_dir."
                )
        return cls(
            run=results.run_from_record(record["run"]),
            probabilities=np.array(record["probabilities"], np.float32),
            drawn=np.array(record["drawn"], np.int64),
            step=record["step"],
            losses=[np.array(loss, np.float32) for loss in record["losses"]],
            best_loss=math.inf if record["best_loss"] is None else record["best_loss"],
            best_step=record["best_step"],
        )


def _stretch(program, trial, state, now: _Progress, end, preempted, progress):
    """Takes steps until ``end``, or until asked to stop; their state and the seconds of one."""
    queued: list[jax.Array] = []
    began, timed = 0.0, 0

    def collect():
        now.losses += map(np.asarray, queued)
        queued.clear()

    source = program.source(trial.seed)
    batches = _batches(program, source, trial.seed, now, end)
    with contextlib.closing(prefetched(batches)) as ready:
        for batch, drawn in ready:
            state, losses = program.step(state, batch, trial.method)
            queued.append(losses)
            now.drawn, now.step = drawn, now.step + 1
            progress.update(1)
            if not began:
                # The first step compiles.
                jax.block_until_ready(losses)
                began = time.perf_counter()
            else:
                timed += 1
            if len(queued) >= _QUEUED_STEPS:
                collect()
            if preempted(now.step):
                break
    collect()
    return state, (time.perf_counter() - began) / timed if timed else math.nan


def _batches(program, source, seed, now: _Progress, end) -> Iterator[tuple[Any, np.ndarray]]:
    drawn, probabilities = now.drawn, now.probabilities
    for step in range(now.step, end):
        draw = program.draw(drawn, probabilities, seed, step)
        yield program.batch(source, draw, probabilities), draw.drawn
        drawn = draw.drawn


def _evaluation(program, step, split, losses) -> results.Evaluation:
    return results.summarise_evaluation(
        step=step,
        split=split,
        metric=METRIC,
        task_names=program.corpus.task_names,
        values=perplexity.perplexity(losses),
        higher_is_better=False,
    )

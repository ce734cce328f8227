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
from absl import logging

from ldro_jax import paths
from ldro_jax.evaluation import perplexity
from ldro_jax.records import results
from ldro_jax.tasks import sequences
from ldro_jax.training import checkpoints, preemption, processes, records, writers
from ldro_jax.training.lm_program import LanguageModelProgram
from ldro_jax.training.prefetch import prefetched
from ldro_jax.training.program import Trial
from ldro_jax.training.schedule import Schedule

METRIC = "perplexity"
# Steps are queued faster than they run, and a queue without end would hold as many batches.
_QUEUED_STEPS = 32
# How many batches may be drawn and not yet trained on: two wait, one is handed over, one is made.
_DRAWN_AHEAD = 4
# Where the places of streams are kept, beside the checkpoints.
_STREAM = "stream"


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
      ValueError: if a checkpoint was made with other text or another model.
    """
    source = program.source(trial.seed)
    is_stream = program.corpus.stream is not None
    places = checkpoint_dir / _STREAM
    with contextlib.ExitStack() as stack:
        saved = checkpoints.Checkpoints(
            checkpoint_dir, identity={**program.corpus.identity, **source.identity}
        )
        stack.enter_context(contextlib.closing(saved))
        log = writers.NullWriter()
        if processes.is_first():
            log = writers.tensorboard_writer(tensorboard_dir)
        stack.enter_context(contextlib.closing(log))
        preempted = stack.enter_context(preemption.watch())
        state = program.init(trial.seed)
        now = _Progress(
            records.empty_run(trial, schedule), program.first_probabilities(trial.method)
        )

        def restore_source(step):
            # Another one each time: what a damaged checkpoint did to it must not stay.
            nonlocal source
            source = program.source(trial.seed)
            source.restore(places / str(step))

        if (restored := saved.restore(state, restore_source)) is None:
            source = program.source(trial.seed)
        else:
            state, record = restored
            now = _Progress.from_record(record)
            progress.write(f"{now.run.method}, seed {now.run.seed}: resumed at step {now.step}.")
            progress.update(now.step)
        last_saved, seconds = now.step, []

        def save():
            if is_stream:
                _save_source(source, places / str(now.step))
            saved.save(now.step, state, now.record(), best=now.best_step)
            if is_stream and processes.is_first():
                _remove_places(places, {*saved.steps, now.step})

        def stop():
            if last_saved < now.step:
                save()
            raise preemption.PreemptedError(
                f"{now.run.method}, seed {now.run.seed}: stopped, saved at step {now.step}."
            )

        while now.step < schedule.train_steps and now.run.stopped is None:
            end = min(
                (now.step // schedule.eval_interval + 1) * schedule.eval_interval,
                schedule.train_steps,
            )
            state, time_per_step = _stretch(
                program, source, trial, state, now, end, preempted, progress
            )
            if now.step < end:
                stop()
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
            if improved or now.step - last_saved >= schedule.checkpoint_interval:
                last_saved = now.step
                save()
            # Also what came in the last step or during the evaluation: the next run won't know.
            if preempted(now.step):
                stop()
        if now.run.stopped is not None:
            return now.run
        if (final := saved.restore_best(state)) is None:
            logging.warning(
                "%s, seed %d: no validation loss was finite, so the test is of the last step.",
                now.run.method,
                now.run.seed,
            )
            final = state
        losses = program.evaluate(final.params, "test", max_test_tokens)
        if preempted(now.step):
            stop()
        tested = _evaluation(program, int(final.step), "test", losses)
    return dataclasses.replace(now.run, evaluations=[*now.run.evaluations, tested])


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
      best_step: where that was.
      end: the step before which batches are drawn.
    """

    run: results.Run
    probabilities: np.ndarray
    drawn: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))
    step: int = 0
    losses: list[np.ndarray] = dataclasses.field(default_factory=list)
    best_loss: float = math.inf
    best_step: int | None = None
    end: int = 0

    def __post_init__(self):
        if not self.drawn.size:
            self.drawn = np.zeros(self.probabilities.size, np.int64)

    def record(self) -> dict[str, Any]:
        """All of it, as JSON can hold it."""
        return {
            "run": results.run_to_record(self.run),
            "probabilities": self.probabilities.tolist(),
            "drawn": self.drawn.tolist(),
            "step": self.step,
            "losses": [loss.tolist() for loss in self.losses],
            "best_loss": self.best_loss if math.isfinite(self.best_loss) else None,
            "best_step": self.best_step,
        }

    @classmethod
    def from_record(cls, record) -> "_Progress":
        return cls(
            run=results.run_from_record(record["run"]),
            probabilities=np.array(record["probabilities"], np.float32),
            drawn=np.array(record["drawn"], np.int64),
            step=record["step"],
            losses=[np.array(loss, np.float32) for loss in record["losses"]],
            best_loss=math.inf if record["best_loss"] is None else record["best_loss"],
            best_step=record["best_step"],
        )


def _stretch(program, source, trial, state, now: _Progress, end, preempted, progress):
    """Takes steps until ``end``, or until asked to stop; their state and the seconds of one."""
    queued: list[jax.Array] = []
    began, timed = 0.0, 0

    def collect():
        now.losses += map(np.asarray, queued)
        queued.clear()

    now.end = end
    batches = _batches(program, source, trial.seed, now)
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
            if now.end == end and preempted(now.step):
                # What is drawn already is trained on: a stream would not give it again. The last
                # step must be the same in all processes, however far ahead each has drawn.
                now.end = min(end, now.step + _DRAWN_AHEAD)
    collect()
    return state, (time.perf_counter() - began) / timed if timed else math.nan


def _batches(program, source, seed, now: _Progress) -> Iterator[tuple[Any, np.ndarray]]:
    drawn, probabilities, step = now.drawn, now.probabilities, now.step
    while step < now.end:
        draw = program.draw(drawn, probabilities, seed, step)
        yield program.batch(source, draw, probabilities), draw.drawn
        drawn, step = draw.drawn, step + 1


def _save_source(source: sequences.Source, place: pathlib.Path) -> None:
    """Saves where a stream is; before the checkpoint of the same step, which can't do without."""
    if processes.is_first():
        if place.exists():
            paths.remove_tree(place)
        place.mkdir(parents=True, exist_ok=True)
    processes.wait_for_all("stream")
    source.save(place)
    processes.wait_for_all("stream saved")


def _remove_places(places: pathlib.Path, steps: set[int]) -> None:
    """Removes the places of a stream whose checkpoints are gone."""
    for place in places.glob("*"):
        if int(place.name) not in steps:
            paths.remove_tree(place)


def _evaluation(program, step, split, losses) -> results.Evaluation:
    return results.summarise_evaluation(
        step=step,
        split=split,
        metric=METRIC,
        task_names=program.corpus.task_names,
        values=perplexity.perplexity(losses),
        higher_is_better=False,
    )

"""The training loop of one run: stretches of steps, evaluation, checkpoints, a record."""

import contextlib
import copy
import dataclasses
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from flax import linen as nn

from ldro_jax import transform
from ldro_jax.evaluation import accuracy
from ldro_jax.reporting import results
from ldro_jax.tasks import base
from ldro_jax.training import checkpoints, writers
from ldro_jax.training import step as step_lib
from ldro_jax.training.method import Method

SPLITS = ("validation", "test")


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How long to train and how often to look.

    Attributes:
      train_steps: number of steps of a run.
      eval_interval: steps between two evaluations; what happens between them is one program.
      checkpoint_interval: steps between two checkpoints, made at the next evaluation.
      max_nonfinite_steps: a run stops after so many steps in a row whose losses aren't all finite,
        or after ``train_steps`` of them if that is fewer.
    """

    train_steps: int
    eval_interval: int
    checkpoint_interval: int
    max_nonfinite_steps: int = 100

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{field.name} must be a positive integer, but it is {value!r}.")


def epochs(num_epochs: int, steps_per_epoch: int, *, checkpoint_epochs: int = 1) -> Schedule:
    """A schedule in epochs, with an evaluation after each.

    Args:
      num_epochs: length of a run.
      steps_per_epoch: training examples divided by the batch size.
      checkpoint_epochs: epochs between two checkpoints.

    Returns:
      The :class:`Schedule`.
    """
    return Schedule(
        train_steps=num_epochs * steps_per_epoch,
        eval_interval=steps_per_epoch,
        checkpoint_interval=checkpoint_epochs * steps_per_epoch,
    )


class Program:
    """A model, its data and a method, compiled once and run with any seed.

    Args:
      method: how to weigh the tasks.
      data: what to train and evaluate on.
      model: the network, from inputs ``[B, ...]`` to logits ``[B, classes]``.
      optimizer: the Optax optimizer to chain after the weighting.
      batch_size: examples of all tasks in a batch.
      sampler: ``"balanced"``, the same number of examples from every task, or ``"uniform"``, plain
        random batches.
      schedule: lengths and intervals.

    Raises:
      ValueError: if a setting of the method or of the batches is out of range.
    """

    def __init__(
        self,
        method: Method,
        data: base.MultitaskData,
        model: nn.Module,
        optimizer: optax.GradientTransformation,
        *,
        batch_size: int,
        sampler: str = "balanced",
        schedule: Schedule,
    ):
        self.method, self.data, self.schedule = method, data, schedule
        self._model, self._optimizer = model, optimizer
        self.batches = step_lib.Batches(sampler, batch_size, np.asarray(data.train.sizes))
        # What is out of range is found before anything is trained.
        self._tx = self.make_tx({})
        self.batches.check()
        self._splits = {name: jax.device_put(getattr(data, name)) for name in ("train", *SPLITS)}
        self._stretches: dict[int, Callable] = {}
        self._evaluate = jax.jit(self.evaluate_fn)

    def with_method(self, method: Method) -> "Program":
        """The same compiled program for another setting.

        Args:
          method: one whose :meth:`~ldro_jax.training.method.Method.program` is the same.

        Returns:
          A program that shares what is compiled with this one.

        Raises:
          ValueError: if it needs a program of its own, or a setting is out of range.
        """
        if method.program() != self.method.program():
            raise ValueError(f"{method} can't be trained by the program of {self.method}.")
        other = copy.copy(self)
        other.method = method
        other._tx = other.make_tx({})
        return other

    def apply(self, params: Any, inputs: jax.Array) -> Any:
        """Logits of a batch of stored inputs.

        Args:
          params: the model's parameters.
          inputs: ``[B, ...]``, before :attr:`MultitaskData.prepare`.

        Returns:
          ``[B, classes]``.
        """
        return self._model.apply({"params": params}, self.data.prepare(inputs))

    def make_tx(self, rates: Mapping[str, Any]) -> optax.GradientTransformationExtraArgs:
        """The optimizer with the method's weighting before it.

        Args:
          rates: values for the hyperparameters of :meth:`Method.rates`, instead of its own.

        Returns:
          The transformation.
        """
        return optax.chain(self.method.transform(self.data.num_tasks, rates), self._optimizer)

    def init(self, seed: int) -> step_lib.TrainState:
        """The state before the first step; the same parameters for every method.

        Args:
          seed: of the run.

        Returns:
          The state.
        """
        inputs = self.data.prepare(self._splits["train"].inputs[0, :1])
        params = self._model.init(jax.random.key(seed), inputs)["params"]
        return step_lib.TrainState(jnp.zeros([], jnp.int32), params, self._tx.init(params))

    def train(self, state: step_lib.TrainState, num_steps: int, seed: int):
        """Takes a stretch of steps.

        Args:
          state: where to start; its buffers are reused.
          num_steps: length of the stretch.
          seed: of the run.

        Returns:
          The new state, the mean losses of the stretch, ``[N]``, and the seconds a step took,
          without compilation.
        """
        rates = {name: np.float32(value) for name, value in self.method.rates().items()}
        arguments = (rates, state, self._splits["train"], batch_key(seed))
        if num_steps not in self._stretches:
            stretch = jax.jit(self.stretch_fn(num_steps), donate_argnums=1)
            self._stretches[num_steps] = stretch.lower(*arguments).compile()
        began = time.perf_counter()
        state, losses = jax.block_until_ready(self._stretches[num_steps](*arguments))
        return state, losses, (time.perf_counter() - began) / num_steps

    def stretch_fn(self, num_steps: int) -> Callable:
        """The pure function behind :meth:`train`, see :func:`~ldro_jax.training.step.train_steps`.

        Args:
          num_steps: length of the stretch.

        Returns:
          ``(rates, state, train split, key) -> (state, losses [N])``.
        """
        return step_lib.train_steps(
            self.apply, self.make_tx, self.method, num_steps, self.batches
        )

    def evaluate(self, state: step_lib.TrainState) -> list[results.Evaluation]:
        """Accuracy of every task on the held-out splits.

        Args:
          state: the training state.

        Returns:
          One evaluation for each split and metric.
        """
        found = {split: self._evaluate(state.params, self._splits[split]) for split in SPLITS}
        return self.evaluations(int(state.step), found)

    def evaluate_fn(self, params: Any, split: base.Split) -> dict[str, jax.Array]:
        """The pure function behind :meth:`evaluate`.

        Args:
          params: the model's parameters.
          split: examples of all tasks.

        Returns:
          Accuracy of each task, ``[N]``, by metric.
        """
        return accuracy.task_accuracies(self.apply, params, split, self.data.task_classes)

    def evaluations(self, step: int, found: Mapping[str, Mapping[str, Any]]):
        """Makes entries of the record from accuracies.

        Args:
          step: number of steps taken.
          found: from split to metric to accuracies ``[N]``.

        Returns:
          One :class:`~ldro_jax.reporting.Evaluation` for each.
        """
        return [
            results.summarise_evaluation(
                step=step,
                split=split,
                metric=metric,
                task_names=self.data.task_names,
                values=np.asarray(values),
                higher_is_better=True,
            )
            for split, metrics in found.items()
            for metric, values in metrics.items()
        ]


def batch_key(seed: int) -> jax.Array:
    """The key of a run's batches, which is not the one that its parameters come from.

    Args:
      seed: of the run.

    Returns:
      The key.
    """
    return jax.random.fold_in(jax.random.key(seed), 1)


def train(
    program: Program,
    seed: int,
    *,
    checkpoint_dir: pathlib.Path,
    tensorboard_dir: pathlib.Path,
    progress: Any,
) -> results.Run:
    """Trains one run, from its newest good checkpoint if there is one.

    Args:
      program: what to train.
      seed: of the run: parameters and batches.
      checkpoint_dir: where its checkpoints are.
      tensorboard_dir: where its TensorBoard events go.
      progress: a tqdm progress bar over the steps.

    Returns:
      The record of the run. If the losses never became finite again, it says so in ``stopped``.
    """
    schedule = program.schedule
    with (
        contextlib.closing(checkpoints.Checkpoints(checkpoint_dir)) as saved,
        contextlib.closing(writers.tensorboard_writer(tensorboard_dir)) as writer,
    ):
        state = program.init(seed)
        run = _empty_run(program, seed)
        if (restored := saved.restore(state)) is not None:
            state, record = restored
            run = results.run_from_record(record)
            progress.write(f"{run.method}, seed {seed}: resumed at step {int(state.step)}.")
        last_saved = int(state.step)
        progress.update(last_saved)

        timed = []
        while (start := int(state.step)) < schedule.train_steps and run.stopped is None:
            num_steps = min(schedule.eval_interval, schedule.train_steps - start)
            state, losses, seconds = program.train(state, num_steps, seed)
            timed.append(seconds)
            run = _extended(run, program, state, losses, float(np.median(timed)))
            _write(writer, run)
            progress.update(num_steps)
            progress.set_postfix_str(_progress_text(run))
            if int(state.step) - last_saved >= schedule.checkpoint_interval and not run.stopped:
                last_saved = int(state.step)
                saved.save(last_saved, state, results.run_to_record(run))
    return run


def _empty_run(program: Program, seed: int) -> results.Run:
    return results.Run(
        method=program.method.name,
        hyperparameters=program.method.settings(),
        seed=seed,
        num_steps=program.schedule.train_steps,
    )


def _extended(run, program, state, losses, seconds_per_step) -> results.Run:
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
        evaluations=[*run.evaluations, *program.evaluate(state)],
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


def _write(writer, run: results.Run) -> None:
    step = run.evaluations[-1].step
    scalars = {}
    for evaluation in (e for e in run.evaluations if e.step == step):
        prefix = f"{evaluation.split}/{evaluation.metric}"
        scalars[f"{prefix}/average"] = evaluation.average
        scalars[f"{prefix}/worst"] = evaluation.worst
        scalars |= {f"{prefix}/task/{name}": x for name, x in evaluation.per_task.items()}
    for name, series in [("weight", run.weights), ("train loss", run.losses)]:
        assert series is not None
        tasks = zip(run.evaluations[-1].per_task, series.values[-1], strict=True)
        scalars |= {f"{name}/{task}": float(value) for task, value in tasks}
    writer.write_scalars(step, scalars)
    # What isn't on disk when a checkpoint is, a resumed run won't write again.
    writer.flush()


def _progress_text(run: results.Run) -> str:
    step = run.evaluations[-1].step
    last = next(e for e in run.evaluations if e.step == step and e.split == "validation")
    return f"average {last.average:.3f}, worst {last.worst:.3f} ({last.worst_task})"

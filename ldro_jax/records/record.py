"""The record of an experiment: what was run, and what came out."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ldro_jax.records import shown


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The metric of every task at one step of one run.

    Attributes:
      step: training steps done before this evaluation.
      split: "train", "validation" or "test".
      metric: what was measured, e.g. "accuracy".
      per_task: the value of each task, by task name; NaN where it is not finite.
      average: the plain mean over the tasks.
      worst: the value of the worst task.
      worst_task: the name of the worst task.
    """

    step: int
    split: str
    metric: str
    per_task: Mapping[str, float]
    average: float
    worst: float
    worst_task: str


@dataclasses.dataclass(frozen=True, eq=False)
class Series:
    """Arrays logged at some training steps.

    Attributes:
      steps: integers, shape [S].
      values: floats, shape [S, N] (one number per task) or [S, N, N] (one per pair of tasks).

    Raises:
      ValueError: if there is not one value per step.
    """

    steps: Any
    values: Any

    def __post_init__(self):
        object.__setattr__(self, "steps", np.asarray(self.steps, dtype=np.int64).reshape(-1))
        object.__setattr__(self, "values", np.asarray(self.values, dtype=np.float64))
        found = self.values.shape[0] if self.values.ndim else None
        if found != len(self.steps):
            raise ValueError(
                f"A series needs one value per step: found {len(self.steps)} steps and values of "
                f"shape {self.values.shape}."
            )

    def __repr__(self):
        return f"<Series: {len(self.steps)} steps, values {list(self.values.shape)}>"


@dataclasses.dataclass(frozen=True)
class Run:
    """One training run: one method, one setting, one seed.

    Attributes:
      method: the name shown in tables and figures, e.g. "L-DRO".
      hyperparameters: what tells this setting from others of the same method.
      seed: the seed; runs of different methods with the same seed are compared as a pair.
      num_steps: training steps asked for.
      seconds_per_step: the time of one training step, or None.
      evaluations: in the order of their steps.
      weights: the weight of every task over training, values [S, N], or None.
      losses: the training loss of every task, values [S, N], or None.
      interaction: the raw Gram matrix `A_ij = <grad_i, grad_j>`, values [S, N, N], or None.
      diagnostics: the numbers of `ldro_jax.transform.diagnostics.NAMES` at some steps, values
        [S, 4], or None.
      descent: by how much each loss was to fall so far, to first order and for a learning rate of
        1, values [S, N]; or None.
      path: what the problem observed of the model after every step, values [S, D], or None.
      nonfinite_losses: how many non-finite losses each task had, by name; tasks with none left out.
      unmeasured_interactions: how often the interactions of each task could not be measured, by
        name: its gradient was not finite or its norm too large or too small; tasks with none left
        out.
      negative_losses: how often the loss of each task was below zero though the method needs
        positive ones, by name; tasks with none left out.
      unsolved_steps: in how many steps the method gave no weights: its solver ended without a
        solution, and they were the best that it had; or they weren't finite, and stayed.
      stopped: the error that ended the run before its last step, or None.
    """

    method: str
    seed: int
    num_steps: int
    hyperparameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seconds_per_step: float | None = None
    evaluations: Sequence[Evaluation] = ()
    weights: Series | None = None
    losses: Series | None = None
    interaction: Series | None = None
    diagnostics: Series | None = None
    descent: Series | None = None
    path: Series | None = None
    nonfinite_losses: Mapping[str, int] = dataclasses.field(default_factory=dict)
    unmeasured_interactions: Mapping[str, int] = dataclasses.field(default_factory=dict)
    negative_losses: Mapping[str, int] = dataclasses.field(default_factory=dict)
    unsolved_steps: int = 0
    stopped: str | None = None

    def __repr__(self):
        end = f", stopped: {self.stopped}" if self.stopped else ""
        return (
            f"<Run of {self.method!r}, {dict(self.hyperparameters)}, seed {self.seed}: "
            f"{self.num_steps} steps, {len(self.evaluations)} evaluations{end}>"
        )


@dataclasses.dataclass(frozen=True)
class Results:
    """One experiment: its runs and where they were made.

    Attributes:
      experiment: a short name.
      description: one paragraph in plain words.
      task_names: the tasks, in the order of every [N] array.
      metric: the metric that is compared, e.g. "accuracy" or "perplexity".
      higher_is_better: the direction of `metric`.
      runs: all runs.
      versions: package versions by name.
      device: `platform`, `kind` and `count` of the accelerator.
      references: by split, then by task name, the value of `metric` that a model has which was
        trained on that task alone; NaN, or left out, where there is no such model.
      task_sizes: how much training data each task has, by name, e.g. in tokens.
      select_by: "worst" or "average": what on validation decides which setting of each method the
        report shows.
      data: what tells the data from other data of the same tasks.

    Raises:
      ValueError: if `select_by` is neither.
    """

    experiment: str
    task_names: Sequence[str]
    metric: str
    higher_is_better: bool
    runs: Sequence[Run]
    description: str = ""
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    device: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    references: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    task_sizes: Mapping[str, float] = dataclasses.field(default_factory=dict)
    select_by: str = "worst"
    data: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if self.select_by not in ("worst", "average"):
            raise ValueError(
                f"Expected select_by to be 'worst' or 'average'; found {self.select_by!r}."
            )

    def __repr__(self):
        return shown.line(self)

    def __str__(self):
        return shown.table(self).text()

    def _repr_html_(self):
        return shown.table(self).html()


def summarise_evaluation(
    step: int,
    split: str,
    metric: str,
    task_names: Sequence[str],
    values: Sequence[float] | np.ndarray,
    higher_is_better: bool,
) -> Evaluation:
    """Makes an evaluation entry from one value per task.

    A value that is not finite is worse than any number: that task is the worst one, and neither the
    average nor the worst value is a number. Of equal worst values the first task is named.

    Args:
      step: training steps done.
      split: "train", "validation" or "test".
      metric: the name of what was measured.
      task_names: the N names.
      values: the N values, in the same order.
      higher_is_better: False for losses and perplexities.

    Returns:
      The evaluation.

    Raises:
      ValueError: if there is not exactly one value per task, or there is no task.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.shape != (len(task_names),) or not len(task_names):
        raise ValueError(
            f"Expected one value for each of the {len(task_names)} tasks; found values of shape "
            f"{array.shape}."
        )
    array = np.where(np.isfinite(array), array, np.nan)
    badness = np.where(np.isnan(array), np.inf, -array if higher_is_better else array)
    worst = int(np.argmax(badness))
    return Evaluation(
        step=int(step),
        split=split,
        metric=metric,
        per_task=dict(zip(task_names, array.tolist(), strict=True)),
        average=float(np.mean(array)),
        worst=float(array[worst]),
        worst_task=task_names[worst],
    )

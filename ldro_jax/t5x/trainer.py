"""T5X's trainer with task weights: one forward pass, weights, one backward pass."""

import ldro_jax.t5x.installed  # noqa: F401

# isort: split
import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import cached_property
import clu.metrics
import clu.values
import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from t5x import trainer as trainer_lib
from t5x import utils

from ldro_jax import interaction as interaction_lib
from ldro_jax import measuring, transform
from ldro_jax.measuring.trained import merge
from ldro_jax.t5x import drawing, dropout, evaluation, run_file, tasks
from ldro_jax.t5x.model import LDROModel, row_tokens
from ldro_jax.t5x.optimizer import WeightedOptimizer


class LDROTrainer(evaluation.Evaluating, trainer_lib.Trainer):
    """A ``t5x.trainer.Trainer`` that trains on weighted task losses.

    Rows belong to tasks, as :func:`ldro_jax.t5x.data.get_dataset` draws and marks them; other
    batches are refused. The names of the tasks are saved in the run's directory when the first step
    is taken. With several microbatches the weights are chosen from the losses of all of them, at
    the price of a second forward pass.

    T5X's summaries get, by task name, ``ldro/weight``, ``ldro/loss`` (mean over the steps since the
    last summary; NaN before the task has had a row), ``ldro/token_share``, and counts so far,
    ``ldro/nonfinite_losses``, ``ldro/unmeasured_interactions`` and ``ldro/negative_losses``. Over
    tasks they get ``ldro/worst_task``, ``ldro/worst_loss``, ``ldro/expected_worst_loss``, the worst
    loss expected after the step (for Lookahead-DRO the value of the game), and
    ``ldro/unsolved_steps``, in how many steps so far the method found no weights. Evaluation is by
    the token: :class:`ldro_jax.t5x.evaluation.Evaluating`.

    Args:
      task_names: the names of the tasks, in order.
      checkpoint_cfg: the run's ``t5x.utils.CheckpointConfig``, whose dtype is checked.
      interaction: how to measure the interaction: a name from
        :data:`ldro_jax.interaction.STRATEGIES`, or "split"; by default, on a mesh, one task after
        another, with each gradient split over the data axis as well, or for a lagged weighting
        layer by layer where layers are scanned; on one device what suits the model. A lagged
        weighting saves memory with the default and "layerwise" alone: "scan" and "vmap" hold the
        gradients of all tasks.
      interaction_rows: measure it on so many rows of each task; by default on all.
      **kwargs: T5X's own, see ``t5x.trainer.Trainer``; gin's bindings for that class count for
        those that aren't given.

    Raises:
      TypeError: if the model or its optimizer doesn't serve for this trainer.
      ValueError: if the weighting has another number of tasks, or checkpoints would be saved in a
        dtype from which a run can't be resumed.
    """

    def __init__(
        self,
        *,
        task_names: Sequence[str],
        checkpoint_cfg: utils.CheckpointConfig | None = None,
        interaction: str | None = None,
        interaction_rows: int | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self._task_names = tuple(task_names)
        self._began = False
        self._drawn: drawing.DrawnRows | None = None
        _check(self._model, self._train_state, self._task_names, checkpoint_cfg)
        (axes,) = self._partitioner.data_partition_spec
        names = (axes,) if isinstance(axes, str) else axes
        self._plan = dataclasses.replace(
            self._model.optimizer_def.weighting.plan,
            strategy=self._strategy(interaction),
            microbatches=self._num_microbatches or 1,
            rows=interaction_rows,
            multiple=math.prod(self._partitioner.mesh.shape[name] for name in names),
            # Rows that only fill up would count in T5X's metrics.
            pads=False,
            over_data=self._sharded(PartitionSpec(axes)),
        )

    def _strategy(self, name: str | None) -> interaction_lib.Interaction:
        plan = self._model.optimizer_def.weighting.plan
        if name in ("features", "products") or plan.strategy.gives_products:
            raise ValueError(
                "interaction must measure the matrix in T5X, whose loss can't be pushed forward as "
                "products need and has no features of several tasks in one row, but it is "
                f"{name or 'products'!r}. Use another, for the trainer and for the weighting."
            )
        if name not in (None, "split"):
            return interaction_lib.get(name)
        shardings = None
        if self._partitioner.mesh.size > 1:
            # A parameter without a specification is on every device.
            specs = jax.tree.leaves(
                self._train_state_axes.params,
                is_leaf=lambda x: x is None or isinstance(x, PartitionSpec),
            )
            structure = jax.tree.structure(self._train_state.params)
            shardings = self._model.optimizer_def.trained(
                jax.tree.unflatten(
                    structure, [self._sharded(spec or PartitionSpec()) for spec in specs]
                )
            )
        strategy = interaction_lib.auto(shardings)
        return strategy if name is None else interaction_lib.split(strategy)

    def _sharded(self, spec: PartitionSpec) -> NamedSharding:
        return NamedSharding(self._partitioner.mesh, spec)

    def train(self, batch_iter: Any, num_steps: int, start_step: int | None = None) -> Any:
        """T5X's: takes ``num_steps`` steps after the first ``start_step``; the summary, a future.

        Raises ``ValueError`` if the rows of the first batch don't belong to the tasks.
        """
        if not self._began:
            first = next(batch_iter)
            tasks.check_rows(first, self._task_names)
            if self._run_dir is not None and jax.process_index() == 0:
                run_file.save_tasks(self._run_dir, self._task_names)
            self._drawn, self._began = drawing.inside(batch_iter), True
            batch_iter = itertools.chain([first], batch_iter)
        summary = super().train(batch_iter, num_steps, start_step)
        if self._drawn is not None:
            state = transform.find_state(self.train_state.param_states["weighting"])
            self._drawn.follow(state.weights, state.seen)
        return summary

    @cached_property.cached_property
    def _partitioned_train_step(self):
        return self._partitioner.partition(
            self._train_step,
            in_axis_resources=(self._train_state_axes, self._partitioner.data_partition_spec),
            out_axis_resources=(self._train_state_axes, None),
            donate_argnums=(0,),
        )

    def _train_step(self, state: Any, batch: Mapping[str, jax.Array]):
        rng = self._get_step_rng(state.step)
        trained = self._model.optimizer_def.trained(state.params)

        def losses_of(params, rows):
            whole, features = merge(params, state.params), rows["features"]
            keys = dropout.row_keys(rng, rows["number"])
            sums, metrics = self._model.row_losses(whole, features, keys)
            return measuring.RowLosses(sums, row_tokens(features), auxiliary=metrics)

        rows = tasks.read(batch, self._task_names)
        measured = measuring.measure(self._plan, losses_of, trained, rows)
        weighted = self._model.optimizer_def.weigh(state, measured.gradients, **measured.statistics)
        learning_rate = jnp.asarray(self._learning_rate_fn(state.step))
        new_state = state.apply_gradient(weighted, learning_rate=learning_rate)
        metrics = _merged(measured.auxiliary) | {
            "learning_rate": clu.metrics.Average.from_model_output(learning_rate[None]),
            "learning_rate/current": clu.metrics.LastValue.from_model_output(learning_rate[None]),
        }
        if self._weight_metrics_computer is not None:
            metrics |= self._weight_metrics_computer.compute_metrics(
                weighted.gradient, state, new_state
            )
        metrics |= _task_metrics(self._task_names, weighted.weighting, measured.counts)
        return new_state, metrics


@flax.struct.dataclass
class WorstTask(clu.metrics.Metric):
    """The name of the task whose loss, over the steps of a summary, was the largest.

    Attributes:
      losses: summed over the steps in which they were known, ``[N]``.
      steps: their number, int32 ``[N]``.
      names: of the tasks.
    """

    losses: jax.Array
    steps: jax.Array
    names: tuple[str, ...] = flax.struct.field(pytree_node=False)

    def merge(self, other: "WorstTask") -> "WorstTask":
        """The metric over the steps of both."""
        return self.replace(  # pyright: ignore
            losses=self.losses + other.losses, steps=self.steps + other.steps
        )

    def compute(self) -> int:
        """The index of the task."""
        mean = self.losses / jnp.maximum(self.steps, 1)
        return int(jnp.argmax(jnp.where(self.steps > 0, mean, -jnp.inf)))

    def compute_value(self) -> clu.values.Value:
        """The name of the task, as T5X's writers take it."""
        return clu.values.Text(self.names[self.compute()])


def _merged(stacked: Any) -> dict[str, Any]:
    """T5X's metrics of a whole batch from those of its parts, stacked."""
    metrics, leaves = jax.tree.map(lambda x: x[0], stacked), jax.tree.leaves(stacked)
    for index in range(1, len(leaves[0]) if leaves else 1):
        update = jax.tree.map(lambda x, index=index: x[index], stacked)
        metrics = trainer_lib.merge_metrics(metrics, update)
    return dict(metrics)


def _task_metrics(names, weighting, tokens) -> dict[str, clu.metrics.Metric]:
    def last(value):
        return clu.metrics.LastValue.from_model_output(value[None])

    def mean(value, known=True):
        mask = jnp.asarray(known)[None]
        return clu.metrics.Average.from_model_output(jnp.where(mask, value, 0), mask=mask)

    # The losses of tasks without rows so far are placeholders.
    seen, any_seen = weighting.seen, weighting.seen.any()
    worst, expected = (
        jnp.where(seen, x, -jnp.inf).max() for x in (weighting.losses, weighting.expected_losses)
    )
    losses, steps = jnp.where(seen, weighting.losses, 0), seen.astype(jnp.int32)
    metrics: dict[str, clu.metrics.Metric] = {
        "ldro/worst_task": WorstTask(losses, steps, names),
        "ldro/worst_loss": mean(worst, any_seen),
        "ldro/expected_worst_loss": mean(expected, any_seen),
        "ldro/unsolved_steps": last(weighting.unsolved),
    }
    for index, name in enumerate(names):
        metrics |= {
            f"ldro/weight/{name}": last(weighting.weights[index]),
            f"ldro/loss/{name}": mean(weighting.losses[index], seen[index]),
            f"ldro/token_share/{name}": mean(tokens[index] / tokens.sum()),
            f"ldro/nonfinite_losses/{name}": last(weighting.nonfinite[index]),
            f"ldro/unmeasured_interactions/{name}": last(weighting.unmeasured[index]),
            f"ldro/negative_losses/{name}": last(weighting.negative[index]),
        }
    return metrics


def _check(model, train_state, task_names, checkpoint_cfg) -> None:
    if not isinstance(model, LDROModel):
        raise TypeError(
            "LDROTrainer trains an LDRODecoderOnlyModel, an LDROEncoderDecoderModel or another "
            f"ldro_jax.t5x.model.LDROModel, but MODEL is a {type(model).__name__}."
        )
    if not isinstance(model.optimizer_def, WeightedOptimizer):
        raise TypeError(
            "LDROTrainer needs an ldro_jax.t5x.optimizer.WeightedOptimizer, but OPTIMIZER is a "
            f"{type(model.optimizer_def).__name__}."
        )
    if train_state.flax_mutables:
        raise ValueError(
            "LDROTrainer can't train models with mutable Flax collections, but MODEL has "
            f"{', '.join(sorted(train_state.flax_mutables))}."
        )
    num_tasks = model.optimizer_def.num_tasks(train_state)
    if num_tasks != len(task_names):
        raise ValueError(
            f"The weighting has {num_tasks} tasks, but the data has {len(task_names)}: "
            f"{', '.join(task_names)}. Bind num_tasks to @data.num_tasks()."
        )
    save = checkpoint_cfg.save if checkpoint_cfg is not None else None
    if save is not None and save.dtype != "float32":
        raise ValueError(
            f"SaveCheckpointConfig.dtype must be 'float32', but it is {save.dtype!r}: the moments "
            "of Adam and the log-weights don't survive less, and a resumed run would soon be NaN."
        )

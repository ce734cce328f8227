"""T5X's training evaluation, over each row of a split once and by the token.

T5X evaluates on ``eval_steps`` batches of each task, and begins anew with a task that has fewer.
Here :func:`get_datasets` gives each row once, and :class:`Evaluating` counts tokens and nats.
"""

import ldro_jax.t5x.installed  # noqa: F401

# isort: split
import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import cached_property
import clu.metrics
import clu.values
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import seqio
import tensorflow as tf
from clu.data import dataset_iterator
from t5x import trainer as trainer_lib
from t5x import utils

from ldro_jax.records import provenance
from ldro_jax.records.perplexity import perplexity
from ldro_jax.runtime import checks
from ldro_jax.t5x import data, inheritance, names, run_file


class Split:
    """The batches of a split of a task, at most so many of them, from the first at every pass.

    Attributes:
      is_whole: whether the last pass went over all of the split; None before the first.

    Args:
      batches: of the whole split, or one batch more than the limit.
      limit: how many to give at most; None for all.
    """

    def __init__(self, batches: tf.data.Dataset, limit: int | None = None) -> None:
        self._batches, self._limit = batches, limit
        self.is_whole: bool | None = None

    @property
    def element_spec(self) -> Any:
        """The shapes and dtypes of a batch."""
        spec: Any = self._batches.element_spec
        return {
            name: dataset_iterator.ArraySpec(shape=tuple(x.shape), dtype=x.dtype.as_numpy_dtype)
            for name, x in spec.items()
        }

    def __iter__(self) -> Iterator[Any]:
        is_whole = True
        for number, batch in enumerate(self._batches.as_numpy_iterator()):
            if number == self._limit:
                # TensorFlow keeps in memory what is read to its end.
                is_whole = False
            else:
                yield batch
        self.is_whole = is_whole


def get_datasets(
    cfg: utils.DatasetConfig,
    shard_id: int,
    num_shards: int,
    eval_steps: int | None,
    feature_converter_cls: Callable[..., seqio.FeatureConverter],
) -> Mapping[str, Split]:
    """The split of each task, for ``train.train_eval_get_dataset_fn``.

    Each row is there once, on one of the shards. The last batch is filled with rows that have no
    tokens, so that all shards have as many batches. The mixture as a whole has no batches.

    Args:
      cfg: T5X's.
      shard_id: which of the shards of the data to read.
      num_shards: number of shards.
      eval_steps: ``train.eval_steps``: take so many batches of each task at most; None for all.
      feature_converter_cls: the model's.

    Returns:
      By the name of the task, batches of ``cfg.batch_size / num_shards`` rows.

    Raises:
      ValueError: if a task lacks the split, the shards don't divide the batch, or ``eval_steps`` is
        neither None nor a positive integer.
    """
    if eval_steps is not None:
        checks.integer("train.eval_steps", eval_steps)
    if cfg.batch_size % num_shards:
        raise ValueError(
            f"batch_size of train_eval/DatasetConfig must be a multiple of the {num_shards} shards "
            f"of the data, but it is {cfg.batch_size}."
        )
    task_names = data.task_names(cfg.mixture_or_task_name, cfg.module)
    lacking = [n for n in task_names if cfg.split not in seqio.get_mixture_or_task(n).splits]
    if lacking:
        raise ValueError(
            f"Every task must have the split {cfg.split!r} of train_eval/DatasetConfig, but "
            f"{', '.join(lacking)} {'has' if len(lacking) == 1 else 'have'} none. Bind another "
            "split, or leave them out with utils.get_training_eval_datasets, T5X's own."
        )
    rows = cfg.batch_size // num_shards

    def part(feature):
        missing = cfg.batch_size - tf.shape(feature)[0]
        filled = tf.pad(feature, [[0, missing], *[[0, 0]] * (feature.shape.rank - 1)])
        own = filled[shard_id * rows : (shard_id + 1) * rows]
        return tf.ensure_shape(own, (rows, *feature.shape[1:]))

    def whole(name):
        # seqio leaves out what does not fill a batch.
        single = dataclasses.replace(cfg, mixture_or_task_name=name, batch_size=1)
        read = utils.get_dataset(single, 0, 1, feature_converter_cls, num_epochs=1)
        batches = read.unbatch().batch(cfg.batch_size)
        batches = batches.map(lambda batch: tf.nest.map_structure(part, batch))
        # One more shows whether there are more.
        batches = batches if eval_steps is None else batches.take(eval_steps + 1)
        return Split(batches.cache() if cfg.use_memory_cache else batches, eval_steps)

    return {name: whole(name) for name in task_names}


class Evaluating(trainer_lib.BaseTrainer):
    """A mixin: put before a trainer of T5X, it makes that evaluate by the token.

    The summaries of each task, ``training_eval/TASK``, get the number of target tokens,
    ``ldro/tokens``, and of batches, ``ldro/batches``; the cross entropy of a token,
    ``ldro/nats_per_token``, without z-loss, label smoothing and normalising factor; and
    ``ldro/perplexity``. T5X's own losses there
    are without label smoothing and normalising factor too, but with z-loss. ``ldro_eval`` has
    the mean of ``nats_per_token`` over tasks, ``average_loss``, and the largest, ``worst_loss``:
    infinite if one is not finite. Actions of T5X, such as early stopping, find them as metrics of a
    task of that name. When an evaluation is over, all of it is on disk, and with it
    ``ldro_run.json``: the tokens, devices and versions.

    Args:
      **kwargs: those of the trainer that it is put before; gin's bindings for that class count for
        those that aren't given.
    """

    def __init__(self, **kwargs) -> None:
        stock = inheritance.stock(type(self), Evaluating)
        inheritance.refuse_lost_bindings(stock)
        kwargs |= inheritance.missing(stock, (), kwargs)
        super().__init__(**kwargs)
        self._run_dir = kwargs["summary_dir"]
        self._over_tasks = trainer_lib.MetricsManager(names.OVER_TASKS, self._run_dir)

    def close(self) -> None:
        """T5X's: waits for the summaries."""
        super().close()
        self._over_tasks.close()

    @cached_property.cached_property
    def _partitioned_eval_step(self):
        model = copy.copy(self._model)
        model._label_smoothing, model._loss_normalizing_factor = 0.0, None

        def step(train_state, batch):
            metrics = dict(trainer_lib.eval_step(model, train_state, batch))
            return metrics | token_losses(metrics)

        return self._partitioner.partition(
            step,
            in_axis_resources=(self._train_state_axes, self._partitioner.data_partition_spec),
            out_axis_resources=None,
        )

    def eval(self, batch_iters: Mapping[str, Iterator[Any]]) -> Mapping[str, Any]:
        """T5X's: evaluates on batches by task; the summaries by task, and those over tasks.

        Raises ``ValueError`` if a task has no rows, or none with a token to predict.
        """
        step = int(utils.get_local_data(self.train_state.step))
        summaries = dict(super().eval({name: _some(name, it) for name, it in batch_iters.items()}))
        # T5X's own datasets have one of the mixture besides.
        parts = [name for name in summaries if name not in seqio.MixtureRegistry.names()]
        tokens, batches, losses = (
            {name: summaries[name][tag].value for name in parts}
            for tag in (names.TOKENS, names.BATCHES, names.NATS)
        )
        _check_tokens(tokens)
        losses = np.array(list(losses.values()))
        losses = np.where(np.isfinite(losses), losses, np.inf)
        overall = {names.AVERAGE_LOSS: losses.mean(), names.WORST_LOSS: losses.max()}
        self._over_tasks.write_scalars(step, overall)
        # A run that is killed must not lose what its checkpoints are chosen by.
        for manager in (*self.eval_metrics_managers.values(), self._over_tasks):
            manager.flush()
        if self._run_dir is not None and jax.process_index() == 0:
            run_file.save(
                self._run_dir,
                step=step,
                tokens={name: int(count) for name, count in tokens.items()},
                batches={name: int(count) for name, count in batches.items()},
                whole=_all_whole([batch_iters[name] for name in parts]),
                machine={
                    "device": provenance.device() | {"hosts": jax.process_count()},
                    "mesh": dict(self._partitioner.mesh.shape),
                    "versions": provenance.versions("t5x", "seqio", "orbax-checkpoint"),
                },
            )
        scalars = {name: clu.values.Scalar(value) for name, value in overall.items()}
        return {**summaries, names.OVER_TASKS: scalars}


class EvaluatingTrainer(Evaluating, trainer_lib.Trainer):
    """A ``t5x.trainer.Trainer`` for runs without L-DRO; see :class:`Evaluating`."""


@flax.struct.dataclass
class TokenLoss(clu.metrics.Metric):
    """Sums over tokens, as exact over a split as they are in a batch.

    Attributes:
      nats: float32 ``[2]``: a sum, and what was lost to rounding.
      tokens: the same for the number of tokens.
      batches: their number.
      shows: which of :data:`ldro_jax.t5x.names` it computes.
    """

    nats: jax.Array
    tokens: jax.Array
    batches: jax.Array
    shows: str = flax.struct.field(pytree_node=False)

    def merge(self, other: "TokenLoss") -> "TokenLoss":
        """The metric over the batches of both."""
        return self.replace(  # pyright: ignore
            nats=_add(self.nats, other.nats),
            tokens=_add(self.tokens, other.tokens),
            batches=self.batches + other.batches,
        )

    def compute(self) -> float:
        """The value; a perplexity that is too large for float32 is infinite."""
        nats, tokens = (float(np.sum(x, dtype=np.float64)) for x in (self.nats, self.tokens))
        loss = nats / tokens if tokens else np.nan
        with np.errstate(over="ignore"):
            # TensorFlow doesn't write what float32 can't hold.
            bounded = perplexity(loss).astype(np.float32)
        return {
            names.TOKENS: tokens,
            names.BATCHES: float(self.batches),
            names.NATS: loss,
            names.PERPLEXITY: float(bounded),
        }[self.shows]


def token_losses(metrics: Mapping[str, Any]) -> dict[str, TokenLoss]:
    """Metrics by tag of the tokens and losses of a batch, from T5X's metrics of it.

    Raises ``ValueError`` if they aren't those of a ``t5x.models.BaseTransformerModel``.
    """
    try:
        nats = metrics["cross_ent_loss_per_all_target_tokens"].total
        tokens = metrics["non_padding_fraction/loss_weights"].total
    except KeyError as error:
        raise ValueError(
            "Evaluation by the token takes the metrics of t5x.models.BaseTransformerModel, but "
            f"this model has no {error}. It has {', '.join(metrics)}. Use T5X's own trainer."
        ) from error
    sums = [jnp.stack([jnp.float32(x), jnp.float32(0)]) for x in (nats, tokens)]
    tags = (names.TOKENS, names.BATCHES, names.NATS, names.PERPLEXITY)
    return {tag: TokenLoss(*sums, jnp.int32(1), tag) for tag in tags}


def _add(x: jax.Array, y: jax.Array) -> jax.Array:
    # Knuth's two-sum: what rounding takes from a sum is itself a float.
    total = x[0] + y[0]
    added = total - x[0]
    lost = (x[0] - (total - added)) + (y[0] - added)
    return jnp.stack([total, x[1] + y[1] + lost])


def _all_whole(batches: Sequence[Any]) -> bool | None:
    """Whether all of each split was evaluated; None where T5X's own datasets don't say it."""
    known = [split.is_whole for split in batches if isinstance(split, Split)]
    return all(known) if len(known) == len(batches) else None


def _check_tokens(tokens: Mapping[str, float]) -> None:
    for name, count in tokens.items():
        if not count > 0:
            raise ValueError(
                f"The rows that {name} is evaluated on must have tokens to predict, but the sum of "
                f"their loss weights is {count:g}. Look at decoder_loss_weights, or leave the task "
                "out."
            )


def _some(name: str, batches: Iterator[Any]) -> Iterator[Any]:
    batch = None
    for batch in batches:
        yield batch
    if batch is None:
        raise ValueError(
            f"There is nothing to evaluate {name} on: its split of train_eval/DatasetConfig has no "
            "rows. Bind another split, or leave the task out."
        )

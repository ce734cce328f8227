"""A Keras model, on JAX, whose ``fit`` weighs tasks."""

import os
from typing import Any

import jax
import jax.numpy as jnp

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras

from ldro_jax.measuring.means import Rows
from ldro_jax.runtime import checks
from ldro_jax.transform.state import WeightedState
from ldro_jax.transform.weighted import Weighted


class _Weighing:
    """What is no layer and no variable; Keras would copy the tuples in it."""

    def __init__(self, weighting: Weighted, structure: Any):
        self.weighting, self.structure = weighting, structure


class Multitask(keras.Model):
    """A model around another, whose ``fit`` trains on weighted task losses.

    ``compile``, ``fit``, callbacks, metrics and ``evaluate`` are Keras' own. The weights and all
    else that a weighting keeps are variables of this model that aren't trained, so that
    ``save_weights`` and ``load_weights`` keep them. The compiled loss is measured for each row, and
    the loss of a task is the mean over those of a batch that are its own, times their sample
    weights. So a loss function must give a number for each row, as those of Keras do. Where Keras
    masks tokens, the loss of a row is the sum over its own, divided by how many a row of the batch
    has on average.

    Args:
      model: built, such as a functional model. What it can't train, such as frozen layers, stays.
      weighting: such as ``ldro.transform(num_tasks=5)``.
      task: the entry of ``x`` that holds the task of each row, integers ``[B]``. The model gets the
        others; if there is one, by itself.
      **kwargs: of ``keras.Model``.

    Raises:
      ValueError: if Keras doesn't run on JAX, the model isn't built, or ``x`` has no such entry.

    Example::

      model = Multitask(model, ldro.transform(num_tasks=5))
      model.compile(optimizer="adam", loss="sparse_categorical_crossentropy")
      model.fit({"inputs": inputs, "task": task}, targets)
    """

    def __init__(self, model: Any, weighting: Weighted, *, task: str = "task", **kwargs: Any):
        if keras.backend.backend() != "jax":
            raise ValueError(
                f"Keras must run on JAX, but it runs on {keras.backend.backend()}. Set "
                "KERAS_BACKEND=jax before it is imported."
            )
        checks.instance("weighting", weighting, Weighted, "ldro.transform(num_tasks=5)")
        if not getattr(model, "built", False):
            raise ValueError("model must be built first: call model.build(input_shape).")
        super().__init__(**kwargs)
        self.model, self.task = model, task
        state = weighting.init([v.value for v in model.trainable_variables])
        flat, structure = jax.tree.flatten(state)
        self._weighing = _Weighing(weighting, structure)
        self._kept = [
            self.add_weight(
                shape=x.shape,
                dtype=x.dtype.name,
                initializer=keras.initializers.Constant(0),
                trainable=False,
                name=f"weighting_{number}",
            )
            for number, x in enumerate(flat)
        ]
        for variable, value in zip(self._kept, flat, strict=True):
            variable.assign(value)
        self.built = True

    @property
    def weighting_state(self) -> WeightedState:
        """What :func:`ldro_jax.ldro.weights` and the like take."""
        return self._weighing.structure.unflatten([v.value for v in self._kept])

    def call(self, x: Any, training: bool | None = None) -> Any:
        """The outputs of the model."""
        if isinstance(x, dict) and self.task in x:
            x = {name: value for name, value in x.items() if name != self.task}
            (x,) = x.values() if len(x) == 1 else (x,)
        return self.model(x, training=training)

    def train_step(self, state: Any, data: Any) -> tuple[Any, Any]:
        """A step of ``fit``, as in Keras' own model for JAX."""
        trained, others, optimizer_variables, metrics = state
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        if not isinstance(x, dict) or self.task not in x:
            raise ValueError(
                f"fit needs x to be a dict with the task of each row as {self.task!r}, integers "
                f"[rows], but it is {checks.shown(x)}."
            )
        scaled = isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer)
        if scaled or self.optimizer.loss_scale_factor is not None:
            raise ValueError(
                "A loss that is scaled for float16 isn't the one that tasks are weighed by. Use "
                "the policy mixed_bfloat16, and no loss_scale_factor."
            )
        weighting, structure = self._weighing.weighting, self._weighing.structure
        ids = jnp.asarray(x[self.task]).reshape(-1)
        # The loss is a mean over all rows of the batch, and so that of one row times their number.
        alone = ids.size * jnp.eye(ids.size)

        def loss(trained, weights):
            return self.compute_loss_and_updates(
                trained,
                others,
                metrics,
                x,
                y,
                weights,
                training=True,
                optimizer_variables=optimizer_variables,
            )

        def losses_fn(trained):
            weights = lambda row: _times(sample_weight, row, ranks, y_pred)  # noqa: E731
            of_row = lambda row: loss(trained, weights(row))[0]  # noqa: E731
            return Rows(jax.vmap(of_row)(alone), ids)

        _, (mean, y_pred, after, metrics) = loss(trained, sample_weight)
        ranks = _ranks(self.loss, y, y_pred, sample_weight)
        place = {id(v): number for number, v in enumerate(self.non_trainable_variables)}
        kept = [place[id(v)] for v in self._kept]
        gradient, new = weighting.update(
            None,
            structure.unflatten([others[number] for number in kept]),
            list(trained),
            losses_fn=losses_fn,
        )
        for number, value in zip(kept, jax.tree.leaves(new), strict=True):
            after[number] = value
        trained, optimizer_variables = self.optimizer.stateless_apply(
            optimizer_variables, gradient, trained
        )
        logs, metrics = self._update_metrics_variables(metrics, mean, x, y, y_pred, sample_weight)
        return logs, (trained, after, optimizer_variables, metrics)


def _ranks(losses: Any, y: Any, y_pred: Any, sample_weight: Any) -> list[int]:
    """How many axes the compiled loss of each output has, before Keras takes its mean.

    Raises:
      ValueError: if one doesn't fall apart into losses of rows.
    """
    flat, targets, outputs = (keras.tree.flatten(x) for x in (losses, y, y_pred))
    for loss in flat:
        by_weight = getattr(loss, "reduction", None) == "mean_with_sample_weight"
        if by_weight and sample_weight is not None:
            raise ValueError(
                "The reduction mean_with_sample_weight divides the loss of each row by its weight. "
                "Use sum_over_batch_size."
            )
    if not len(flat) == len(targets) == len(outputs):
        flat = targets = [None] * len(outputs)
    ranks = []
    for loss, target, output in zip(flat, targets, outputs, strict=True):
        if loss is None or target is None:
            # Losses of Keras take the mean of the last axis.
            ranks.append(max(output.ndim - 1, 1))
            continue
        known = keras.losses.get(loss)
        each = getattr(known, "call", known)
        ranks.append(jnp.ndim(each(jnp.asarray(target, output.dtype), output)))
        if ranks[-1] == 0:
            raise ValueError(
                f"A loss must give a number for each row, [B], as Keras' own do, but "
                f"{checks.shown(loss)} gives one for the whole batch. Leave out its mean, which "
                "Keras takes."
            )
    return ranks


def _times(sample_weight: Any, rows: jax.Array, ranks: list[int], y_pred: Any) -> Any:
    """Sample weights, where there are any, times those of rows, ``[B]``.

    Each has as many axes as the loss of its output: Keras would take ``[B]`` for the last one.
    """
    like = sample_weight
    if not keras.tree.is_nested(sample_weight):
        like, sample_weight = y_pred, [sample_weight] * len(ranks)

    def times(weight, rank):
        weight = jnp.ones(1, rows.dtype) if weight is None else jnp.asarray(weight)
        rank = max(weight.ndim, rank)
        weight, own = (x.reshape(*x.shape, *(1,) * (rank - x.ndim)) for x in (weight, rows))
        return weight * own

    pairs = zip(keras.tree.flatten(sample_weight), ranks, strict=True)
    return keras.tree.pack_sequence_as(like, [times(*pair) for pair in pairs])

"""T5X's models with the losses of rows, from which those of tasks are made.

What trains differs from T5X's models by one class, :class:`LDROModel`, put before any of them:
``class LDROMine(LDROModel, Mine)`` makes a model of one's own trainable, see ``docs/t5x.md``.
"""

import ldro_jax.t5x.installed  # noqa: F401

# isort: split
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from t5x import losses as losses_lib
from t5x import models

from ldro_jax.t5x import inheritance
from ldro_jax.t5x.network import DecoderNetwork, with_params_axes

_METHODS = ("predict_batch_with_aux", "score_batch")


class LDROModel(models.BaseTransformerModel):
    """What makes a model of T5X one that :class:`~ldro_jax.t5x.trainer.LDROTrainer` can train.

    Evaluation, scoring and decoding are T5X's own. So are the arguments; gin's bindings for the
    class that it is put before count for those that aren't given, and so do those for its
    ``predict_batch_with_aux`` and ``score_batch``. The training loss of a task is the mean over its
    target tokens, with label smoothing and z-loss as set; a loss normalising factor would be
    without effect, and is refused.

    Raises:
      TypeError: if the model has a loss of its own.
      ValueError: if a loss normalising factor is set, or gin has bindings that can't count.
    """

    def __init__(self, *args, **kwargs) -> None:
        stock = inheritance.stock(type(self), LDROModel)
        if stock.loss_fn is not models.BaseTransformerModel.loss_fn:
            raise TypeError(
                f"{stock.__name__} has a loss_fn of its own, but {type(self).__name__} trains on "
                "the cross-entropy of t5x.models.BaseTransformerModel. Train it with T5X's trainer."
            )
        inheritance.refuse_lost_bindings(stock, _METHODS)
        super().__init__(*args, **kwargs, **inheritance.missing(stock, args, kwargs))
        if self._loss_normalizing_factor is not None:
            raise ValueError(
                "The loss of a task is the mean over its tokens, so loss_normalizing_factor must "
                f"be None, but it is {self._loss_normalizing_factor!r}. Bind "
                f"{type(self).__name__}.loss_normalizing_factor = None, or set "
                "LOSS_NORMALIZING_FACTOR = None in a file of T5X's own kind."
            )

    def predict_batch_with_aux(self, *args, **kwargs) -> Any:
        """T5X's: decodes, with gin's bindings for T5X's method."""
        return self._inherited("predict_batch_with_aux", args, kwargs)

    def score_batch(self, *args, **kwargs) -> Any:
        """T5X's: log-likelihoods of rows, with gin's bindings for T5X's method."""
        return self._inherited("score_batch", args, kwargs)

    def _inherited(self, name, args, kwargs):
        stock = inheritance.stock(type(self), LDROModel)
        method, args = getattr(stock, name), (self, *args)
        return method(*args, **kwargs, **inheritance.missing(method, args, kwargs))

    def row_losses(
        self, params: Any, batch: Mapping[str, jax.Array], dropout_rng: jax.Array | None
    ) -> tuple[jax.Array, Mapping[str, Any]]:
        """Loss of each row, summed over its target tokens.

        Args:
          params: of the model.
          batch: features ``[R, L]``, as of the model's feature converter.
          dropout_rng: for dropout; ``None`` for none.

        Returns:
          ``[R]`` in nats, float32, and T5X's training metrics.
        """
        logits = self._compute_logits(params, batch, dropout_rng)
        targets, weights = batch["decoder_target_tokens"], token_weights(batch)

        def loss_of_row(logits, targets, weights):
            return losses_lib.compute_weighted_cross_entropy(
                logits, targets, weights, self._label_smoothing, self._z_loss
            )

        losses, z_losses, _ = jax.vmap(loss_of_row)(logits, targets, weights)
        metrics = self._compute_metrics(
            logits=logits,
            targets=targets,
            mask=weights,
            loss=losses.sum(),
            z_loss=z_losses.sum(),
            segment_ids=_segments(batch),
        )
        return losses, metrics


class LDRODecoderOnlyModel(LDROModel, models.DecoderOnlyModel):
    """A ``t5x.models.DecoderOnlyModel``, prefix language models too; see :class:`LDROModel`."""

    def get_initial_variables(self, *args, **kwargs) -> Any:
        """T5X's: the parameters, and the names of their axes."""
        variables = super().get_initial_variables(*args, **kwargs)
        if isinstance(self.module, DecoderNetwork):
            variables = with_params_axes(variables)
        return variables


class LDROEncoderDecoderModel(LDROModel, models.EncoderDecoderModel):
    """A ``t5x.models.EncoderDecoderModel``, as of T5 1.1, mT5 and ByT5; see :class:`LDROModel`."""


def token_weights(batch: Mapping[str, jax.Array]) -> jax.Array:
    """Which tokens count, float32 ``[R, L]``: 1 for a target, 0 for padding or a prefix."""
    weights = batch.get("decoder_loss_weights")
    weights = batch["decoder_target_tokens"] > 0 if weights is None else weights
    return weights.astype(jnp.float32)


def row_tokens(batch: Mapping[str, jax.Array]) -> jax.Array:
    """How many tokens of each row count in the loss, float32 ``[R]``.

    NaN where one of the :func:`token_weights` is negative, since a mean over such tokens is none.
    """
    weights = token_weights(batch)
    return jnp.where((weights < 0).any(axis=1), jnp.nan, weights.sum(axis=1))


def _segments(batch):
    """By feature, which text a token is of and 0 for padding, for T5X's metrics."""
    ending = "_segment_ids"
    packed = {k.removesuffix(ending): ids for k, ids in batch.items() if k.endswith(ending)}
    features = {"encoder_input_tokens", "decoder_target_tokens"} & batch.keys()
    return packed or {name: batch[name] != 0 for name in sorted(features)}

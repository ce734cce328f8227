"""T5X's decoder-only model with the losses of rows, from which those of tasks are made."""

import ldro_jax.t5x.installed  # noqa: F401

# isort: split
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.training import common_utils
from t5x import losses as losses_lib
from t5x import models

from ldro_jax.t5x import inheritance
from ldro_jax.t5x.network import DecoderNetwork, with_params_axes


class LDRODecoderOnlyModel(models.DecoderOnlyModel):
    """A ``t5x.models.DecoderOnlyModel`` that :class:`~ldro_jax.t5x.trainer.LDROTrainer` can train.

    Evaluation, scoring and decoding are T5X's own. So are the arguments; gin's bindings for
    ``t5x.models.DecoderOnlyModel`` count for those that aren't given. The training loss of a task
    is the mean over its target tokens, with label smoothing and z-loss as set; a loss normalising
    factor would be without effect, and is refused.
    """

    def __init__(self, *args, **kwargs):
        inheritance.refuse_methods(models.DecoderOnlyModel, ["predict_batch_with_aux"])
        super().__init__(**inheritance.arguments(models.DecoderOnlyModel, args, kwargs))
        if self._loss_normalizing_factor is not None:
            raise ValueError(
                "The loss of a task is the mean over its tokens, so loss_normalizing_factor must "
                f"be None, but it is {self._loss_normalizing_factor!r}. Bind "
                "LDRODecoderOnlyModel.loss_normalizing_factor = None."
            )

    def get_initial_variables(self, *args, **kwargs) -> Any:
        """T5X's: the parameters, and the names of their axes."""
        variables = super().get_initial_variables(*args, **kwargs)
        if isinstance(self.module, DecoderNetwork):
            variables = with_params_axes(variables)
        return variables

    def predict_batch_with_aux(self, *args, **kwargs) -> Any:
        """T5X's: decodes, with gin's bindings for T5X's method."""
        method = models.DecoderOnlyModel.predict_batch_with_aux
        return method(**inheritance.arguments(method, (self, *args), kwargs))

    def row_losses(
        self, params: Any, batch: Mapping[str, jax.Array], dropout_rng: jax.Array | None
    ) -> tuple[jax.Array, Mapping[str, Any]]:
        """Loss of each row, summed over its target tokens.

        Args:
          params: of the model.
          batch: features ``[R, L]``, as of ``seqio.DecoderFeatureConverter``.
          dropout_rng: for dropout; ``None`` for none.

        Returns:
          ``[R]`` in nats, float32, and T5X's training metrics.
        """
        logits = self._compute_logits(params, batch, dropout_rng)
        vocab_size = logits.shape[-1]
        confidence = 1.0 - self._label_smoothing
        low = self._label_smoothing / max(vocab_size - 1, 1)
        targets = common_utils.onehot(
            batch["decoder_target_tokens"], vocab_size, on_value=confidence, off_value=low
        )
        losses, z_losses = losses_lib.cross_entropy_with_logits(
            logits, targets, z_loss=self._z_loss
        )
        if self._label_smoothing:
            # The loss of the best prediction is zero, as in T5X's own loss.
            entropy = -confidence * np.log(confidence) - self._label_smoothing * np.log(low)
            losses = losses - entropy
        weights = token_weights(batch)
        losses, z_losses = losses * weights, z_losses * weights
        if "decoder_segment_ids" in batch:
            segments = {"decoder": batch["decoder_segment_ids"]}
        else:
            segments = {"decoder_target_tokens": batch["decoder_target_tokens"] != 0}
        metrics = self._compute_metrics(
            logits=logits,
            targets=batch["decoder_target_tokens"],
            mask=weights,
            loss=losses.sum(),
            z_loss=z_losses.sum(),
            segment_ids=segments,
        )
        return losses.sum(axis=1), metrics


def token_weights(batch: Mapping[str, jax.Array]) -> jax.Array:
    """Which tokens count in the loss.

    Args:
      batch: features ``[R, L]``.

    Returns:
      ``[R, L]`` float32, 1 for a target token and 0 for padding or a prefix.
    """
    weights = batch.get("decoder_loss_weights")
    weights = batch["decoder_target_tokens"] > 0 if weights is None else weights
    return weights.astype(jnp.float32)

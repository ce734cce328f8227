"""The decoder of this library behind the interface of T5X's decoder-only networks."""

import ldro_jax.t5x.installed  # noqa: F401

# isort: split
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core import freeze, meta, unfreeze
from flax.linen import partitioning as flax_partitioning

from ldro_jax.models.decoder import Decoder


class DecoderNetwork(nn.Module):
    """A ``module`` for :class:`~ldro_jax.t5x.model.LDRODecoderOnlyModel`.

    A token sees all before it in its row, those of other documents too, as in this library's own
    trainer. For training, evaluation and scoring; it has no cache to decode with.

    Attributes:
      config: the decoder.
    """

    config: Decoder

    def setup(self):
        """Makes the decoder a part of this module."""
        self.decoder = self.config.copy(name="decoder")

    def __call__(
        self,
        decoder_input_tokens: jax.Array,
        decoder_target_tokens: jax.Array,
        *,
        decoder_causal_attention: jax.Array | None = None,
        decode: bool = False,
        prefill: bool = False,
        **others: Any,
    ) -> jax.Array:
        """Logits of every token, float32 ``[B, L, V]``, from the target tokens, int32 ``[B, L]``.

        T5X's other arguments have no effect: inputs are the targets moved by one, and there is no
        dropout. Raises ``NotImplementedError`` for decoding and for prefixes.
        """
        del decoder_input_tokens, others
        if decode or prefill or decoder_causal_attention is not None:
            raise NotImplementedError(
                "ldro_jax's decoder can't decode or take prefixes. Choose a network of T5X's own "
                "(gin_configs/t5x/models/t5x_base.gin)."
            )
        # Flax looks at kernels of several axes as flat ones first, which T5X's rules don't fit.
        with nn.logical_axis_rules(()):
            return self.decoder.logits(decoder_target_tokens.astype(jnp.int32))


def with_params_axes(variables: Any) -> Any:
    """Parameters that Flax has boxed with logical axes, as T5X expects them.

    These are arrays without boxes, and the names of their axes in a collection ``params_axes``.
    """

    def names_of_axes(tree):
        named = {}
        for key, value in tree.items():
            if isinstance(value, dict):
                named[key] = names_of_axes(value)
            else:
                named[f"{key}_axes"] = flax_partitioning.AxisMetadata(tuple(value.names))
        return named

    params = unfreeze(variables["params"])
    return freeze({"params": meta.unbox(params), "params_axes": names_of_axes(params)})

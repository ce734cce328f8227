"""Cross-entropy of next tokens without all their logits in memory at once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax


def token_losses(
    hidden_BxLxD: jax.Array,
    embedding_VxD: jax.Array,
    targets_BxL: jax.Array,
    *,
    chunk: int | None = None,
) -> jax.Array:
    """Cross-entropy of each token, ``−log softmax(hidden @ embeddingᵀ)[target]``.

    Args:
      hidden_BxLxD: what the logits are made from.
      embedding_VxD: the rows of the output layer.
      targets_BxL: int32.
      chunk: number of positions to have logits of at a time, so that there are never more than
        ``B × chunk × V`` of them; the backward pass computes them again. By default all positions,
        and nothing is computed twice.

    Returns:
      ``[B, L]`` in nats, float32 or wider.
    """
    length = targets_BxL.shape[1]
    if chunk is None or chunk >= length:
        return _chunk_losses(embedding_VxD, hidden_BxLxD, targets_BxL)
    padding = -length % chunk

    def chunks(array):
        # Along the length, which is never sharded, so that each chunk is spread like the whole.
        widths = [(0, 0), (0, padding), *[(0, 0)] * (array.ndim - 2)]
        parts = jnp.pad(array, widths).reshape(array.shape[0], -1, chunk, *array.shape[2:])
        return jnp.moveaxis(parts, 1, 0)

    losses = jax.lax.map(
        lambda part: jax.checkpoint(functools.partial(_chunk_losses, embedding_VxD))(*part),
        (chunks(hidden_BxLxD), chunks(targets_BxL)),
    )
    return jnp.moveaxis(losses, 0, 1).reshape(targets_BxL.shape[0], -1)[:, :length]


def _chunk_losses(embedding, hidden, targets):
    # JAX's own promote_types is an error for two dtypes under strict promotion.
    dtype = np.promote_types(hidden.dtype, np.float32)
    logits = jnp.einsum(
        "bld,vd->blv", hidden, embedding.astype(hidden.dtype), preferred_element_type=dtype
    )
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets)

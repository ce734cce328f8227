"""What tells data, models and training states from others that may have the same names."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp


def check(what: str, found: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Raises ``ValueError`` if something was made with other data.

    Args:
      what: how to call it.
      found: the identity that was saved with it, in plain JSON types.
      ours: the identity of the data now.

    Raises:
      ValueError: naming the first entry that differs.
    """
    for name in [*ours, *found]:
        if found.get(name) != ours.get(name):
            raise ValueError(
                f"{what} was made with other data: {name} was {found.get(name)}, now it is "
                f"{ours.get(name)}. Give the run the data it began with, or choose another "
                "--output_dir."
            )


def structure(state: Any) -> dict[str, str]:
    """Dtype and shape of each array, by its path.

    Args:
      state: a pytree of arrays.

    Returns:
      Texts such as ``float32[3, 2]``.
    """
    return {
        jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }


def digest(state: Any) -> list[list[int]]:
    """Two sums over the bits of each array.

    They are computed where the arrays are, and the same on any devices. With several processes, all
    of them must call this.

    Args:
      state: a pytree of arrays.

    Returns:
      Integers of 32 bits. Where a single word differs, so do both sums.
    """
    return [[int(x) for x in sums] for sums in _sums(jax.tree.leaves(state))]


@jax.jit
def _sums(leaves: list[jax.Array]) -> list[jax.Array]:
    return [_weighted_sums(leaf) for leaf in leaves]


def _weighted_sums(leaf: jax.Array) -> jax.Array:
    bits = leaf.astype(jnp.uint8) if leaf.dtype == bool else leaf
    size = min(bits.dtype.itemsize, 4)
    bits = jax.lax.bitcast_convert_type(bits, f"uint{8 * size}").astype(jnp.uint32)
    place, stride = jnp.zeros(bits.shape, jnp.uint32), 1
    for axis in reversed(range(bits.ndim)):
        index = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
        place, stride = place + index * jnp.uint32(stride % 2**32), stride * bits.shape[axis]
    # A change of one word changes both sums, because odd factors have an inverse modulo 2^32.
    factors = (place * 2 + 1, (place * jnp.uint32(2654435761)) | 1)
    return jnp.stack([jnp.sum(bits * factor, dtype=jnp.uint32) for factor in factors])

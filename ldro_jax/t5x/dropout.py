"""Random numbers that belong to rows, so that a row has one dropout mask in every pass over it.

JAX draws the mask of a whole batch from one key: the same row gets another mask where it lies among
others. The losses of a step come from one pass over all rows, though, and the matrix often from
another one, task by task; both are to be of the same network. The keys made here hold one key for
each row, and what is drawn from them for ``[row, ...]`` is drawn row by row. It doesn't depend on
the devices that rows lie on, either.
"""

import functools
from typing import Any

import jax
import jax.extend.random
import jax.numpy as jnp

_IMPL = "threefry2x32"


def row_keys(rng: jax.Array, numbers: jax.Array) -> jax.Array:
    """A typed key, a scalar like any other, from which each row draws on its own.

    Drawn from it, an array whose leading axis holds the rows, or a number of entries of each row
    after those of the row before (``[R × L, ...]``), depends on nothing but the numbers of the
    rows. What has no axis of rows is drawn with the key of the first row.

    Args:
      rng: of the step, a key of any kind.
      numbers: which row of the step each one is, int32 ``[R]``.
    """
    # Whatever generator the run has: that of hardware can't draw row by row.
    key = _wrapped(jax.random.bits(rng, (2,), jnp.uint32))
    keys = jax.vmap(lambda number: jax.random.key_data(jax.random.fold_in(key, number)))(numbers)
    return jax.random.wrap_key_data(keys, impl=_of_rows(numbers.size))


@functools.cache
def _of_rows(rows: int) -> Any:
    """JAX's interface of a generator whose keys are those of so many rows, ``[rows, 2]``."""

    def split(keys, shape):
        new = jax.vmap(lambda key: jax.random.key_data(jax.random.split(_wrapped(key), shape)))
        return jnp.moveaxis(new(keys), 0, -2)

    def fold_in(keys, data):
        new = jax.vmap(lambda key: jax.random.key_data(jax.random.fold_in(_wrapped(key), data)))
        return new(keys)

    def random_bits(keys, bit_width, shape):
        dtype = jnp.dtype(f"uint{bit_width}")
        if not shape or shape[0] % rows:
            return jax.random.bits(_wrapped(keys[0]), shape, dtype)
        own = (shape[0] // rows, *shape[1:])
        return jax.vmap(lambda key: jax.random.bits(_wrapped(key), own, dtype))(keys).reshape(shape)

    return jax.extend.random.define_prng_impl(
        key_shape=(rows, 2),
        seed=lambda number: jnp.tile(jax.random.key_data(jax.random.key(number)), (rows, 1)),
        split=split,
        random_bits=random_bits,
        fold_in=fold_in,
        name=f"{_IMPL} of {rows} rows",
        tag=f"rows{rows}",
    )


def _wrapped(data: jax.Array) -> jax.Array:
    return jax.random.wrap_key_data(data, impl=_IMPL)

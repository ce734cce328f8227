"""A few gradients against a few others: the paper's memory-saver (appendix C)."""

import jax
import jax.numpy as jnp

from ldro_jax.interaction import base
from ldro_jax.runtime import checks, leaves


@leaves.needs_arrays
def tiled(tile_size: int = 1) -> base.Interaction:
    """Computes the upper triangle tile by tile, holding two tiles of gradients at a time.

    Work: about ``N / (2 tile_size)`` backward passes over the batch. Memory: ``2 tile_size``
    gradients. With ``tile_size=1`` this is the pairwise recomputation of the paper.

    Args:
      tile_size: number of tasks to a tile. It need not divide the number of tasks.

    Raises:
      ValueError: if the tile size is not a positive integer.
    """
    tile_size = checks.integer("tile_size", tile_size)

    def matrix(loss_fn, params, batch):
        num_tasks = base.num_tasks(batch)
        batch = base.whole_tasks(batch)
        num_tiles = -(-num_tasks // tile_size)
        size = num_tiles * tile_size

        def gradients(tile):
            # The last tile may reach past the last task: it repeats that one, and is cut off below.
            indices = jnp.minimum(tile * tile_size + jnp.arange(tile_size), num_tasks - 1)
            tile_batch = jax.tree.map(lambda x: jnp.take(x, indices, axis=0), batch)
            return jax.lax.map(lambda task_batch: jax.grad(loss_fn)(params, task_batch), tile_batch)

        dtype = base.statistics_dtype(params)

        def row_of_tiles(row):
            left = gradients(row)

            def add_tile(column, products):
                block = base.gram(left, gradients(column)).astype(dtype)
                return jax.lax.dynamic_update_slice(products, block, (0, column * tile_size))

            products = base.zeros((tile_size, size), dtype, params)
            return jax.lax.fori_loop(row, num_tiles, add_tile, products)

        rows = jax.lax.map(row_of_tiles, jnp.arange(num_tiles))
        upper = jnp.triu(rows.reshape(size, size)[:num_tasks, :num_tasks])
        return upper + jnp.triu(upper, 1).T

    return base.Interaction(matrix)

"""The batches of many steps, drawn inside a compiled program.

Which rows make up a batch is a pure function of key and step, so a run that is interrupted draws
the same ones again. A batch is flat, with the task of every row, which fits any batch size;
:func:`places` finds the rows of each task in it.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ldro_jax.tasks.drawing.drawer import Draw, Drawer

# Up to how many times the smallest task the largest may be for the rows of some alone to be drawn
# in less time than those of all.
_SIMILAR = 4


def stretch(
    drawer: Drawer,
    key: jax.Array,
    start: jax.typing.ArrayLike,
    num_steps: int,
    chosen: jax.Array | None = None,
) -> Draw:
    """Draws the batches of some steps.

    Each task goes through its rows in a fresh random order in every epoch of its own; plain random
    batches go through those of all tasks in one.

    Args:
      drawer: says how: its sampler, "balanced" or "uniform", its size and sizes.
      key: a key for the whole run; the result is a function of it and of the steps alone.
      start: the first step.
      num_steps: number of steps, a Python integer.
      chosen: which tasks to draw from, of those that have the drawer's ``sizes``, int32 ``[M]``; by
        default all. Each has its rows in the order in which it has them among all.

    Returns:
      The draw, ``[step, B]``; a balanced batch is sorted by task. Tasks are places in ``chosen``,
      where that is given.
    """
    sizes = np.asarray(drawer.sizes)
    if drawer.sampler == "uniform":
        assert chosen is None
        return _uniform(key, start, num_steps, sizes, drawer.size)
    return _balanced(key, start, num_steps, sizes, drawer.size, chosen)


def _balanced(key, start, num_steps: int, sizes: np.ndarray, batch_size: int, chosen) -> Draw:
    """Where N doesn't divide the batch, the tasks take turns in having one row more.

    No task is ever more than one row ahead of another.
    """
    num_tasks = sizes.size if chosen is None else chosen.size
    share, extra = divmod(batch_size, num_tasks)
    assert chosen is None or not extra
    capacity = share + bool(extra)

    def drawn_before(step):
        """How many rows of each task, ``[N]``, all steps before this one have drawn."""
        turns = (extra * step + num_tasks - 1 - jnp.arange(num_tasks, dtype=jnp.int32)) // num_tasks
        return share * step + turns

    steps = jnp.asarray(start, jnp.int32) + jnp.arange(num_steps, dtype=jnp.int32)
    before, after = jax.vmap(drawn_before)(steps), jax.vmap(drawn_before)(steps + 1)
    places = jnp.arange(capacity, dtype=jnp.int32)[None, None, :]
    positions = before[:, :, None] + places  # [step, N, capacity]
    indices = _epochs(key, positions.swapaxes(0, 1).reshape(num_tasks, -1), sizes, chosen)
    indices = indices.reshape(num_tasks, num_steps, capacity).swapaxes(0, 1)
    if not extra:
        # Every place is taken, and there is nothing to look for.
        tasks = jnp.arange(num_tasks, dtype=jnp.int32)[None, :, None]
        shape = num_steps, batch_size
        return Draw(jnp.broadcast_to(tasks, indices.shape).reshape(shape), indices.reshape(shape))
    present = positions < after[:, :, None]

    def rows(present, indices):
        (row,) = jnp.nonzero(present.reshape(-1), size=batch_size)
        return Draw((row // capacity).astype(jnp.int32), indices.reshape(-1)[row])

    return jax.vmap(rows)(present, indices)


def _uniform(key, start, num_steps: int, sizes: np.ndarray, batch_size: int) -> Draw:
    ends = np.cumsum(sizes)
    count = num_steps * batch_size
    first = jnp.asarray(start, jnp.int32) * batch_size
    positions = first + jnp.arange(count, dtype=jnp.int32)
    drawn = _epochs(key, positions[None], ends[-1:])[0]
    task = jnp.searchsorted(jnp.asarray(ends), drawn, side="right").astype(jnp.int32)
    index = drawn - jnp.asarray(ends - sizes, jnp.int32)[task]
    return Draw(task.reshape(num_steps, batch_size), index.reshape(num_steps, batch_size))


def _epochs(
    key: jax.Array, positions: jax.Array, sizes: np.ndarray, chosen: jax.Array | None = None
) -> jax.Array:
    """The rows at ascending positions, int32 ``[N, P]``, of one endless stream for each task.

    The ``sizes[n]`` rows of a task come in a fresh random order in every epoch of its stream. Where
    only some tasks are ``chosen``, ``[M]``, positions and rows are ``[M, P]``, and all tasks have
    the same positions.
    """

    def one_task(key, positions, size, capacity, num_epochs):
        first = positions[0] // size

        def order(epoch):
            noise = jax.random.uniform(jax.random.fold_in(key, epoch), (capacity,))
            padding = jnp.arange(capacity, dtype=jnp.int32) >= size
            return jnp.argsort(jnp.where(padding, jnp.inf, noise))

        orders = jax.vmap(order)(first + jnp.arange(num_epochs, dtype=jnp.int32))
        return orders[positions // size - first, positions % size]

    keys = jax.random.split(key, sizes.size)
    if chosen is not None:
        # Which they are isn't known while this is compiled.
        fewest, most = int(sizes.min()), int(sizes.max())
        if most > _SIMILAR * fewest:
            every = jnp.broadcast_to(positions[:1], (sizes.size, positions.shape[1]))
            return _epochs(key, every, sizes)[chosen]
        draw = functools.partial(
            one_task, capacity=most, num_epochs=positions.shape[1] // fewest + 2
        )
        own = jnp.asarray(sizes, jnp.int32)[chosen]
        return jax.vmap(draw)(keys[chosen], positions, own).astype(jnp.int32)
    indices = jnp.zeros(positions.shape, jnp.int32)
    # Tasks of similar size together: a small one has many epochs, and with padding to the largest
    # task each would be as long to sort as that one's. A program of its own for every size would be
    # as long to compile.
    scales = np.array([int(size).bit_length() for size in sizes])
    for scale in np.unique(scales):
        tasks = np.flatnonzero(scales == scale)
        draw = functools.partial(
            one_task,
            capacity=int(sizes[tasks].max()),
            # A stretch may start and end in the middle of an epoch.
            num_epochs=positions.shape[1] // int(sizes[tasks].min()) + 2,
        )
        drawn = jax.vmap(draw)(keys[tasks], positions[tasks], jnp.asarray(sizes[tasks], jnp.int32))
        indices = indices.at[tasks].set(drawn.astype(jnp.int32))
    return indices


def places(tasks: jax.Array, num_tasks: int, capacity: int) -> jax.Array:
    """Where the rows of each task are in one batch, whose tasks are int32 ``[B]``.

    Returns:
      int32 ``[N, capacity]``, filled up with −1; more rows of a task than that are left out.
    """
    belongs = tasks[:, None] == jnp.arange(num_tasks, dtype=jnp.int32)[None, :]  # [B, N]
    rank = jnp.sum(jnp.where(belongs, jnp.cumsum(belongs, axis=0), 0), axis=1) - 1
    empty = jnp.full((num_tasks, capacity), -1, jnp.int32)
    return empty.at[tasks, rank].set(jnp.arange(tasks.size, dtype=jnp.int32), mode="drop")

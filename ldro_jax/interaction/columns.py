"""One column at a time, by forward mode along one task's gradient."""

import jax

from ldro_jax.interaction import base
from ldro_jax.runtime import leaves


@leaves.needs_arrays
def columns() -> base.Interaction:
    """Computes ``A e_j`` as the change of all losses along task j's gradient.

    Work: N forward-mode passes over the batch, each about twice a forward pass, and one backward
    pass. Memory: one gradient. Needs a loss that forward mode can differentiate: not one with a
    ``jax.custom_vjp``.
    """

    def matrix(loss_fn, params, batch):
        batch = base.whole_tasks(batch)
        dtype = base.statistics_dtype(params)

        def losses_fn(params):
            return jax.vmap(loss_fn, in_axes=(None, 0))(params, batch).astype(dtype)

        def column(task_batch):
            direction = jax.grad(loss_fn)(params, task_batch)
            return jax.jvp(losses_fn, (params,), (direction,))[1]

        return jax.lax.map(column, batch).T

    return base.Interaction(matrix)

"""All task gradients at once: the default."""

import jax

from ldro_jax.interaction import base
from ldro_jax.runtime import leaves


@leaves.needs_arrays
def vmap() -> base.Interaction:
    """Differentiates all tasks side by side and sums the Gram matrix leaf by leaf.

    Work: one backward pass over the batch. Memory: N times the largest parameter, since each leaf's
    N gradients are freed before the next are needed; N times the whole model if one leaf is most of
    it.
    """

    def gradients(loss_fn, params, batch, *, has_aux=False):
        value_and_gradient = jax.value_and_grad(loss_fn, has_aux=has_aux)
        return jax.vmap(value_and_gradient, in_axes=(None, 0))(params, batch)

    def matrix(loss_fn, params, batch):
        return base.gram(jax.vmap(jax.grad(loss_fn), in_axes=(None, 0))(params, batch))

    return base.Interaction(matrix, gradients)

"""Rows of the Jacobian of the loss vector, for any layout of the batch."""

from collections.abc import Callable
from typing import Any

import jax

from ldro_jax.interaction import base, pulled
from ldro_jax.runtime import leaves


def jacobian_gram(
    losses_fn: Callable[[Any], jax.Array], params: Any, *, interval: Any = None
) -> jax.Array:
    """Gram matrix ``[N, N]`` of the Jacobian of a loss vector, ``params -> losses [N]``.

    See :mod:`.pulled` for what it costs. With the ``interval``, in how many steps it is measured
    once, it takes less memory and more time where that is long.

    Raises:
      ValueError: if a leaf of the parameters isn't an array.
    """
    leaves.check_arrays("params", params)
    losses, pullback = jax.vjp(lambda p: base.replicated(losses_fn(p)), params)
    return pullback_gram(losses, pullback, interval=interval)


def pullback_gram(
    losses: jax.Array, pullback: Callable[[jax.Array], Any], *, interval: Any = None
) -> jax.Array:
    """Gram matrix ``[N, N]`` of losses ``[N]``, each pulled back as :func:`jax.vjp` gives it."""
    (gradient,) = jax.eval_shape(pullback, losses)
    return pulled.matrix(
        lambda weights: pullback(weights)[0],
        losses.size,
        losses.dtype,
        limit=base.limit(gradient),
        interval=interval,
    )


@leaves.needs_arrays
def jacrev() -> base.Interaction:
    """Differentiates the loss vector in reverse mode, every task through the whole batch.

    Work: N backward passes over the batch. Memory: N gradients, or what :mod:`.pulled` makes of
    them. The only one for a loss vector whose tasks don't own rows of the batch.
    """

    def matrix(loss_fn, params, batch):
        return jacobian_gram(lambda p: jax.vmap(loss_fn, in_axes=(None, 0))(p, batch), params)

    return base.Interaction(matrix)

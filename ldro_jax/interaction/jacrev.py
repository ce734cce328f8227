"""Rows of the Jacobian of the loss vector: the reference, for any layout of the batch."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ldro_jax.interaction import base
from ldro_jax.runtime import leaves


def jacobian_gram(losses_fn: Callable[[Any], jax.Array], params: Any) -> jax.Array:
    """Gram matrix ``[N, N]`` of the Jacobian of a loss vector, ``params -> losses [N]``.

    Raises:
      ValueError: if a leaf of the parameters isn't an array.
    """
    leaves.check_arrays("params", params)
    if jax.default_backend() != "cpu":
        return base.gram(jax.jacrev(lambda p: base.replicated(losses_fn(p)))(params))
    # XLA:CPU of jaxlib 0.10.2 silently miscompiles a batched pullback (jit of jacrev or of
    # vmap(vjp)) of some loss vectors; one row after another has always been right, and is no slower
    # there.
    return pullback_gram(*jax.vjp(lambda p: base.replicated(losses_fn(p)), params))


def pullback_gram(losses: jax.Array, pullback: Callable[[jax.Array], Any]) -> jax.Array:
    """Gram matrix ``[N, N]`` of losses ``[N]``, each pulled back as :func:`jax.vjp` gives it."""
    basis = jnp.eye(losses.size, dtype=losses.dtype)
    return base.gram(jax.lax.map(lambda cotangent: pullback(cotangent)[0], basis))


@leaves.needs_arrays
def jacrev() -> base.Interaction:
    """Differentiates the loss vector in reverse mode, every task through the whole batch.

    Work: N backward passes over the batch. Memory: N gradients. The reference that the other
    strategies are tested against, and the only one for a loss vector whose tasks don't own rows of
    the batch.
    """

    def matrix(loss_fn, params, batch):
        return jacobian_gram(lambda p: jax.vmap(loss_fn, in_axes=(None, 0))(p, batch), params)

    return base.Interaction(matrix)

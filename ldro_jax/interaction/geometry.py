"""Interactions in the geometry of the optimizer, in which the step will be taken.

An optimizer such as Adam divides each parameter's gradient by a running size of it. To first order,
its step along the gradient of task j changes the loss of task i by ``⟨∇ℓ_i, P ∇ℓ_j⟩``, with these
factors as the diagonal matrix P, and not by the product of the bare gradients.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ldro_jax.interaction import base
from ldro_jax.runtime import checks
from ldro_jax.runtime import leaves as leaves_lib


def preconditioned(strategy: base.Interaction, preconditioner: Any) -> base.Interaction:
    """Measures ``⟨∇ℓ_i, P ∇ℓ_j⟩``; without stacked gradients if there is a P.

    Args:
      strategy: how to measure inner products.
      preconditioner: the diagonal of P, not negative, a pytree like the parameters; ``None`` for
        the plain products.
    """
    checks.instance("strategy", strategy, base.Interaction, "interaction.get('vmap')")
    if preconditioner is None:
        return strategy

    def matrix(loss_fn, params, batch):
        return strategy.matrix(*in_units(loss_fn, params, preconditioner), batch)

    def of_losses(losses_fn, params):
        assert strategy.of_losses is not None
        return strategy.of_losses(*in_units(losses_fn, params, preconditioner))

    return strategy._replace(
        matrix=matrix,
        gradients=None,
        pullback=None,
        from_gram=None,
        parts=1,
        of_losses=None if strategy.of_losses is None else of_losses,
    )


def in_units(loss_fn: Callable, params: Any, preconditioner: Any) -> tuple[Callable[..., Any], Any]:
    """A loss as a function of an offset of the parameters in units of √P, and the offset zero.

    Its gradients there are ``√P ∇ℓ``, whose plain products are those of the geometry.

    Raises:
      ValueError: if P, the preconditioner, isn't like the parameters.
    """
    what = "preconditioner must have the structure and shapes of the parameters"
    scale = jax.tree.map(jnp.sqrt, leaves_lib.like(what, preconditioner, params))

    def moved_loss(offset, *rest):
        moved = jax.tree.map(lambda p, s, x: p + (s * x).astype(p.dtype), params, scale, offset)
        return loss_fn(moved, *rest)

    return moved_loss, jax.tree.map(jnp.zeros_like, scale)


def scaled(gradients: Any, preconditioner: Any) -> Any:
    """Gradients, or stacked ones ``[N, ...]``, in units of √P; as they are where P is ``None``."""
    if preconditioner is None:
        return gradients

    def in_units(g, p):
        return g * jnp.expand_dims(jnp.sqrt(p).astype(g.dtype), tuple(range(g.ndim - p.ndim)))

    return jax.tree.map(in_units, gradients, preconditioner)

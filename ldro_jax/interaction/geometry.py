"""Interactions in the geometry of the optimizer, in which the step will be taken.

An optimizer such as Adam divides each parameter's gradient by a running size of it. To first order,
its step along the gradient of task j changes the loss of task i by ``⟨∇ℓ_i, P ∇ℓ_j⟩``, with these
factors as the diagonal matrix P, and not by the product of the bare gradients.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ldro_jax import _leaves, _state, checks
from ldro_jax.interaction import base

# The state of optax.contrib.schedule_free_adamw; Optax has no public name for it.
_CORRECTED_RMS = "ScaleByRmsWithCountState"


def preconditioned(strategy: base.Interaction, preconditioner: Any) -> base.Interaction:
    """Measures ``⟨∇ℓ_i, P ∇ℓ_j⟩``.

    Args:
      strategy: how to measure inner products.
      preconditioner: the diagonal of P, not negative, a pytree like the parameters; ``None`` for
        the plain products.

    Returns:
      The :class:`~ldro_jax.interaction.base.Interaction`, without gradients if there is a P.
    """
    checks.instance("strategy", strategy, base.Interaction, "interaction.get('vmap')")
    if preconditioner is None:
        return strategy

    def matrix(loss_fn, params, batch):
        return strategy.matrix(*in_units(loss_fn, params, preconditioner), batch)

    return base.Interaction(matrix, multiple=strategy.multiple)


def in_units(loss_fn: Callable, params: Any, preconditioner: Any) -> tuple[Callable, Any]:
    """A loss as a function of an offset of the parameters in units of √P, and no offset.

    Its gradients there are ``√P ∇ℓ``, whose plain products are those of the geometry.

    Args:
      loss_fn: ``(params, ...) -> losses``.
      params: where to differentiate.
      preconditioner: the diagonal of P, a pytree like the parameters.

    Returns:
      ``(offset, ...) -> losses``, and the offset zero.

    Raises:
      ValueError: if P isn't like the parameters.
    """
    what = "preconditioner must have the structure and shapes of the parameters"
    scale = jax.tree.map(jnp.sqrt, _leaves.like(what, preconditioner, params))

    def moved_loss(offset, *rest):
        moved = jax.tree.map(lambda p, s, x: p + (s * x).astype(p.dtype), params, scale, offset)
        return loss_fn(moved, *rest)

    return moved_loss, jax.tree.map(jnp.zeros_like, scale)


def scaled(gradients: Any, preconditioner: Any) -> Any:
    """Stacked gradients ``[N, ...]`` in units of √P.

    Args:
      gradients: a pytree.
      preconditioner: the diagonal of P, a pytree like the parameters; ``None`` for no such unit.

    Returns:
      A pytree like ``gradients``.
    """
    if preconditioner is None:
        return gradients
    return jax.tree.map(
        lambda g, p: g * jnp.sqrt(p).astype(g.dtype)[None], gradients, preconditioner
    )


def from_optimizer(opt_state: Any, *, decay: float = 0.999, eps: float = 1e-8) -> Any:
    """The factors that an optimizer will multiply the gradient with, before its learning rate.

    Args:
      opt_state: the state of Optax's ``adam`` or one of its kin (``adamw``, ``nadam``, ``lamb``),
        ``rmsprop`` or ``adagrad``, alone, in a chain, or in ``contrib.schedule_free``.
      decay: β₂ of Adam, for the correction of its first steps.
      eps: what the optimizer adds to the root.

    Returns:
      A pytree like the parameters; ones before the first step of an optimizer that begins at zero.
      Afterwards a parameter that never had a gradient counts for nothing: what its first step will
      be divided by is not known yet.

    Raises:
      ValueError: if the state holds no such running squares, or more than one set of them.
    """
    checks.number("decay", decay, "[0, 1)")
    checks.number("eps", eps, "(0, inf)")
    state = _running(opt_state)
    squares = _squares(state)
    correction = jnp.ones([])
    if _is_corrected(state):
        correction = 1 - decay ** jnp.maximum(state.count, 1).astype(jnp.float32)
    started = [(x > 0).any() for x in jax.tree.leaves(squares)]
    is_known = jnp.stack(started).any()

    def factor(square):
        root = jnp.sqrt(square / correction.astype(square.dtype))
        return jnp.where(is_known, jnp.where(square > 0, 1 / (root + eps), 0), 1)

    return jax.tree.map(factor, squares)


def decay_of(optimizer: optax.GradientTransformation, params: Any) -> float:
    """β₂ of the Adam in an optimizer, by how much of a squared gradient is left a step later.

    Args:
      optimizer: Optax's ``adam`` or one of its kin, alone or in a chain.
      params: arrays or their shapes.

    Returns:
      β₂; 0.999 if the optimizer has running squares of another kind.

    Raises:
      ValueError: if its state holds no running squares, or what is left can't be told.
    """
    numbers = jax.tree.map(lambda x: jnp.zeros([], x.dtype), params)

    def remembered():
        optimizer_ = optax.with_extra_args_support(optimizer)
        ones, state = jax.tree.map(jnp.ones_like, numbers), optimizer_.init(numbers)
        found = []
        for gradient in (ones, numbers):
            _, state = optimizer_.update(gradient, state, numbers)
            leaves = jax.tree.leaves(_squares(_running(state)))
            found.append(jnp.sum(jnp.stack([x.astype(jnp.float32) for x in leaves])))
        return found[1] / found[0]

    with jax.numpy_dtype_promotion("standard"):
        if not _is_corrected(_running(jax.eval_shape(optimizer.init, numbers))):
            return 0.999
        decay = float(jax.jit(remembered)())
    if not 0 <= decay < 1:
        raise ValueError(
            "Adam's decay of the squared gradients can't be told from its first two steps. Give "
            "geometry=functools.partial(interaction.from_optimizer, decay=...)."
        )
    return decay


def _running(opt_state: Any) -> Any:
    """The part of an optimizer's state that holds running squares."""
    kinds = (optax.ScaleByAdamState, optax.ScaleByRmsState, optax.ScaleByRssState)

    def is_running(node):
        return isinstance(node, kinds) or type(node).__name__ == _CORRECTED_RMS

    # A weighting may have an Adam of its own, of its logits.
    leaves = jax.tree.leaves(
        opt_state, is_leaf=lambda x: is_running(x) or isinstance(x, _state.WeightedState)
    )
    found = [leaf for leaf in leaves if is_running(leaf)]
    if not found:
        for fields in ({"nu"}, {"sum_of_squares"}):
            _state.check_types(opt_state, fields)
    if len(found) != 1:
        raise ValueError(
            "The optimizer's geometry needs one set of running squared gradients, as adam, rmsprop "
            f"and adagrad have it, but its state holds {len(found)}. Use such an optimizer, or the "
            "plain interaction."
        )
    return found[0]


def _is_corrected(state: Any) -> bool:
    """Whether the first steps are corrected for squares that began at zero, as Adam does it."""
    return isinstance(state, optax.ScaleByAdamState) or type(state).__name__ == _CORRECTED_RMS


def _squares(state: Any) -> Any:
    return state.sum_of_squares if isinstance(state, optax.ScaleByRssState) else state.nu

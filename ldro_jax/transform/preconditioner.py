"""How an optimizer scales each parameter, for the interaction in its geometry.

See :mod:`ldro_jax.interaction.geometry`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from ldro_jax.runtime import checks
from ldro_jax.transform import state as state_lib

# The state of optax.contrib.schedule_free_adamw; Optax has no public name for it.
_CORRECTED_RMS = "ScaleByRmsWithCountState"


def preconditioner(opt_state: Any, *, decay: float = 0.999, eps: float = 1e-8) -> Any:
    """How the optimizer scales each parameter, to look ahead along the step it will take.

    Adam divides each parameter's gradient by a running size of it. Pass these factors to ``update``
    and A_ij is ``⟨∇ℓ_i, P ∇ℓ_j⟩``, the change of task i's loss by Adam's step for task j:

    ``tx.update(None, state, params, …, preconditioner=ldro.preconditioner(state))``

    Args:
      opt_state: the state of Optax's ``adam`` or one of its kin, ``rmsprop`` or ``adagrad``, in a
        chain or alone.
      decay: β₂ of Adam.
      eps: what the optimizer adds to the root.

    Returns:
      A pytree like the parameters; ones before the first step.

    Raises:
      ValueError: if the state holds no running squares, or more than one set of them.
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

    It is 0.999 if the optimizer has running squares of another kind.

    Args:
      optimizer: Optax's ``adam`` or one of its kin, alone or in a chain.
      params: arrays or their shapes.

    Raises:
      ValueError: if its state holds no running squares, or what is left can't be told.
    """
    numbers = jax.tree.map(lambda x: jnp.zeros([], x.dtype), params)

    def remembered():
        optimizer_ = optax.with_extra_args_support(optimizer)
        ones, state = jax.tree.map(jnp.ones_like, numbers), optimizer_.init(numbers)
        sums = []
        for gradient in (ones, numbers):
            _, state = optimizer_.update(gradient, state, numbers)
            leaves = jax.tree.leaves(_squares(_running(state)))
            sums.append(jnp.sum(jnp.stack([x.astype(jnp.float32) for x in leaves])))
        return sums[1] / sums[0]

    with jax.numpy_dtype_promotion("standard"):
        if not _is_corrected(_running(jax.eval_shape(optimizer.init, numbers))):
            return 0.999
        decay = float(jax.jit(remembered)())
    if not 0 <= decay < 1:
        raise ValueError(
            "Adam's decay of the squared gradients can't be told from its first two steps. Give "
            "geometry=functools.partial(ldro.preconditioner, decay=...)."
        )
    return decay


def _running(opt_state: Any) -> Any:
    """The part of an optimizer's state that holds running squares."""
    kinds = (optax.ScaleByAdamState, optax.ScaleByRmsState, optax.ScaleByRssState)

    def is_running(node):
        return isinstance(node, kinds) or type(node).__name__ == _CORRECTED_RMS

    # A weighting may have an Adam of its own, of its logits.
    leaves = jax.tree.leaves(
        opt_state, is_leaf=lambda x: is_running(x) or isinstance(x, state_lib.WeightedState)
    )
    states = [leaf for leaf in leaves if is_running(leaf)]
    if not states:
        for fields in ({"nu"}, {"sum_of_squares"}):
            state_lib.check_types(opt_state, fields)
    if len(states) != 1:
        raise ValueError(
            "The optimizer's geometry needs one set of running squared gradients, as adam, rmsprop "
            f"and adagrad have it, but its state holds {len(states)}. Use such an optimizer, or "
            "the plain interaction."
        )
    return states[0]


def _is_corrected(state: Any) -> bool:
    """Whether the first steps are corrected for squares that began at zero, as Adam does it."""
    return isinstance(state, optax.ScaleByAdamState) or type(state).__name__ == _CORRECTED_RMS


def _squares(state: Any) -> Any:
    return state.sum_of_squares if isinstance(state, optax.ScaleByRssState) else state.nu

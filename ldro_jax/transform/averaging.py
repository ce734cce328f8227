"""An exponential mean of the parameters, which a model is evaluated with."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ldro_jax.measuring import trained as trained_lib
from ldro_jax.runtime import checks


class AveragedState(NamedTuple):
    """The state of :func:`averaged`.

    Attributes:
      inner: of the optimizer.
      averaged: the mean, like the parameters.
      count: number of steps taken, int32.
    """

    inner: Any
    averaged: Any
    count: jax.Array


def averaged(
    optimizer: optax.GradientTransformation, decay: float = 0.999
) -> optax.GradientTransformationExtraArgs:
    """An optimizer that also keeps an exponential mean of the parameters.

    The trainer evaluates with the mean, and :func:`ldro_jax.load` gives it. In a loop of one's own
    :func:`evaluated` does. It is a plain mean of all steps until there are ``1 / (1 − decay)``.

    Args:
      optimizer: of Optax.
      decay: how much of the mean stays in a step, in [0, 1).

    Raises:
      ValueError: if one of these isn't what it must be.
    """
    checks.instance("optimizer", optimizer, optax.GradientTransformation, "optax.adam(0.001)")
    checks.number("decay", decay, "[0, 1)")
    inner = optax.with_extra_args_support(optimizer)

    def init(params):
        return AveragedState(inner.init(params), params, jnp.zeros([], jnp.int32))

    def update(updates, state, params=None, **extra_args):
        if params is None:
            raise ValueError("update needs params, as its third argument.")
        updates, new = inner.update(updates, state.inner, params, **extra_args)
        count = state.count + 1
        part = jnp.maximum(1 / count.astype(jnp.float32), jnp.float32(1 - decay))

        def moved(mean, value):
            if not jnp.issubdtype(value.dtype, jnp.inexact):
                return value
            return (mean + part * (value - mean).astype(part.dtype)).astype(mean.dtype)

        mean = jax.tree.map(moved, state.averaged, optax.apply_updates(params, updates))
        return updates, AveragedState(new, mean, count)

    return optax.GradientTransformationExtraArgs(init, update)


def evaluated(params: Any, opt_state: Any) -> Any:
    """The parameters to evaluate with: the mean that an optimizer keeps, if it keeps one.

    Args:
      params: of the last step.
      opt_state: of the optimizer, in which :func:`averaged` may sit anywhere.

    Returns:
      A tree like ``params``; those that the optimizer knows nothing of are the last ones.
    """

    def is_state(node):
        return isinstance(node, AveragedState)

    found = [x for x in jax.tree.leaves(opt_state, is_leaf=is_state) if is_state(x)]
    return trained_lib.merge(found[0].averaged, params) if found else params

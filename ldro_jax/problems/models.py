"""Models of Flax Linen, Flax NNX or plain functions, as two pure functions."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from flax import linen as nn
from flax import nnx


class Functions(NamedTuple):
    """A model.

    Attributes:
      init: ``(key, inputs [B, ...]) -> params``.
      apply: ``(params, inputs [B, ...]) -> outputs``.
    """

    init: Callable[[jax.Array, Any], Any]
    apply: Callable[[Any, Any], Any]


def as_functions(model: Any) -> Functions:
    """A model as two functions.

    Args:
      model: a ``flax.linen.Module``; a function ``(rngs) -> flax.nnx.Module``, such as a class of
        modules; or a pair of functions as :class:`Functions` has them.

    Returns:
      The functions.

    Raises:
      ValueError: if it is something else.
    """
    if isinstance(model, nn.Module):
        return _linen(model)
    if isinstance(model, tuple) and len(model) == 2 and all(map(callable, model)):
        return Functions(*model)
    if callable(model) and not isinstance(model, nnx.Module):
        return _nnx(model)
    raise ValueError(
        "model must be a flax.linen.Module, a function of rngs that makes a flax.nnx.Module (such "
        "as lambda rngs: MyModule(rngs=rngs)), or a pair of functions (init(key, inputs) -> "
        f"params, apply(params, inputs) -> outputs), but it is {model!r}."
    )


def _linen(model: nn.Module) -> Functions:
    def init(key, inputs):
        variables = model.init(key, inputs)
        _require_params_alone(model, [name for name in variables if name != "params"])
        return variables.get("params", {})

    def apply(params, inputs):
        return model.apply({"params": params}, inputs)

    return Functions(init, apply)


def _nnx(make: Callable[[nnx.Rngs], Any]) -> Functions:
    def split(key):
        module = make(nnx.Rngs(key))
        if not isinstance(module, nnx.Module):
            raise ValueError(
                "model must be a function of rngs that makes a flax.nnx.Module, but it made "
                f"{type(module).__name__}."
            )
        graph, params, others = nnx.split(module, nnx.Param, ...)
        # Streams of random numbers have state; modules that are deterministic don't use it.
        used = nnx.to_pure_dict(nnx.filter_state(others, nnx.Not(nnx.RngState)))
        _require_params_alone(module, list(used) if jax.tree.leaves(used) else [])
        return graph, params, others

    def init(key, inputs):
        del inputs
        return nnx.to_pure_dict(split(key)[1])

    def apply(params, inputs):
        # Tracing alone: the parameters made here are not used.
        graph, state, others = split(jax.random.key(0))
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(graph, state, others)(inputs)

    return Functions(init, apply)


def _require_params_alone(model: Any, others: list[str]) -> None:
    if others:
        raise ValueError(
            f"model must have nothing but parameters, but {type(model).__name__} has "
            f"{', '.join(map(str, others))} as well. Use layers without state, such as layer or "
            "group normalisation in the place of batch normalisation."
        )

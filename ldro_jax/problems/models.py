"""Models of Flax Linen, Flax NNX or plain functions, as two pure functions.

A call sees parameters and inputs alone. Whatever else a model has (random numbers, running
statistics) can't reach it and isn't kept after it, so a model whose outputs depend on that, or
whose calls change it, is refused: dropout would have one mask for ever, in evaluations as well.
What stays as it was made, such as the statistics of a batch normalisation that doesn't update them,
is part of the model.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import errors, nnx
from flax import linen as nn

from ldro_jax.runtime import checks


class Functions(NamedTuple):
    """A model.

    Attributes:
      init: ``(key, inputs [B, ...]) -> params``.
      apply: ``(params, inputs [B, ...]) -> outputs``.
    """

    init: Callable[[jax.Array, Any], Any]
    apply: Callable[[Any, Any], Any]


class UnsupportedError(ValueError):
    """A model isn't a function of its parameters and inputs alone."""


class _Call(NamedTuple):
    """What a call of a model gives, and its variables besides parameters around it, by name."""

    outputs: Any
    before: dict[str, jax.Array]
    after: dict[str, jax.Array]


def as_functions(model: Any) -> Functions:
    """A model as two functions.

    Args:
      model: a ``flax.linen.Module``; a function ``(rngs) -> flax.nnx.Module``, such as a class of
        modules; or a pair of functions as :class:`Functions` has them. It is called as
        ``model(inputs)``, in training and evaluation alike.

    Returns:
      The functions. Both raise ``UnsupportedError``, a ``ValueError``, if a call of the model needs
      random numbers or changes anything.

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
        f"params, apply(params, inputs) -> outputs), but it is {checks.shown(model)}."
    )


def _linen(model: nn.Module) -> Functions:
    alone = False

    def make(key, inputs):
        nonlocal alone
        variables = dict(model.init(key, inputs))
        params = variables.pop("params", {})
        alone = not variables
        return params, variables

    def call(key, first, params, inputs):
        # Making the model is as long to trace as calling it.
        others = {} if alone else make(key, first)[1]
        try:
            # What is sown is for those who look at it, and nothing reads it later.
            outputs, after = model.apply(
                {"params": params, **others}, inputs, mutable=nn.DenyList(["intermediates"])
            )
        except errors.InvalidRngError as error:
            needed = str(error).split(" (http")[0]
            raise _unsupported(model, f"needs random numbers in a call: {needed}") from error
        after = {name: values for name, values in after.items() if name != "params"}
        return _Call(outputs, _named(others), _named(after))

    return _checked(model, lambda key, inputs: make(key, inputs)[0], call)


def _nnx(make: Callable[[nnx.Rngs], Any]) -> Functions:
    def split(key):
        module = make(nnx.Rngs(key))
        if not isinstance(module, nnx.Module):
            raise UnsupportedError(
                "model must be a function of rngs that makes a flax.nnx.Module, but it made "
                f"{type(module).__name__}."
            )
        return nnx.split(module, nnx.Param, ...)

    def call(key, first, params, inputs):
        del first
        graph, state, others = split(key)
        nnx.replace_by_pure_dict(state, params)
        before = _named(nnx.to_pure_dict(others))
        module = nnx.merge(graph, state, others)
        outputs = module(inputs)
        # Some layers draw a number that they don't use; what they use shows in the outputs.
        kept = nnx.Not(nnx.Any(nnx.Param, nnx.Intermediate, nnx.RngCount))
        return _Call(outputs, before, _named(nnx.to_pure_dict(nnx.state(module, kept))))

    return _checked(make, lambda key, inputs: nnx.to_pure_dict(split(key)[1]), call)


def _checked(
    model: Any,
    make: Callable[[jax.Array, Any], Any],
    call: Callable[[jax.Array, Any, Any, Any], _Call],
) -> Functions:
    """Checks a model before the first use of its functions.

    ``call`` is ``(key, inputs that it is made with, params, inputs)``; it makes the model anew.
    """
    checked = False

    def check(inputs):
        nonlocal checked
        if checked:
            return
        keys = jax.random.split(jax.random.key(0))
        params = jax.eval_shape(make, keys[0], inputs)
        seen: list[tuple[bool, bool]] = []

        def once(params, inputs):
            called = call(keys[0], inputs, params, inputs)
            # While tracing, what is assigned is another object, even if it has the same value.
            assigned = any(called.before.get(name) is not x for name, x in called.after.items())
            seen.append((bool(called.before), assigned))

        jax.eval_shape(once, params, inputs)
        has_others, assigned = seen[0]
        # A call that is jitted or rematerialised assigns all variables that it is given.
        if assigned and (moved := _moved(make, call, inputs)):
            raise _unsupported(model, f"changes {', '.join(moved)} in a call")
        if has_others and _depends_on_making(call, keys, params, inputs):
            raise _unsupported(
                model, "draws random numbers in a call, or keeps some that it drew when it was made"
            )
        checked = True

    def init(key, inputs):
        check(inputs)
        return make(key, inputs)

    def apply(params, inputs):
        check(inputs)
        # Traced alone: the parameters that are made here are not used.
        return call(jax.random.key(0), inputs, params, inputs).outputs

    return Functions(init, apply)


def _named(variables: Any) -> dict[str, jax.Array]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables)
    }


def _moved(make: Callable[..., Any], call: Callable[..., _Call], inputs: Any) -> list[str]:
    """The names of the variables that have other values after a call, for inputs of such shapes."""

    def drawn(key, x):
        is_float = jnp.issubdtype(x.dtype, jnp.floating)
        return jax.random.normal(key, x.shape, x.dtype) if is_float else jnp.ones(x.shape, x.dtype)

    def values(array):
        is_key = jnp.issubdtype(array.dtype, jax.dtypes.prng_key)
        return jax.random.key_data(array) if is_key else array

    @jax.jit
    def called():
        key = jax.random.key(0)
        some = jax.tree.map(functools.partial(drawn, key), inputs)
        _, *around = call(key, some, make(key, some), some)
        return jax.tree.map(values, around)

    # The check may itself be traced.
    with jax.ensure_compile_time_eval():
        before, after = jax.tree.map(lambda x: np.asarray(x).tobytes(), called())
    return [name for name, value in after.items() if before.get(name) != value]


def _depends_on_making(call: Callable[..., _Call], keys: jax.Array, params: Any, inputs: Any):
    """Whether two models of the same parameters, made in different ways, give different outputs."""
    different = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((2, *jnp.shape(x)), jnp.result_type(x)), inputs
    )
    outputs = jax.vmap(lambda *args: call(*args).outputs, (0, 0, None, None), None)
    try:
        jax.eval_shape(outputs, keys, different, params, inputs)
    except ValueError as error:
        # What vmap says of an output that isn't the same for both, where one is asked for.
        if "out_axes" not in str(error):
            raise
        return True
    return False


def _unsupported(model: Any, what: str) -> UnsupportedError:
    name = getattr(model, "__name__", type(model).__name__)
    return UnsupportedError(
        "model must give the same outputs for the same parameters and inputs, and change nothing "
        f"in a call, but {name} {what}. The trainer has no place for random numbers or statistics: "
        "switch them off (deterministic=True, use_running_average=True), or use layers without "
        "them, such as layer or group normalisation in the place of batch normalisation."
    )

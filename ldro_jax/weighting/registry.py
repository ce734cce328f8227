"""Weightings by name, for configurations and command lines, and those of others like them."""

import inspect
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldro_jax.runtime import checks
from ldro_jax.weighting import base
from ldro_jax.weighting.about import METHODS

# A key of METHODS, a factory like those there, or a weighting as it is.
Named = str | Callable[..., base.Weighting] | base.Weighting

# Arguments of a factory that the data can give, one number for each task.
FROM_DATA = ("reference_losses", "sizes")


def factory(method: Named) -> Callable[..., base.Weighting]:
    """The function that makes a weighting from its hyperparameters.

    Raises:
      ValueError: if there is no method of that name.
    """
    if isinstance(method, base.Weighting):
        return lambda: method
    if callable(method):
        return method
    known = f"a Weighting, a function that makes one, or one of {', '.join(sorted(METHODS))}"
    is_known = isinstance(method, str) and method in METHODS
    checks.require(is_known, "weighting", known, method)
    return METHODS[method]


def create(method: Named, hyperparameters: Mapping[str, Any] | None = None) -> base.Weighting:
    """Makes a weighting by its name or from its factory.

    Args:
      method: a key of ``METHODS``, a factory, or a weighting, which has no hyperparameters.
      hyperparameters: keyword arguments of that factory.

    Raises:
      ValueError: if there is no method of that name, or it has no such hyperparameter, lacks one,
        or doesn't take one's value.
    """
    if hyperparameters is not None:
        is_mapping = isinstance(hyperparameters, Mapping)
        checks.require(is_mapping, "hyperparameters", "a dictionary", hyperparameters)
    hyperparameters = dict(hyperparameters or {})
    if missing := lacking(method, hyperparameters):
        raise _wrong(method, hyperparameters, f"{', '.join(missing)} is missing")
    made = factory(method)(**hyperparameters)
    is_weighting = isinstance(made, base.Weighting)
    checks.require(is_weighting, "weighting", "a function that makes a Weighting", method)
    return made


def outline(method: Named, hyperparameters: Mapping[str, Any] | None = None) -> base.Weighting:
    """Makes a weighting for its properties, before the data is known: its weights mean nothing.

    Those of :data:`FROM_DATA` that the method takes and that aren't given are filled in. Raises
    what :func:`create` does.
    """
    return create(method, _filled(method, hyperparameters or {}))


def lacking(method: Named, hyperparameters: Mapping[str, Any]) -> list[str]:
    """The names of the hyperparameters that a method needs and wasn't given.

    Raises:
      ValueError: if there is no method of that name, or it has no such hyperparameter.
    """
    parameters = _parameters(method)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    unknown = [str(key) for key in hyperparameters if key not in parameters]
    if unknown and not takes_any:
        raise _wrong(method, hyperparameters, f"{', '.join(unknown)} is unknown")
    needed = [
        p.name
        for p in parameters.values()
        if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    ]
    return [each for each in needed if each not in hyperparameters]


def from_data(method: Named, hyperparameters: Mapping[str, Any]) -> list[str]:
    """The arguments of :data:`FROM_DATA` that a method takes, and that aren't among those given."""
    return [n for n in FROM_DATA if n in _parameters(method) and n not in hyperparameters]


def rates(method: Named, hyperparameters: Mapping[str, Any]) -> set[str]:
    """Names of the hyperparameters, numbers here, that a method computes with on the device.

    They may be arrays, so one compiled program can take many values of them; the others are needed
    while the weighting is made. Which they are is found by tracing it with one of them unknown.
    Raises what :func:`create` does.
    """
    filled = _filled(method, hyperparameters)
    create(method, filled)
    return {
        name
        for name, value in hyperparameters.items()
        if isinstance(value, numbers.Real) and not isinstance(value, bool)
        if _traces(method, filled, name)
    }


def _traces(method: Named, hyperparameters: dict[str, Any], rate: str) -> bool:
    """Whether the weighting can be made and used with a traced value of a rate."""
    num_tasks = _num_tasks(hyperparameters)

    def weights(value):
        weighting = create(method, hyperparameters | {rate: value})
        statistics = base.nothing_known(num_tasks)
        chosen, _ = weighting.update(statistics, weighting.init(num_tasks, jnp.float32))
        if weighting.expected_losses is not None:
            weighting.expected_losses(statistics, chosen)
        return chosen

    try:
        jax.eval_shape(weights, jax.ShapeDtypeStruct((), jnp.float32))
    # A factory that needs a number may fail with any error where there is none.
    except Exception:
        return False
    return True


def _filled(method: Named, hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    """The hyperparameters with something in the place of what only the data can tell."""
    ones = (1.0,) * _num_tasks(hyperparameters)
    return {**hyperparameters, **dict.fromkeys(from_data(method, hyperparameters), ones)}


def _num_tasks(hyperparameters: Mapping[str, Any]) -> int:
    """As many tasks as the longest of the hyperparameters has numbers, or one."""
    lists = [
        v
        for v in hyperparameters.values()
        if isinstance(v, (Sequence, np.ndarray)) and not isinstance(v, str)
    ]
    return max([1, *map(len, lists)])


def _wrong(method: Named, hyperparameters: Mapping[str, Any], reason: str) -> ValueError:
    known = ", ".join(_parameters(method)) or "none"
    return ValueError(
        f"The method {described(method)} takes the hyperparameters ({known}), but was given "
        f"{dict(hyperparameters)}: {reason}."
    )


def _parameters(method: Named) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(factory(method)).parameters


def described(method: Named) -> str:
    """How messages and records name a method, in a word."""
    if isinstance(method, str):
        return repr(method)
    return getattr(method, "__name__", type(method).__name__)

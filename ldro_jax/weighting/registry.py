"""Weightings by name, for configurations and command lines."""

import inspect
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldro_jax import checks
from ldro_jax.weighting import base
from ldro_jax.weighting.baselined_dro import baselined_dro
from ldro_jax.weighting.group_dro import group_dro
from ldro_jax.weighting.interpolated import interpolated
from ldro_jax.weighting.lookahead import exact, online
from ldro_jax.weighting.pcgrad import pcgrad
from ldro_jax.weighting.static import average, static_mixing

METHODS: dict[str, Callable[..., base.Weighting]] = {
    "average": average,
    "baselined_dro": baselined_dro,
    "group_dro": group_dro,
    "interpolated": interpolated,
    "lookahead_exact": exact,
    "lookahead_online": online,
    "pcgrad": pcgrad,
    "static_mixing": static_mixing,
}

# Arguments of a factory that the data can give, one number for each task.
FROM_DATA = ("reference_losses", "sizes")


def create(name: str, hyperparameters: Mapping[str, Any] | None = None) -> base.Weighting:
    """Makes a weighting by its name.

    Args:
      name: a key of ``METHODS``.
      hyperparameters: keyword arguments of that factory.

    Returns:
      The :class:`~ldro_jax.weighting.base.Weighting`.

    Raises:
      ValueError: if there is no method of that name, or it has no such hyperparameter, lacks one,
        or doesn't take one's value.
    """
    hyperparameters = dict(hyperparameters or {})
    if missing := lacking(name, hyperparameters):
        raise _wrong(name, hyperparameters, f"{', '.join(missing)} is missing")
    return METHODS[name](**hyperparameters)


def outline(name: str, hyperparameters: Mapping[str, Any] | None = None) -> base.Weighting:
    """Makes a weighting for its properties, before the data is known.

    Args:
      name: a key of ``METHODS``.
      hyperparameters: keyword arguments of that factory. Those of :data:`FROM_DATA` that it takes
        and that aren't given are filled in.

    Returns:
      A :class:`~ldro_jax.weighting.base.Weighting` whose weights mean nothing.

    Raises:
      ValueError: see :func:`create`.
    """
    return create(name, _filled(name, hyperparameters or {}))


def lacking(name: str, hyperparameters: Mapping[str, Any]) -> list[str]:
    """The hyperparameters that a method needs and wasn't given.

    Args:
      name: a key of ``METHODS``.
      hyperparameters: what it was given.

    Returns:
      Their names.

    Raises:
      ValueError: if there is no method of that name, or it has no such hyperparameter.
    """
    parameters = _parameters(name)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    unknown = [str(key) for key in hyperparameters if key not in parameters]
    if unknown and not takes_any:
        raise _wrong(name, hyperparameters, f"{', '.join(unknown)} is unknown")
    needed = [
        p.name
        for p in parameters.values()
        if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    ]
    return [each for each in needed if each not in hyperparameters]


def from_data(name: str, hyperparameters: Mapping[str, Any]) -> list[str]:
    """The arguments that the data has to give, since the hyperparameters don't.

    Args:
      name: a key of ``METHODS``.
      hyperparameters: what it was given.

    Returns:
      Those of :data:`FROM_DATA` that the method takes.

    Raises:
      ValueError: if there is no method of that name.
    """
    return [n for n in FROM_DATA if n in _parameters(name) and n not in hyperparameters]


def rates(name: str, hyperparameters: Mapping[str, Any]) -> set[str]:
    """Names of the hyperparameters that a method computes with on the device.

    They may be arrays, so one compiled program can take many values of them; the others are needed
    while the weighting is made. Which they are is found by tracing it with one of them unknown.

    Args:
      name: a key of ``METHODS``.
      hyperparameters: keyword arguments of that factory, numbers among them.

    Returns:
      The names of those numbers.

    Raises:
      ValueError: see :func:`create`.
    """
    filled = _filled(name, hyperparameters)
    create(name, filled)
    given = [k for k, v in hyperparameters.items() if isinstance(v, numbers.Real)]
    return {
        k for k in given if not isinstance(hyperparameters[k], bool) and _traces(name, filled, k)
    }


def _traces(name: str, hyperparameters: dict[str, Any], rate: str) -> bool:
    num_tasks = _num_tasks(hyperparameters)

    def weights(value):
        weighting = create(name, hyperparameters | {rate: value})
        zeros = jnp.zeros(num_tasks, jnp.float32)
        square = jnp.zeros((num_tasks, num_tasks), jnp.float32)
        statistics = base.Statistics(jnp.zeros([], jnp.int32), zeros, square)
        found, _ = weighting.update(statistics, weighting.init(num_tasks, jnp.float32))
        if weighting.expected_losses is not None:
            weighting.expected_losses(statistics, found)
        return found

    try:
        jax.eval_shape(weights, jax.ShapeDtypeStruct((), jnp.float32))
    # A factory that needs a number may fail with any error where there is none.
    except Exception:
        return False
    return True


def _filled(name: str, hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    """The hyperparameters with something in the place of what only the data can tell."""
    ones = (1.0,) * _num_tasks(hyperparameters)
    return {**hyperparameters, **dict.fromkeys(from_data(name, hyperparameters), ones)}


def _num_tasks(hyperparameters: Mapping[str, Any]) -> int:
    """As many tasks as the longest of the hyperparameters has numbers, or one."""
    lists = [
        v
        for v in hyperparameters.values()
        if isinstance(v, (Sequence, np.ndarray)) and not isinstance(v, str)
    ]
    return max([1, *map(len, lists)])


def _wrong(name: str, hyperparameters: Mapping[str, Any], reason: str) -> ValueError:
    known = ", ".join(_parameters(name)) or "none"
    return ValueError(
        f"The method {name!r} takes the hyperparameters ({known}), but was given "
        f"{dict(hyperparameters)}: {reason}."
    )


def _parameters(name: str) -> Mapping[str, inspect.Parameter]:
    checks.one_of("weighting", name, sorted(METHODS))
    return inspect.signature(METHODS[name]).parameters

"""Weightings by name, for configurations and command lines."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import optax

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

# Those whose weights depend on the interaction matrix.
_INTERACTING = {"lookahead_exact", "lookahead_online", "pcgrad"}


def create(name: str, hyperparameters: Mapping[str, Any] | None = None) -> base.Weighting:
    """Makes a weighting by its name.

    Args:
      name: a key of ``METHODS``.
      hyperparameters: keyword arguments of that factory.

    Returns:
      The :class:`~ldro_jax.weighting.base.Weighting`.

    Raises:
      ValueError: if there is no method of that name, or it has no such hyperparameter, or lacks
        one.
    """
    hyperparameters = dict(hyperparameters or {})
    signature = _signature(name)
    try:
        signature.bind(**hyperparameters)
    except TypeError as error:
        expected = ", ".join(str(p).split(":")[0] for p in signature.parameters.values())
        raise ValueError(
            f"The method {name!r} takes the hyperparameters ({expected or 'none'}), but was given "
            f"{hyperparameters}: {error}."
        ) from error
    return METHODS[name](**hyperparameters)


def rates(name: str) -> set[str]:
    """Names of the hyperparameters that a method computes with on the device.

    They may be arrays, so one compiled program can take many values of them; the others are needed
    while the weighting is made.

    Args:
      name: a key of ``METHODS``.

    Returns:
      Those that the factory takes as numbers or Optax schedules.

    Raises:
      ValueError: if there is no method of that name.
    """
    parameters = _signature(name).parameters.values()
    return {p.name for p in parameters if p.annotation == optax.ScalarOrSchedule}


def uses_interaction(name: str) -> bool:
    """Whether the weights of a method depend on the interaction matrix.

    Args:
      name: a key of ``METHODS``.

    Returns:
      The same as :attr:`~ldro_jax.weighting.base.Weighting.uses_interaction`, without making one.

    Raises:
      ValueError: if there is no method of that name.
    """
    _signature(name)
    return name in _INTERACTING


def _signature(name: str) -> inspect.Signature:
    if name not in METHODS:
        raise ValueError(f"Unknown method {name!r}. Known methods: {', '.join(sorted(METHODS))}.")
    return inspect.signature(METHODS[name])

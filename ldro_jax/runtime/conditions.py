"""Branches that a program takes while it runs."""

from collections.abc import Callable
from typing import Any

import jax
from jax import core


def cond(condition: Any, true_fun: Callable[[], Any], false_fun: Callable[[], Any]) -> Any:
    """``jax.lax.cond`` without operands; outside of a jit the one function, as it is.

    There ``jax.lax.cond`` would compile new functions in every step.
    """
    if not isinstance(condition, core.Tracer):
        return true_fun() if condition else false_fun()
    return jax.lax.cond(condition, true_fun, false_fun)

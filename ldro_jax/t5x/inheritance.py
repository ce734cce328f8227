"""Bindings of gin for a class of T5X, also for a subclass of it, which gin would leave without."""

import ldro_jax.t5x.installed  # noqa: F401

# isort: split
import copy
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import gin


def arguments(
    parent: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """Arguments for a class or method of T5X: those given, and for the others what gin has.

    Args:
      parent: the class or method, as T5X has it.
      args: given by position.
      kwargs: given by name; a binding for the subclass is among them, and so counts first.

    Returns:
      The arguments by name. Scopes count as they do for ``parent`` itself.
    """
    given = inspect.signature(parent).bind_partial(*args, **kwargs).arguments
    # A copy calls what the bindings refer to, as in gin itself; what isn't used is not called.
    return copy.deepcopy({k: v for k, v in _bound(parent).items() if k not in given}) | given


def refuse_methods(cls: type, inherited: Sequence[str] = ()) -> None:
    """Refuses bindings for methods of a class that would be without effect on a subclass.

    Args:
      cls: the class, as T5X has it.
      inherited: names of the methods whose bindings the subclass looks at.

    Raises:
      ValueError: if there are bindings for another method.
    """
    for name, method in inspect.getmembers(cls, inspect.isfunction):
        if name not in inherited and (bound := _bound(method)):
            raise ValueError(
                f"{cls.__name__}.{name} is bound in gin ({', '.join(bound)}), but ldro_jax.t5x has "
                "a class of its own in its place, which these bindings don't reach. Remove them."
            )


def _bound(parent):
    try:
        return gin.get_bindings(parent, resolve_references=False)
    except ValueError:
        # No gin file names it.
        return {}

"""Bindings of gin for a class of T5X, also for a subclass of it, which gin would leave without."""

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gin


def stock(cls: type, ours: type) -> Any:
    """The class of T5X behind ``cls``: the first of its parents that is none of ``ours``."""
    return next(parent for parent in cls.__mro__ if not issubclass(parent, ours))


def missing(
    parent: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """What gin has bound for a class or method of T5X besides the arguments that are given.

    A binding for the subclass is among those given, and so counts first. Scopes count as they do
    for ``parent`` itself.
    """
    given = inspect.signature(parent).bind_partial(*args, **kwargs).arguments.keys() | kwargs.keys()
    # A copy calls what the bindings refer to, as in gin itself; what isn't used is not called.
    return copy.deepcopy({k: v for k, v in _bound(parent).items() if k not in given})


def refuse_lost_bindings(cls: type, inherited: Sequence[str] = ()) -> None:
    """Refuses bindings that would be without effect on a subclass of a class of T5X.

    The subclass looks at the bindings for ``cls`` itself and for its methods ``inherited``. Raises
    ``ValueError`` if there are some for another method, or for a class that ``cls`` is derived
    from, which gin leaves without effect on T5X's own classes as well.
    """
    for base in cls.__mro__[1:]:
        if bound := _bound(base):
            raise ValueError(
                f"{base.__name__} is bound in gin ({', '.join(bound)}), which has no effect on "
                f"the classes derived from it. Bind {cls.__name__} instead."
            )
    for base in cls.__mro__:
        for name, method in vars(base).items():
            if not inspect.isfunction(method) or not (bound := _bound(method)):
                continue
            if name not in inherited or method is not getattr(cls, name):
                raise ValueError(
                    f"{base.__name__}.{name} is bound in gin ({', '.join(bound)}), but "
                    "ldro_jax.t5x has a class of its own in its place, which these bindings don't "
                    "reach. Remove them."
                )


def _bound(parent):
    try:
        return gin.get_bindings(parent, resolve_references=False)
    except ValueError:
        # No gin file names it.
        return {}

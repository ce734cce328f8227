"""Optax wrappers inside which a task weighting would go wrong, and what to do instead.

What a wrapper does to its arguments can be seen: :class:`optax.MaskedNode` among the parameters,
slow parameters beside fast ones, shapes that don't fit together. But some pass on everything as it
is and yet use ``updates`` as if it were the gradient, and others fail before the weighting's
``update`` runs, with an error that says nothing of it. Optax tells a transformation nothing of what
is around it, so for those alone the calling frames are looked through, for functions of Optax (or
a subclass of :class:`optax.MultiSteps`) that hold the same parameters.
"""

import sys
import traceback
from types import FrameType
from typing import Any

import jax
import optax

from ldro_jax.runtime import leaves as leaves_lib

_CHAIN = "Chain it after the weighting: optax.chain(ldro.transform(...), "

# By the public name of the function or class.
_REFUSED = {
    "MultiSteps": (
        "optax.MultiSteps would hand over the statistics of the last mini-batch alone. "
        f"{_CHAIN}optax.MultiSteps(optimizer, k).gradient_transformation())."
    ),
    "apply_if_finite": (
        "optax.apply_if_finite would check what comes before the weighting, where there are no "
        f"gradients yet. {_CHAIN}optax.apply_if_finite(optimizer, n))."
    ),
    "mechanize": (
        "optax.contrib.mechanize learns the step size from the gradient that it is given, which "
        f"isn't the weighted one, and would not train. {_CHAIN}optax.contrib.mechanize(optimizer))."
    ),
    "flatten": (
        "optax.flatten would call the task losses with one flat vector. "
        f"{_CHAIN}optax.flatten(optimizer))."
    ),
    "lookahead": (
        "optax.lookahead has two copies of the parameters and passes on no task statistics. Update "
        "one after the other: ldro.transform(...) with params.fast, then "
        "optax.lookahead(optimizer, ...) with params and the gradient from the first."
    ),
    "sam": (
        "optax.contrib.sam doesn't pass on the task statistics. Chain it after the weighting, "
        "without keyword arguments: optax.chain(ldro.transform(...), "
        "optax.GradientTransformation(*optax.contrib.sam(optimizer, adversary)))."
    ),
    "split_real_and_imaginary": (
        "optax.contrib.split_real_and_imaginary doesn't pass on the task statistics. "
        f"{_CHAIN}optax.contrib.split_real_and_imaginary(optimizer))."
    ),
}
_MASKED = (
    "Some parameters are masked: optax.masked and optax.partition hide parameters that the task "
    f"losses need. {_CHAIN}optax.masked(optimizer, mask))."
)
_CONDITIONAL = (
    "optax.conditionally_mask and optax.conditionally_transform need updates with the structure "
    "and shapes of the parameters. Pass a tree of zeros as updates, or chain it after the "
    "weighting: optax.chain(ldro.transform(...), optax.conditionally_mask(optimizer, condition))."
)
# What these functions call the parameters that they pass on.
_PARAMETERS = ("params", "fast_params", "flat")


def check(params: Any) -> None:
    """Raises ``ValueError``, with the composition that works, inside a wrapper that wouldn't.

    Args:
      params: what ``init`` or ``update`` was given.
    """
    leaves = jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, optax.MaskedNode))
    if any(isinstance(leaf, optax.MaskedNode) for leaf in leaves):
        raise ValueError(_MASKED)
    if isinstance(params, optax.LookaheadParams):
        raise ValueError(f"params are optax.LookaheadParams. {_REFUSED['lookahead']}")
    for name in _enclosing(params):
        if name in _REFUSED:
            raise ValueError(f"A task weighting doesn't work inside this wrapper. {_REFUSED[name]}")


def check_update(updates: Any, params: Any) -> None:
    """The same for ``update``: ``init`` may have run elsewhere, or once for a jit's cache."""
    check(params)
    conditional = {"conditionally_mask", "conditionally_transform"} & set(_enclosing(params))
    if conditional and not leaves_lib.is_like(updates, params):
        raise ValueError(_CONDITIONAL)


def _enclosing(params) -> list[str]:
    """Functions and classes of Optax that are being called and hold these very parameters."""
    leaves = jax.tree.leaves(params)
    names = []
    for frame, _ in traceback.walk_stack(sys._getframe(1)):
        held = (frame.f_locals[name] for name in _PARAMETERS if name in frame.f_locals)
        name = _optax_name(frame)
        if name and any(_same_objects(jax.tree.leaves(each), leaves) for each in held):
            names.append(name)
    return names


def _optax_name(frame: FrameType) -> str | None:
    is_method = frame.f_code.co_varnames[:1] == ("self",)
    if is_method and isinstance(frame.f_locals.get("self"), optax.MultiSteps):
        return "MultiSteps"
    if frame.f_globals.get("__name__", "").startswith("optax."):
        return frame.f_code.co_qualname.partition(".")[0]
    return None


def _same_objects(some: list[Any], others: list[Any]) -> bool:
    return len(some) == len(others) and all(x is y for x, y in zip(some, others, strict=True))

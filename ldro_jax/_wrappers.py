"""Optax wrappers inside which a task weighting would go wrong, and what to do instead."""

import sys
from typing import Any

import jax
import optax

# Wrappers that call init and update but hold back what the weighting needs, and what to do instead.
_WRAPPERS = {
    "MultiSteps.init": (
        "optax.MultiSteps would hand over the statistics of the last mini-batch alone. Chain it "
        "after the weighting: optax.chain(ldro.transform(...), "
        "optax.MultiSteps(optimizer, k).gradient_transformation())."
    ),
    "apply_if_finite.<locals>.init": (
        "optax.apply_if_finite would check what comes before the weighting, where there are no "
        "gradients yet. Chain it after the weighting: optax.chain(ldro.transform(...), "
        "optax.apply_if_finite(optimizer, n))."
    ),
    "masked.<locals>.init_fn": (
        "optax.masked and optax.partition hide parameters that the task losses need. Chain them "
        "after the weighting: optax.chain(ldro.transform(...), optax.masked(optimizer, mask))."
    ),
}


def refuse(params: Any) -> None:
    """Raises ``ValueError`` if ``init`` is called from one of these wrappers.

    Args:
      params: what ``init`` was given.

    Raises:
      ValueError: with the composition that works.
    """
    # Nothing that these wrappers pass on tells them apart from a plain chain, and the step they
    # would silently take is wrong; so look at who calls.
    frame = sys._getframe(1)
    while frame is not None:
        advice = _WRAPPERS.get(frame.f_code.co_qualname)
        if advice and frame.f_globals.get("__name__", "").startswith("optax."):
            raise ValueError(f"A task weighting doesn't work inside this wrapper. {advice}")
        frame = frame.f_back
    if any(
        isinstance(leaf, optax.MaskedNode)
        for leaf in jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, optax.MaskedNode))
    ):
        raise ValueError(f"Some parameters are masked. {_WRAPPERS['masked.<locals>.init_fn']}")

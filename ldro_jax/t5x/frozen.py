"""Parameters that stay as they are: trees without them, and optimizers that leave them alone.

Left out of what is differentiated, frozen parameters cost no gradient, and the interaction of tasks
is measured on the trained ones alone. They are named by regular expressions, each of which matches
whole paths such as ``encoder/layers_0/attention/query/kernel``.
"""

import re
from collections.abc import Sequence
from typing import Any

import jax
import optax

from ldro_jax.measuring.trained import merge


def trained(tree: Any, frozen: Sequence[str], hole: Any = None) -> Any:
    """The part of a tree that is trained.

    Args:
      tree: of the paths of the parameters.
      frozen: regular expressions; what one of them matches in full (``encoder/.*``) stays as it is.
      hole: what takes the place of frozen leaves: ``None``, or an ``optax.MaskedNode``.

    Returns:
      The tree with holes.
    """
    if not frozen:
        return tree
    pattern = re.compile("|".join(f"(?:{each})" for each in frozen))
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: hole if pattern.fullmatch(_name(path)) else leaf, tree
    )


def masked(
    optimizer: optax.GradientTransformation, frozen: Sequence[str]
) -> optax.GradientTransformation:
    """An optimizer without state for frozen parameters, whose updates it passes on.

    What state there is has the names that it has without frozen parameters, unlike with
    ``optax.masked``, so that it is found in checkpoints of such runs.
    """
    if not frozen:
        return optimizer
    inner = optax.with_extra_args_support(optimizer)

    def hide(tree):
        return None if tree is None else trained(tree, frozen, optax.MaskedNode())

    def update(updates, state, params=None, **extra_args):
        moved, state = inner.update(hide(updates), state, hide(params), **extra_args)
        return merge(moved, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: inner.init(hide(params)), update)


def check_patterns(params: Any, frozen: Sequence[str]) -> None:
    """Raises ``ValueError`` if an expression matches no parameter, or none is left to train."""
    names = [_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    for each in frozen:
        if not any(re.fullmatch(each, name) for name in names):
            raise ValueError(
                f"WeightedOptimizer.frozen has {each!r}, which matches no parameter in full. The "
                f"parameters are {', '.join(names)}."
            )
    if not jax.tree.leaves(trained(params, frozen)):
        raise ValueError("WeightedOptimizer.frozen matches every parameter: nothing would train.")


def _name(path):
    return jax.tree_util.keystr(path, simple=True, separator="/")

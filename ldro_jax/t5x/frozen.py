"""Parameters that stay as they are: trees without them, and trees put together again.

Left out of what is differentiated, frozen parameters cost no gradient, and the interaction of tasks
is measured on the trained ones alone.
"""

import re
from collections.abc import Sequence
from typing import Any

import jax
import optax


def trained(tree: Any, frozen: Sequence[str]) -> Any:
    """The part of a tree that is trained.

    Args:
      tree: of the paths of the parameters.
      frozen: regular expressions; what one of them matches in full (``encoder/.*``) stays as it is.

    Returns:
      The tree with ``None`` in the place of frozen leaves.
    """
    if not frozen:
        return tree
    pattern = re.compile("|".join(f"(?:{each})" for each in frozen))

    def keep(path, leaf):
        return None if pattern.fullmatch(_name(path)) else leaf

    return jax.tree_util.tree_map_with_path(keep, tree)


def merge(part: Any, whole: Any) -> Any:
    """Puts a tree together again.

    Args:
      part: as from :func:`trained`.
      whole: a tree without ``None``, for the leaves that are frozen.

    Returns:
      A tree like ``whole``.
    """
    return jax.tree.map(
        lambda leaf, other: other if leaf is None else leaf,
        part,
        whole,
        is_leaf=lambda x: x is None,
    )


def masked(
    optimizer: optax.GradientTransformation, frozen: Sequence[str]
) -> optax.GradientTransformation:
    """An optimizer without state for frozen parameters.

    Args:
      optimizer: of Optax.
      frozen: as for :func:`trained`.

    Returns:
      An optimizer that passes on what it gets for frozen parameters.
    """
    if not frozen:
        return optimizer

    def is_trained(params):
        every, none = (jax.tree.map(lambda _, b=b: b, params) for b in (True, False))
        return merge(trained(every, frozen), none)

    return optax.masked(optimizer, is_trained)


def check(params: Any, frozen: Sequence[str]) -> None:
    """Checks that every expression matches a parameter, and that something is left to train.

    Args:
      params: of the model, or their shapes.
      frozen: as for :func:`trained`.

    Raises:
      ValueError: if not.
    """
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

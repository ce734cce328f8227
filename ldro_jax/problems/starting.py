"""Parameters that runs begin with in the place of new ones, such as those of a pretrained model."""

from typing import Any

import jax
import numpy as np
from flax.core import meta

from ldro_jax.runtime import checks


def aligned(shapes: Any, given: Any) -> Any:
    """Given parameters in the tree of a model's.

    Args:
      shapes: of all parameters, a pytree of ``jax.ShapeDtypeStruct``.
      given: some or all of them, a pytree in which the same paths lead to them.

    Returns:
      A tree like ``shapes``, with ``None`` where nothing is given.

    Raises:
      ValueError: if a path leads to no parameter, or a shape is another.
    """
    named = {_path(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(given)}
    checks.require(named, "params", "a pytree of some of the model's parameters", given)
    leaves = []
    for path, shape in jax.tree_util.tree_leaves_with_path(shapes):
        name = _path(path)
        leaf = named.pop(name, None)
        if leaf is not None and np.shape(leaf) != shape.shape:
            raise ValueError(
                f"params[{name!r}] must have the shape {list(shape.shape)}, as the model has it, "
                f"but it has {list(np.shape(leaf))}."
            )
        leaves.append(None if leaf is None else np.asarray(leaf).astype(shape.dtype))
    if named:
        known = ", ".join(_path(path) for path, _ in jax.tree_util.tree_leaves_with_path(shapes))
        raise ValueError(
            f"params must be parameters of the model, {known}, but it has {', '.join(named)}."
        )
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves)


def overlaid(fresh: Any, starting: Any) -> Any:
    """New parameters, with or without logical axes, where there is nothing to begin with.

    Args:
      fresh: what ``init`` makes.
      starting: as :func:`aligned` gives it, or ``None``.

    Returns:
      A tree like ``fresh``.
    """
    if starting is None:
        return fresh
    leaves, structure = jax.tree.flatten(fresh)
    given = jax.tree.leaves(starting, is_leaf=lambda x: x is None)
    found = [new if own is None else own for new, own in zip(leaves, given, strict=True)]
    return jax.tree.unflatten(structure, found)


def shapes_of(init: Any) -> Any:
    """Shapes of the parameters that an ``init`` makes, without logical axes."""
    return meta.unbox(jax.eval_shape(init, jax.random.key(0)))


def _path(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")

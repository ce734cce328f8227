"""Leaves of parameters and gradients: what can be trained, and which leaf belongs to which.

Libraries hold parameters in containers of their own. Two trees count as the same here if their
leaves have the same names and shapes, whether a container is a dict, a ``NamedTuple`` or an
``nnx.State``.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ldro_jax.runtime import checks

# What gives the arrays, by the library of a leaf's class.
_FILTERS = {
    "keras": "the values of Keras variables, [v.value for v in model.trainable_variables]",
    "penzai": "the frozen variables of pz.unbind_params(model, freeze=True)",
}
_EQUINOX = "those of an Equinox model, eqx.filter(model, eqx.is_inexact_array)"


_Kind = TypeVar("_Kind")


def of_type(tree: Any, kind: type[_Kind]) -> list[_Kind]:
    """The subtrees of a type, such as the state of one transformation in that of an optimizer."""
    found = jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, kind))
    return [leaf for leaf in found if isinstance(leaf, kind)]


def check_arrays(what: str, tree: Any) -> None:
    """Raises ``ValueError`` unless every leaf of parameters, or of their shapes, is an array.

    Args:
      what: how the error calls the tree.
      tree: the parameters.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        is_array = isinstance(leaf, (jax.Array, jax.ShapeDtypeStruct))
        if is_array or isinstance(getattr(leaf, "dtype", None), np.dtype):
            continue
        where = what + jax.tree_util.keystr(path)
        if isinstance(leaf, (bool, int, float, complex)):
            raise ValueError(
                f"{where} must be an array, but it is the Python number {leaf!r}. Write "
                f"jnp.asarray({leaf!r})."
            )
        library = type(leaf).__module__.partition(".")[0]
        raise ValueError(
            f"{where} must be an array, but it is of type {type(leaf).__name__}: "
            f"{checks.shown(leaf)}. Pass arrays alone: {_FILTERS.get(library, _EQUINOX)}."
        )


def check_trained(what: str, tree: Any) -> None:
    """Raises ``ValueError`` unless every leaf of a tree holds real floating-point numbers.

    Args:
      what: how the error calls the tree.
      tree: parameters or gradients that are trained, or their shapes.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    names = [what + jax.tree_util.keystr(path) for path, leaf in leaves if jnp.iscomplexobj(leaf)]
    if names:
        raise ValueError(
            "A task weighting needs real parameters, because the interaction of complex gradients "
            f"is not defined here, but these are complex: {', '.join(names)}. Hold the real and "
            "the imaginary part as two real arrays, and put them together in the loss."
        )
    for path, leaf in leaves:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(
                f"{what}{jax.tree_util.keystr(path)} must hold floating-point numbers to be "
                f"trained, but its dtype is {leaf.dtype}. Leave it out of the parameters, or mark "
                "it False in `trainable`."
            )


def needs_arrays(strategy: Callable) -> Callable:
    """Decorates what makes an interaction strategy, whose functions then call ``check_arrays``."""

    def checked(function):
        if function is None:
            return None

        @functools.wraps(function)
        def measure(loss_fn, params, batch, **options):
            check_arrays("params", params)
            return function(loss_fn, params, batch, **options)

        return measure

    @functools.wraps(strategy)
    def made(*args, **options):
        made = strategy(*args, **options)
        names = ("matrix", "gradients", "pullback")
        return made._replace(**{name: checked(getattr(made, name)) for name in names})

    return made


def is_like(tree: Any, other: Any) -> bool:
    """Whether two trees have the same structure and shapes."""
    # Not the trees themselves: a container may have no equality, or one of its own.
    return jax.tree.structure(tree) == jax.tree.structure(other) and all(
        jnp.shape(x) == jnp.shape(y)
        for x, y in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True)
    )


def like(what: str, tree: Any, params: Any, *, may_have_more: bool = False) -> Any:
    """A tree in the containers of the parameters.

    Args:
      what: how the error begins, such as "The gradient must be like the parameters".
      tree: with leaves of the same names and shapes, in whatever containers.
      params: the parameters, or something like them.
      may_have_more: whether the tree may have other leaves as well, which are left out.

    Returns:
      The tree, with the structure of the parameters.

    Raises:
      ValueError: with the first leaf that is missing, has another shape, or is one too many.
    """
    if is_like(tree, params):
        return tree
    found, wanted = _by_name(tree), _by_name(params)
    if may_have_more:
        found = {name: leaf for name, leaf in found.items() if name in wanted}
    if difference := _difference(tree, found, wanted):
        raise ValueError(f"{what}, but {difference}.")
    leaves = [found[name][1] for name in wanted]
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def _difference(tree: Any, found: dict, wanted: dict) -> str | None:
    """The first leaf that isn't as wanted, in words."""
    if tree is None:
        return "it is None"
    for name, (where, leaf) in wanted.items():
        if name not in found:
            return f"it has no leaf {where}" if where else "it isn't a single array, as they are"
        other = found[name][1]
        if isinstance(other, optax.MaskedNode):
            return f"its leaf {where} is masked; mark it False in `trainable` as well"
        if jnp.shape(other) != jnp.shape(leaf):
            what = f"its leaf {where}" if where else "it"
            return f"{what} has shape {jnp.shape(other)} instead of {jnp.shape(leaf)}"
    extra = (where for name, (where, _) in found.items() if name not in wanted)
    where = next(extra, None)
    return None if where is None else f"they have no leaf {where}"


def _by_name(tree: Any) -> dict[tuple, tuple[str, Any]]:
    """Each leaf and how to write its place, by the keys that lead to it."""
    leaves = jax.tree_util.tree_leaves_with_path(
        tree, is_leaf=lambda x: isinstance(x, optax.MaskedNode)
    )
    return {_name(path): (jax.tree_util.keystr(path), leaf) for path, leaf in leaves}


def _name(path: tuple) -> tuple:
    keys = [getattr(k, "key", getattr(k, "name", getattr(k, "idx", k))) for k in path]
    # Flax NNX wraps each array in a variable.
    while path and path[-1] == jax.tree_util.GetAttrKey("value"):
        path = path[:-1]
    return tuple(keys[: len(path)])

"""Parameters that are trained and parameters that are frozen.

A frozen parameter moves for no task, so that its gradients must not count in the interaction of the
tasks. Left out of what is differentiated, they cost nothing either. A tree without its frozen
parameters has ``None`` in their places, which JAX takes for no leaf at all.
"""

from collections.abc import Callable, Hashable
from typing import Any

import jax
import numpy as np
import optax

from ldro_jax.runtime import checks, equations, errors

Trainable = Any | Callable[[Any], Any]


def mask(
    trainable: Trainable, params: Any, name: str = "trainable", use: str = "be trained"
) -> Any:
    """Which parameters are trained, a tree of bools like the parameters.

    Args:
      trainable: a tree of bools, which may stop above the leaves as masks of Optax do, or a
        function from the parameters to one.
      params: arrays or their shapes.
      name: how an error calls it.
      use: what nothing would do without a mark.

    Raises:
      ValueError: if the tree doesn't fit the parameters, holds something else, or trains nothing.
    """
    bools = trainable
    if callable(trainable):
        with errors.of(name):
            bools = trainable(params)
    expected = "a tree of bools like the parameters, or a function from them to one"
    leaves = jax.tree.leaves(bools)
    is_bools = all(isinstance(leaf, (bool, np.bool_)) for leaf in leaves)
    checks.require(leaves and is_bools, name, expected, bools)
    try:
        bools = jax.tree.map(lambda m, part: jax.tree.map(lambda _: bool(m), part), bools, params)
    except (TypeError, ValueError) as error:
        said = errors.first_line(error)
        raise ValueError(f"{name} must be {expected}, but it doesn't fit: {said}") from error
    if not any(jax.tree.leaves(bools)):
        raise ValueError(f"{name} marks no parameter, so that nothing would {use}.")
    return bools


def hide(tree: Any, trained: Any) -> Any:
    """A tree like the parameters, or ``None``, with ``None`` in the places of frozen parameters."""
    return None if tree is None else jax.tree.map(lambda m, x: x if m else None, trained, tree)


def merge(part: Any, whole: Any) -> Any:
    """Puts a tree together again, with leaves of the ``whole`` in the holes of the part.

    Holes are ``None`` or ``optax.MaskedNode``, in the places of frozen parameters.
    """

    def is_hole(leaf):
        return leaf is None or isinstance(leaf, optax.MaskedNode)

    return jax.tree.map(
        lambda leaf, other: other if is_hole(leaf) else leaf, part, whole, is_leaf=is_hole
    )


def of_part(function: Any, params: Any) -> Any:
    """The function of the trained parameters alone; ``None`` for ``None``.

    The frozen ones have the values in ``params``.
    """
    if function is None:
        return None
    return lambda part, *rest: function(merge(part, params), *rest)


def only(
    optimizer: optax.GradientTransformation, trainable: Trainable
) -> optax.GradientTransformationExtraArgs:
    """An optimizer of some parameters, which leaves the others as they are, without state.

    Args:
      optimizer: of Optax.
      trainable: which parameters, as :func:`ldro_jax.transform.weighted` takes it.
    """
    parts: dict[Hashable, optax.GradientTransformation]
    parts = {"trained": optimizer, "frozen": optax.set_to_zero()}

    def labels(params):
        return jax.tree.map(lambda m: "trained" if m else "frozen", mask(trainable, params))

    return optax.partition(parts, labels)


def moved_by(optimizer: optax.GradientTransformation, params: Any) -> Any:
    """Which parameters an optimizer of Optax can move, a tree of bools like the parameters.

    It is looked for in the traced update, which computes nothing: what ``optax.set_to_zero`` gives,
    alone or inside ``optax.partition``, ``optax.masked`` or ``optax.transforms.freeze``, depends
    neither on the gradient nor on the parameters. What another wrapper decides while it runs counts
    as moved, and so does everything in a program that can't be read.

    Args:
      optimizer: of Optax.
      params: arrays or their shapes.
    """
    checks.instance("optimizer", optimizer, optax.GradientTransformation, "optax.sgd(0.1)")
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    state = jax.eval_shape(optimizer.init, shapes)
    update = optax.with_extra_args_support(optimizer).update
    with jax.numpy_dtype_promotion("standard"):
        traced = jax.make_jaxpr(update)(shapes, state, shapes)
    counts = len(jax.tree.leaves(shapes)), len(jax.tree.leaves(state))
    try:
        with equations.reading():
            moved = _moved(traced, *counts)
    except equations.UnknownFormError:
        moved = [True] * counts[0]
    return jax.tree.unflatten(jax.tree.structure(shapes), moved)


def _moved(traced: equations.Program, count: int, held: int) -> list[bool]:
    """Which of ``count`` updates depend on something, with a state of ``held`` arrays between."""
    jaxpr = equations.inlined(traced).jaxpr
    given = set(jaxpr.invars[:count]) | set(jaxpr.invars[count + held :])
    states = jaxpr.invars[count : count + held]
    before, live = set(), []
    # A momentum moves parameters later, through the state.
    while given != before:
        before = set(given)
        live = equations.depending(jaxpr, given)
        given |= {old for old, is_live in zip(states, live[count:], strict=True) if is_live}
    return live[:count]

"""Which parameters the interaction counts: those that tasks share.

A head of one task has a gradient of that task alone. In ``A_ij = ⟨∇ℓ_i, ∇ℓ_j⟩`` it adds to the
diagonal and to nothing else, so that every task seems to help itself more than it helps others, and
a lookahead comes out closer to DRO. So A is that of the parameters on which the losses of several
tasks depend.

Where one traced program gives the losses of all tasks, that is read off it. Here the losses come
from ``a`` and ``b``, and only ``trunk`` is in both::

    a:f32[] = … trunk head_0
    b:f32[] = … trunk head_1
    c:f32[1] = broadcast_in_dim a
    d:f32[1] = broadcast_in_dim b
    e:f32[2] = concatenate[dimension=0] c d

Where tasks are data of one function, as the rows of a batch are, all parameters count. So does a
joint head, an array ``[d, N]`` that gives all outputs in one product: it is one parameter.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from ldro_jax.measuring import trained as trained_lib
from ldro_jax.runtime import equations


def mask(shared: Any, params: Any, trained: Any = None) -> Any:
    """Which parameters count, a tree of bools like them, with ``None`` for frozen ones.

    Args:
      shared: a tree of bools, which may stop above the leaves, or a function from the parameters
        to one.
      params: arrays or their shapes.
      trained: which are trained, a tree of bools; ``None`` if all.

    Raises:
      ValueError: if the tree doesn't fit the parameters, or marks none that is trained.
    """
    bools = trained_lib.mask(shared, params, name="shared", use="count")
    bools = bools if trained is None else trained_lib.hide(bools, trained)
    if not any(jax.tree.leaves(bools)):
        raise ValueError("shared marks no parameter that is trained, so that nothing would count.")
    return bools


def found(losses_fn: Callable[..., jax.Array], params: Any, *args: Any, axis: int = 0) -> Any:
    """The parameters on which the losses of several tasks depend, a tree of bools like them.

    Args:
      losses_fn: ``(params, *args) -> losses``.
      params: arrays or their shapes.
      *args: what else it takes.
      axis: that of the tasks, in the losses.

    Returns:
      The tree; ``None`` if all parameters count, which they do as well where a task shares none or
      the program can't be read.
    """
    structure = jax.tree.structure(params)
    # The parameters are the first inputs.
    traced = jax.make_jaxpr(losses_fn)(params, *args)
    try:
        with equations.reading():
            each = equations.inputs_of_entries(equations.inlined(traced), axis)
    except equations.UnknownFormError:
        return None
    each = np.asarray(each)[:, : structure.num_leaves]
    is_shared = each.sum(axis=0) > 1
    bools = is_shared.tolist()
    # A task that shares none would seem to have converged.
    if all(bools) or not each[:, is_shared].any(axis=1).all():
        return None
    return jax.tree.unflatten(structure, bools)


def counted(tree: Any, shared: Any) -> Any:
    """A tree like the parameters, or ``None``, with ``None`` for those that don't count."""
    return tree if shared is None else trained_lib.hide(tree, shared)


def of_counted(function: Callable, params: Any, shared: Any) -> tuple[Callable[..., Any], Any]:
    """A function of the parameters as one of those that count, and these."""
    if shared is None:
        return function, params
    return trained_lib.of_part(function, params), trained_lib.hide(params, shared)

"""How the gradients of the tasks interact: ``A_ij = ⟨∇ℓ_i, ∇ℓ_j⟩``.

Tasks own disjoint rows of the batch, so the N task gradients together cost the arithmetic of one
backward pass over the whole batch. What differs between the strategies is what they keep in memory
and what they compute again. Each is an :class:`Interaction`; it knows nothing of weightings.
"""

import functools
import math
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

# How much more memory than the gradients of the model a strategy chosen automatically may take, as
# a multiple of the model and in bytes, whichever is more.
_MODELS = 8
_BYTES = 2**30

# Elements of a row; 20 rows of float32 are then 1.3 MB.
_SLICE = 16384

LossFn = Callable[[Any, Any], jax.Array]


class Measured(NamedTuple):
    """An interaction matrix ``[N, N]``, and how noisy the gradients were.

    The noise is an estimate of the variance of each task's minibatch gradient, the sum over the
    parameters, ``[N]``.
    """

    matrix: jax.Array
    noise: jax.Array


class Pulled(NamedTuple):
    """What one backward pass gives besides the losses.

    Attributes:
      gradient: of the weighted loss, like the parameters.
      matrix: the interaction, ``[N, N]``.
    """

    gradient: Any
    matrix: jax.Array


Pullback = Callable[[jax.Array], Pulled]


class Interaction(NamedTuple):
    """A strategy that measures the interaction matrix.

    Attributes:
      matrix: ``(loss_fn, params, batch) -> [N, N]``, the Gram matrix of the task gradients, where
        ``loss_fn(params, task_batch)`` is a scalar and every leaf of ``batch`` is
        ``[task, example, ...]``. At least float32, whatever the parameters are. A strategy that
        measures the gradients' noise besides returns a :class:`Measured`.
      gradients: ``(loss_fn, params, batch) -> (losses [N], gradients)``, the task gradients stacked
        along a leading task axis, or ``None`` if the strategy never holds them all. With it, a step
        that needs both the matrix and a training gradient takes them from the same pass. With
        ``has_aux=True`` the loss function returns something besides, and so does this, beside the
        losses and stacked as they are. With several parts the axis is ``[N × parts]``, those of a
        task side by side.
      parts: in how many parts of equal weight the examples of a task are taken.
      from_gram: from the Gram matrix of all parts of all tasks, ``[N × parts, N × parts]``, to what
        ``matrix`` would give; ``None`` if it is that.
      pullback: ``(loss_fn, params, batch) -> (losses [N], (weights [N]) -> Pulled)``, for weights
        that don't need the matrix of this step; ``None`` if the strategy has no such way. Takes
        ``has_aux`` as well, and ``shared``, a tree of bools like the parameters, where some of them
        count in no matrix.
      multiple: the number of examples of each task must be a multiple of this.
      gives_products: whether ``matrix`` returns no matrix, but the
        :class:`~ldro_jax.interaction.products.Products` that a weighting asks for products of it.
      in_turn: whether one of these is measured in each step, instead of all.
      share: on which share of a batch's rows it is measured, where no number is given.
      of_losses: ``(losses_fn, params) -> [N, N]``, what ``matrix`` gives, from the losses of all
        tasks at once, ``params -> [N]``; ``None`` if it takes the tasks' own gradients.
      of_features: whether the gradients are those of the features that all tasks share, and not of
        the parameters.
    """

    matrix: Callable[[LossFn, Any, Any], Any]
    gradients: Callable[..., tuple[Any, Any]] | None = None
    multiple: int = 1
    parts: int = 1
    from_gram: Callable[[jax.Array], jax.Array | Measured] | None = None
    pullback: Callable[..., tuple[Any, Pullback]] | None = None
    of_losses: Callable[[Callable[[Any], jax.Array], Any], Any] | None = None
    of_features: bool = False
    gives_products: bool = False
    in_turn: bool = False
    share: float = 1.0

    def rows_of(self, size: int) -> int:
        """How many of so many rows it's measured on, a multiple of :attr:`multiple`."""
        return max(round(self.share * size / self.multiple), 1) * self.multiple


def gram(left: Any, right: Any | None = None) -> jax.Array:
    """Inner products of stacked gradients, summed leaf by leaf.

    Inside a jit the compiler can free the gradients of each leaf before the next ones are needed.

    Args:
      left: a pytree with leaves ``[n, ...]``.
      right: one with leaves ``[m, ...]`` and the same trailing shapes; ``left`` if not given.

    Returns:
      ``[n, m]``, accumulated and returned in :func:`statistics_dtype`.
    """
    dtype = statistics_dtype(left)
    # Slicing an axis that is sharded would move data between devices.
    on_one_cpu = jax.default_backend() == "cpu" and jax.device_count() == 1
    leaf_products = products_by_slices if on_one_cpu else products
    right = left if right is None else right
    leaves = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    return functools.reduce(operator.add, (leaf_products(x, y, dtype) for x, y in leaves))


def combined(weights: jax.Array, gradients: jax.Array) -> jax.Array:
    """The weighted sum of the gradients ``[n, ...]`` of a parameter, in their dtype.

    It is summed in the wider of the weights' and the gradients' dtype.
    """
    dtype = np.promote_types(weights.dtype, gradients.dtype)
    where: Any = {}
    if (mesh := explicit_mesh(gradients)) is not None:
        over_tasks, *rest = [*jax.typeof(gradients).sharding.spec] or [None]
        weights = jax.sharding.reshard(weights, NamedSharding(mesh, PartitionSpec(over_tasks)))
        where = {"out_sharding": NamedSharding(mesh, PartitionSpec(*rest))}
    total = jnp.tensordot(
        weights.astype(dtype),
        gradients.astype(dtype),
        axes=1,
        precision=jax.lax.Precision.HIGHEST,
        **where,
    )
    return total.astype(gradients.dtype)


def products(x: jax.Array, y: jax.Array, dtype: Any) -> jax.Array:
    """Inner products ``[n, m]`` of the rows of ``x``, ``[n, ...]``, and ``y``, ``[m, ...]``.

    They are accumulated in ``dtype``.
    """
    # Contracting all axes at once, instead of flattening first, keeps a sharded leaf in place.
    axes = tuple(range(1, x.ndim))
    mesh = explicit_mesh(x) or explicit_mesh(y)
    where: Any = {} if mesh is None else {"out_sharding": NamedSharding(mesh, PartitionSpec())}
    return jax.lax.dot_general(
        x,
        y,
        ((axes, axes), ((), ())),
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=dtype,
        **where,
    )


def products_by_slices(x: jax.Array, y: jax.Array, dtype: Any) -> jax.Array:
    """The same as :func:`products`, summed over slices that fit a processor's cache.

    XLA:CPU multiplies a few very long rows more slowly than the same rows in slices.
    """
    x, y = (array.reshape(array.shape[0], -1) for array in (x, y))
    whole, rest = divmod(x.shape[1], _SLICE)

    def add_slice(index, total):
        # A loop, since slices side by side would be a second copy of the gradients.
        start = index * _SLICE
        left = jax.lax.dynamic_slice_in_dim(x, start, _SLICE, 1)
        right = jax.lax.dynamic_slice_in_dim(y, start, _SLICE, 1)
        return total + products(left, right, dtype)

    total = jnp.zeros((x.shape[0], y.shape[0]), dtype)
    if rest:
        total = products(x[:, whole * _SLICE :], y[:, whole * _SLICE :], dtype)
    return jax.lax.fori_loop(0, whole, add_slice, total) if whole else total


def refreshed(
    last: jax.Array, measured: jax.Array, known: jax.Array, squares: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """The interaction matrix with every entry replaced that could be measured.

    An entry that isn't finite keeps its last value. So do all entries of a task whose squared norm
    underflows: it is below the smallest normal number, though not all of its entries are zero. A
    gradient that is zero, as that of a converged task, is measured like any other.

    Args:
      last: the matrix so far, ``[N, N]``.
      measured: the new one, ``[N, N]``.
      known: the tasks that the new one was measured for, bool ``[N]``.
      squares: the squared norms of the gradients, ``[N]``; by default the diagonal.

    Returns:
      The matrix ``[N, N]``, and which of the known tasks could not be measured, bool ``[N]``: those
      whose squared norm isn't finite or underflows, and both tasks of a pair whose norms are finite
      but whose product is not.
    """
    squares = jnp.diagonal(measured) if squares is None else squares
    sound = jnp.isfinite(squares)
    pairs = known[:, None] & known[None, :]
    finite = pairs & jnp.isfinite(measured)
    # |A_ij|² ≤ A_ii A_jj: beside a true zero there are only zeros. A processor may round what is
    # below the smallest normal number to zero.
    tiny = jnp.abs(squares) < jnp.finfo(measured.dtype).tiny
    underflows = tiny & (finite & (measured != 0)).any(axis=1)
    lost = pairs & ~finite & sound[:, None] & sound[None, :]
    unmeasured = known & (~sound | underflows | (lost | lost.T).any(axis=1))
    taken = finite & ~underflows[:, None] & ~underflows[None, :]
    return jnp.where(taken, measured, last), unmeasured


def statistics_dtype(tree: Any) -> Any:
    """Dtype for losses, weights and interactions: float32, or that of a wider leaf of the tree."""
    dtypes = (leaf.dtype for leaf in jax.tree.leaves(tree))
    return functools.reduce(np.promote_types, dtypes, np.dtype(np.float32))


def flags(params: Any, shared: Any) -> list[bool]:
    """For each leaf of the parameters, whether a tree of bools like them marks it."""
    return [True] * len(jax.tree.leaves(params)) if shared is None else jax.tree.leaves(shared)


def limit(params: Any) -> int:
    """Bytes that a measurement may take where less memory would take more time."""
    model = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
    return max(_MODELS * model, _BYTES)


def num_tasks(batch: Any) -> int:
    """N, the size of the leading task axis of a batch of arrays ``[task, example, ...]``.

    Raises:
      ValueError: if there is no array, or their leading axes differ.
    """
    # A scalar has no task axis, and no array has a task axis of size −1.
    sizes = {leaf.shape[0] if leaf.ndim else -1 for leaf in jax.tree.leaves(batch)}
    if len(sizes) != 1 or -1 in sizes:
        shapes = {
            jax.tree_util.keystr(path) or "batch": leaf.shape
            for path, leaf in jax.tree_util.tree_leaves_with_path(batch)
        }
        raise ValueError(
            "Every array of the batch must have the same leading task axis, [task, example, ...], "
            f"but their shapes are {shapes}."
        )
    return sizes.pop()


def explicit_mesh(x: jax.Array) -> Any:
    """The abstract mesh that the type of an array names, with axes of the type ``Explicit``.

    ``None`` if there is none, or the compiler decides where the array lies.
    """
    return explicit_mesh_of(jax.typeof(x))


def explicit_mesh_of(kind: Any) -> Any:
    """The same of the type of an array."""
    mesh = kind.sharding.mesh
    return mesh if any(kind == AxisType.Explicit for kind in mesh.axis_types) else None


def zeros(shape: tuple[int, ...], dtype: Any, like: Any) -> jax.Array:
    """Zeros to add up products in, on the explicit mesh of the arrays ``like``, if there is one."""
    meshes = [mesh for x in jax.tree.leaves(like) if (mesh := explicit_mesh(x)) is not None]
    array = jnp.zeros(shape, dtype)
    if not meshes:
        return array
    return jax.sharding.reshard(array, NamedSharding(meshes[0], PartitionSpec()))


def replicated(x: jax.Array) -> jax.Array:
    """An array with all of it on each device, where an explicit mesh holds it otherwise."""
    mesh = explicit_mesh(x)
    if mesh is None or not any(jax.typeof(x).sharding.spec):
        return x
    return jax.sharding.reshard(x, NamedSharding(mesh, PartitionSpec()))


def whole_tasks(tree: Any) -> Any:
    """Arrays ``[task, ...]`` that can be taken apart into tasks.

    What an explicit mesh has split over the tasks is split along the next axis instead, if that can
    be.
    """

    def whole(x):
        mesh = explicit_mesh(x)
        if mesh is None or not (spec := jax.typeof(x).sharding.spec) or spec[0] is None:
            return x
        moved, rest = spec[0], [*spec[1:], *[None] * (x.ndim - len(spec))]
        names = moved if isinstance(moved, tuple) else (moved,)
        parts = math.prod(mesh.shape[name] for name in names)
        if rest and rest[0] is None and x.shape[1] % parts == 0:
            rest[0] = moved
        return jax.sharding.reshard(x, NamedSharding(mesh, PartitionSpec(None, *rest)))

    return jax.tree.map(whole, tree)


def over_data(leaf: Any, sharding: NamedSharding) -> NamedSharding:
    """The sharding of a parameter's gradient, split over the mesh axis ``data`` as well.

    That is on the first axis that ``data`` divides and that isn't split yet, if there is one.
    """
    mesh = sharding.mesh
    spec = [*sharding.spec, *[None] * (leaf.ndim - len(sharding.spec))]
    if "data" in spec:
        return sharding
    for axis, size in enumerate(leaf.shape):
        if spec[axis] is None and size % mesh.shape["data"] == 0:
            spec[axis] = "data"
            break
    return NamedSharding(mesh, PartitionSpec(*spec))

"""The products of all gradients that one backward pass could give, without making them.

Where one input has many labels, or a loss function gives all losses at once, N losses come from one
forward pass, and N gradients are N backward passes. What they have in common are the activations.
The gradient of a dense layer with inputs ``x``, [R, k] for R rows, is ``xᵀ δ_i``, [k, o], and only
what came back to the layer, ``δ_i``, [R, o], is of task i. So

    ⟨xᵀ δ_i, xᵀ δ_j⟩ = ⟨δ_i, x xᵀ δ_j⟩,

and where a batch has fewer rows than the layer has inputs, the right-hand side is less work and
less memory: with 128 rows and layers of 512 a quarter of both. Whether a parameter's gradient is
such a product is read off the traced backward pass. What isn't one is made as a whole.

An example: two layers and two losses of five rows, ``losses(p) = mean((tanh(x @ p["a"]) @ p["b"] -
y) ** 2, axis=0)``. Its traced pullback ends::

    d:f32[5,2] = …
    e:f32[2,8] = dot_general[dimension_numbers=(([0], [0]), ([], []))] d h
    f:f32[8,2] = transpose[permutation=(1, 0)] e

``f`` is the gradient of "b", ``h`` is ``tanh(x @ p["a"])``, [5, 8], which depends on no weight, and
``d`` does. From ``f`` the way goes back to the product. Since 5 is less than 8, the program is made
to give ``d`` in place of ``f``, and ``h hᵀ`` is computed once.

There are two ways from there. All at once, the N of each ``δ`` go back together. One after another,
column j of the matrix is how all losses change along gradient j: the transpose of the same program,
applied to what it gives for task j. That is more work in the memory of one gradient, and what
is done where all at once would take too much, or where A is measured so seldom that the work
doesn't matter.
"""

import functools
import math
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ldro_jax.interaction import base, slices
from ldro_jax.runtime import equations, xla_flags

# Between two measurements in as many steps for each task, one of the leaner kind, about a step a
# task, takes 4 % of the time.
_SELDOM = 25
# Products of fewer rows at a time are slow.
_ROWS = 8
# What lies between two layers, as a multiple of what comes out of one.
_BETWEEN = 3


class _Product(NamedTuple):
    """A gradient that is a product of rows: of ``x`` and ``δ``, along some of the axes of each."""

    x: Any
    delta: Any
    x_rows: tuple[int, ...]
    delta_rows: tuple[int, ...]


class _Program(NamedTuple):
    """What a pullback gives, in parts whose products are those of the gradients.

    Attributes:
      parts: linear, ``weights [N] -> arrays``: ``δ``, [R, o], for the gradient of a dense layer.
      metrics: for each of them ``x xᵀ``, [R, R], or ``None`` if it is a gradient itself.
      shapes: of these parts, for one task.
      largest: bytes of the largest array on the way that is of one task.
      model: bytes of a gradient.
      apart: whether XLA:CPU is wrong or slow where gradients go back together.
    """

    parts: Callable[[jax.Array], list[jax.Array]]
    metrics: list[jax.Array | None]
    shapes: list[Any]
    largest: int
    model: int
    apart: bool


def matrix(
    pullback: Callable[[jax.Array], Any],
    num_losses: int,
    dtype: Any,
    *,
    limit: int,
    interval: Any = None,
) -> jax.Array:
    """The Gram matrix of the gradients that a pullback gives.

    Args:
      pullback: linear, ``weights [N] -> gradient``, of the sum of weights times losses.
      num_losses: N.
      dtype: of the weights.
      limit: bytes that it may take, if less memory would take more time.
      interval: in how many steps it is measured once, if that is known.

    Returns:
      ``[N, N]``, in :func:`.base.statistics_dtype` of the gradients.
    """
    basis = jnp.eye(num_losses, dtype=dtype)
    program = _program(pullback, basis)
    if program is None:
        return base.gram(jax.lax.map(pullback, basis))
    seldom = isinstance(interval, int) and num_losses * _SELDOM <= interval
    # Columns go forward in the dtype of the parts, which would round products with the metrics.
    seldom = seldom and all(x.dtype.itemsize >= 4 for x in program.shapes)
    parts, on_cpu = sum(map(_bytes, program.shapes)), jax.default_backend() == "cpu"
    held = parts if program.apart else _BETWEEN * program.largest
    if seldom or num_losses * held > limit:
        # An accelerator isn't filled by what goes back to the layers of one task.
        at_a_time = 1 if on_cpu else max(program.model // parts, 1)
        if (found := _columns(program, basis, min(at_a_time, num_losses))) is not None:
            return found
    run = program.parts
    each = functools.partial(jax.lax.map, run) if program.apart else jax.vmap(run)
    stacked = zip(each(basis), program.metrics, strict=True)
    return functools.reduce(operator.add, (_products(*part) for part in stacked))


def _products(deltas: jax.Array, metric: jax.Array | None) -> jax.Array:
    """Products ``[N, N]`` of parts ``[N, ...]`` of the gradients."""
    if metric is None:
        return base.gram(deltas)
    dtype = metric.dtype

    def row(delta):
        return base.products(deltas.astype(dtype), _times(metric, delta)[None], dtype)[:, 0]

    size = max(slices.size() // math.prod(deltas.shape[1:]), _ROWS)
    found = jax.lax.map(row, deltas, batch_size=size)
    return (found + found.T) / 2


def _columns(program: _Program, basis: jax.Array, at_a_time: int) -> jax.Array | None:
    """The matrix by columns; ``None`` if the program has a part that can't be transposed."""

    def column(weights):
        parts = program.parts(weights)
        moved = [
            x if metric is None else _times(metric, x).astype(x.dtype)
            for x, metric in zip(parts, program.metrics, strict=True)
        ]
        (change,) = jax.linear_transpose(program.parts, weights)(moved)
        return change

    try:
        jax.eval_shape(column, basis[0])
    except Exception:  # whatever JAX says of an operation that has no transpose
        return None
    found = jax.lax.map(column, basis, batch_size=at_a_time if at_a_time > 1 else None)
    return ((found + found.T) / 2).astype(base.statistics_dtype(found))


def _times(metric: jax.Array, delta: jax.Array) -> jax.Array:
    return jnp.matmul(metric, delta.astype(metric.dtype), precision=jax.lax.Precision.HIGHEST)


def _program(pullback, basis) -> _Program | None:
    """The parts of a pullback; ``None`` where it can't be read or lies on an explicit mesh."""
    try:
        with equations.reading():
            traced = jax.make_jaxpr(pullback)(basis[0])
            if any(base.explicit_mesh_of(v.aval) for v in traced.jaxpr.outvars):
                return None
            closed = equations.inlined(traced)
            products = _read(closed.jaxpr, len(basis))
    except equations.UnknownFormError:
        return None
    pairs = zip(closed.jaxpr.outvars, products, strict=True)
    outputs = [variable if p is None else p.delta for variable, p in pairs]
    factors = [p.x for p in products if p is not None]
    known = iter(equations.function(closed, factors)(jnp.zeros_like(basis[0])))
    metrics = [None if p is None else _metric(next(known), p.x_rows) for p in products]
    run = equations.function(closed, outputs)

    def parts(weights):
        return [
            x if p is None else _flat(x, p.delta_rows)
            for x, p in zip(run(weights), products, strict=True)
        ]

    live = equations.dependents(closed.jaxpr, closed.jaxpr.invars)
    wanted = [closed.jaxpr.eqns[n] for n in equations.needed(closed.jaxpr, outputs)]
    sizes = [_bytes(v.aval) for eqn in wanted for v in eqn.outvars if v in live]
    apart = jax.default_backend() == "cpu" and (
        xla_flags.miscompiles() or equations.mentions(closed, "conv_general_dilated")
    )
    return _Program(
        parts,
        metrics,
        jax.eval_shape(parts, basis[0]),
        max(sizes, default=0),
        sum(_bytes(v.aval) for v in closed.jaxpr.outvars),
        apart,
    )


def _read(jaxpr: equations.Program, num_losses: int) -> list[_Product | None]:
    """Which outputs of a program are products of rows that are worth taking apart."""
    made, _ = equations.made_and_used(jaxpr)
    live = equations.dependents(jaxpr, jaxpr.invars)

    def product(variable) -> _Product | None:
        while not equations.is_literal(variable) and variable in made:
            eqn = jaxpr.eqns[made[variable]]
            if eqn.primitive.name == "dot_general":
                return _product(eqn, live, num_losses)
            # What changes the order of numbers alone changes no product.
            if eqn.primitive.name not in ("transpose", "reshape", "squeeze", *slices.scans.SAME):
                return None
            variable = eqn.invars[0]
        return None

    return [product(v) for v in jaxpr.outvars]


def _product(eqn: equations.Equation, live: set[Any], num_losses: int) -> _Product | None:
    (left_rows, right_rows), (batch, _) = eqn.params["dimension_numbers"]
    left, right = eqn.invars
    sides = [(left, left_rows), (right, right_rows)]
    if left in live:
        sides.reverse()
    (x, x_rows), (delta, delta_rows) = sides
    if batch or equations.is_literal(x) or x in live or delta not in live:
        return None
    rows = math.prod(x.aval.shape[axis] for axis in x_rows)
    inputs, outputs = x.aval.size // rows, delta.aval.size // rows
    apart = rows * rows * (inputs + num_losses * outputs) + num_losses**2 * rows * outputs
    whole = num_losses * rows * inputs * outputs + num_losses**2 * inputs * outputs
    return _Product(x, delta, tuple(x_rows), tuple(delta_rows)) if apart < whole else None


def _flat(array: jax.Array, rows: tuple[int, ...]) -> jax.Array:
    """An array as ``[R, others]``."""
    others = [axis for axis in range(array.ndim) if axis not in rows]
    size = math.prod(array.shape[axis] for axis in rows)
    return jnp.transpose(array, (*rows, *others)).reshape(size, -1)


def _metric(x: jax.Array, rows: tuple[int, ...]) -> jax.Array:
    flat = _flat(x, rows)
    return base.products(flat, flat, base.statistics_dtype(x))


def _bytes(array: Any) -> int:
    return array.size * np.dtype(array.dtype).itemsize

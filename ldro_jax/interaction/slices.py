"""Gradients of dense layers and of embeddings, made and used up slice by slice.

The gradient of a dense layer is a product of activations and cotangents, and that of an embedding
adds cotangents up at the places of their tokens; a layer that is both has the sum of the two. Any
part of such an array can be made without the rest of it.

In the example at :mod:`.layerwise` the gradients of the head come from one product, of cotangents
and of what came out of the layers, and are turned::

    v:f32[3,4,8] = dot_general[dimension_numbers=(([1], [1]), ([0], [0]))] u:f32[3,5,4] d:f32[3,5,8]
    w:f32[3,8,4] = transpose[permutation=(0, 2, 1)] v

Row r of ``v`` is the product of column r of ``u`` with ``d``. In two slices, ``u[:, :, :2]`` and
then ``u[:, :, 2:]`` are multiplied with ``d``; of each ``[3, 2, 8]`` the products ``[3, 3]`` are
added up and the weighted sum ``[2, 8]`` is kept, and ``v`` never exists. The two sums together are
turned as ``v`` would have been. With N = 20 tasks and a layer of 512 × 512 a slice is 5 MB, where
the gradients are 21 MB, and stays in the processor's cache between the product and the sums.
"""

import functools
import math
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ldro_jax.interaction import base, scans
from ldro_jax.runtime import equations

# Numbers of each task in a slice of its gradient: on CPU those of 20 tasks are 5 MB.
_CPU, _ACCELERATOR = 2**16, 2**20
# Slices of fewer rows are slow to multiply.
_ROWS = 8


class Sliced(NamedTuple):
    """An output of a program that can be made slice by slice, along its axis after that of tasks.

    Attributes:
      sources: the numbers of the equations that it is the sum of: products of two arrays for each
        task, or rows added up at some places.
      between: those between the sources and the output.
      turned: those of them that turn or convert it, the last one first.
      pieces: how many slices are worth it.
    """

    sources: tuple[int, ...]
    between: tuple[int, ...]
    turned: tuple[int, ...]
    pieces: int


def size() -> int:
    """Numbers of each task that a slice has at most, if it has more than a few rows."""
    return _CPU if jax.default_backend() == "cpu" else _ACCELERATOR


def sliced_outputs(jaxpr: equations.Program, outputs: Sequence[Any]) -> dict[int, Sliced]:
    """Which outputs ``[N, ...]`` can be made slice by slice, and are needed nowhere else.

    Args:
      jaxpr: a program.
      outputs: some of its outputs; those that are found are named by their number among these.
    """
    made, used = equations.made_and_used(jaxpr)

    def alone(variable):
        """The number of the equation that makes what only one other uses."""
        if equations.is_literal(variable) or used[variable] != 1:
            return None
        return made.get(variable)

    def zero(variable: Any) -> list[int] | None:
        """The equations that make an array of zeros for no other."""
        if equations.is_literal(variable):
            return [] if variable.val == 0 else None
        if (number := alone(variable)) is None:
            return None
        eqn = jaxpr.eqns[number]
        before = zero(eqn.invars[0]) if eqn.primitive.name == "broadcast_in_dim" else None
        return None if before is None else [number, *before]

    def terms(variable: Any) -> tuple[list[int], list[int]] | None:
        """The sources of a sum, and the equations that add them up."""
        if (number := alone(variable)) is None:
            return None
        eqn = jaxpr.eqns[number]
        if _is_product(eqn):
            return [number], []
        if _is_of_rows(eqn) and (zeros := zero(eqn.invars[0])) is not None:
            return [number], zeros
        if eqn.primitive.name != "add_any":
            return None
        first, second = eqn.invars
        left, right = terms(first), terms(second)
        if left is None or right is None:
            return None
        return left[0] + right[0], [number, *left[1], *right[1]]

    def source(variable) -> Sliced | None:
        turned = []
        while (number := alone(variable)) is not None:
            eqn = jaxpr.eqns[number]
            name = eqn.primitive.name
            keeps_tasks = name == "transpose" and eqn.params["permutation"][0] == 0
            if not keeps_tasks and name not in scans.SAME:
                break
            turned.append(number)
            (variable,) = eqn.invars
        if (parts := terms(variable)) is None:
            return None
        sources, sums = parts
        pieces = _pieces([jaxpr.eqns[number] for number in sources])
        return Sliced(tuple(sources), (*turned, *sums), tuple(turned), pieces)

    sources = {number: source(v) for number, v in enumerate(outputs)}
    return {number: place for number, place in sources.items() if place is not None}


def used_up(
    jaxpr: equations.Program, output: Sliced, known: Any, weights: jax.Array | None, dtype: Any
) -> tuple[jax.Array, jax.Array | None]:
    """Uses up the N gradients of an output that comes in slices.

    Args:
      jaxpr: the program.
      output: the output.
      known: the values of its variables so far.
      weights: of the tasks, ``[N]``, or ``None``.
      dtype: of the products.

    Returns:
      The products of the gradients, ``[N, N]``, and with weights their weighted sum, not yet
      turned.
    """
    eqns = [jaxpr.eqns[number] for number in output.sources]
    # The zeros that rows are added to were never made.
    inputs = [
        [equations.read(known, v) for v in eqn.invars[not _is_product(eqn) :]] for eqn in eqns
    ]
    shape: Any = eqns[0].outvars[0].aval.shape  # pyright: ignore
    width = shape[1] // output.pieces

    def step(total, start):
        parts = (_part(*each, start, width) for each in zip(eqns, inputs, strict=True))
        gradients = functools.reduce(operator.add, parts)
        summed = None if weights is None else base.combined(weights, gradients)
        return total + base.gram(gradients).astype(dtype), summed

    total = jnp.zeros((shape[0],) * 2, dtype)
    starts = width * jnp.arange(output.pieces, dtype=jnp.int32)
    total, summed = lax.scan(step, total, starts)
    return total, None if summed is None else summed.reshape(shape[1:])


def _part(eqn, inputs, start, width) -> jax.Array:
    """Elements of a source along its axis after that of tasks."""
    if _is_product(eqn):
        left, right = inputs
        left = lax.dynamic_slice_in_dim(left, start, width, _free(eqn)[0])
        return eqn.primitive.bind(left, right, **eqn.params)
    places, rows = inputs
    whole = eqn.outvars[0].aval
    zeros = jnp.zeros((whole.shape[0], width, *whole.shape[2:]), whole.dtype)
    # What is outside of the slice is dropped.
    params = eqn.params | {"mode": lax.GatherScatterMode.FILL_OR_DROP}
    return eqn.primitive.bind(zeros, places - start.astype(places.dtype), rows, **params)


def _pieces(eqns) -> int:
    """In how many slices of the same width to take the axis after that of the tasks."""
    shape = eqns[0].outvars[0].aval.shape
    rows = [
        math.prod(eqn.invars[0].aval.shape[axis] for axis in _free(eqn))
        for eqn in eqns
        if _is_product(eqn)
    ]
    most = min(max(min(rows, default=shape[1]) // _ROWS, 1), shape[1])
    wanted = -(-math.prod(shape[1:]) // size())
    divisors = (n for n in range(min(wanted, most), most + 1) if shape[1] % n == 0)
    return next(divisors, 1)


def _is_product(eqn) -> bool:
    """Whether it is a product for each task, with an axis of the left factor in it."""
    if eqn.primitive.name != "dot_general":
        return False
    _, (batch, _) = eqn.params["dimension_numbers"]
    return len(batch) == 1 and bool(_free(eqn))


def _free(eqn) -> list[int]:
    """The axes of the left factor that come back in the product, after that of the tasks."""
    (contracted, _), (batch, _) = eqn.params["dimension_numbers"]
    return [a for a in range(eqn.invars[0].aval.ndim) if a not in (*contracted, *batch)]


def _is_of_rows(eqn) -> bool:
    """Whether it adds rows up, at places along the axis after that of the tasks."""
    if eqn.primitive.name != "scatter-add":
        return False
    numbers, indices = eqn.params["dimension_numbers"], eqn.invars[1].aval
    along = tuple(map(int, numbers.scatter_dims_to_operand_dims)) == (1,)
    drops = eqn.params["mode"] in (
        lax.GatherScatterMode.FILL_OR_DROP,
        lax.GatherScatterMode.PROMISE_IN_BOUNDS,
    )
    signed = jnp.issubdtype(indices.dtype, jnp.signedinteger)
    one_by_one = 1 in map(int, numbers.inserted_window_dims)
    return along and drops and signed and one_by_one

"""The gradients of scanned layers, contracted in the scan of the backward pass.

Layers that are scanned (``flax.linen.scan``, ``jax.lax.scan``) have their parameters stacked in one
array, whose N gradients are as large as N models. In the backward pass they come out layer by layer.
Here the products of each layer's gradients are taken as soon as they are there, so that those of one
layer are all that is held.

It works on the traced program of the gradients, not on the model: an output that is nothing but what
a scan puts out, layer by layer, is contracted within that scan.
"""

import collections
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core

from ldro_jax.interaction import base

_CALLS = ("closed_call", "core_call", "jit", "pjit")


class _Contraction(NamedTuple):
    """An output of a scan that is nowhere needed but for its products.

    Attributes:
      output: which of the outputs of the scan.
      axis: of the tasks, in what one step of the scan puts out.
    """

    output: int
    axis: int


def layerwise() -> base.Interaction:
    """Contracts the gradients of scanned layers where they come out; the others leaf by leaf.

    Work: one backward pass. Memory: as ``vmap``, but of stacked parameters N gradients of one layer.

    Returns:
      The :class:`~ldro_jax.interaction.base.Interaction`.
    """

    def matrix(loss_fn, params, batch):
        gradients = jax.vmap(jax.grad(loss_fn), in_axes=(None, 0))
        dtype = base.statistics_dtype(params)
        return gram_of(gradients, params, batch, dtype=dtype)

    return base.Interaction(matrix)


def gram_of(function: Callable[..., Any], *arguments: Any, dtype: Any) -> jax.Array:
    """Gram matrix of what a function returns, without holding what a scan stacks up.

    Args:
      function: returns a pytree of arrays ``[N, ...]``.
      *arguments: its arguments.
      dtype: to accumulate in.

    Returns:
      ``[N, N]``.
    """
    flat, structure = jax.tree.flatten(arguments)

    def flattened(*leaves):
        return jax.tree.leaves(function(*jax.tree.unflatten(structure, leaves)))

    closed = _inlined(jax.make_jaxpr(flattened)(*flat))
    found, rest = _contractions(closed.jaxpr)
    totals, outputs = _evaluate(closed, flat, found, rest, dtype)
    for output in outputs:
        totals.append(base.products(output, output, dtype))
    return functools.reduce(jnp.add, totals)


def _inlined(closed: core.ClosedJaxpr) -> core.ClosedJaxpr:
    """The same program without calls of compiled functions."""

    def evaluate(jaxpr, constants, *values):
        known = dict(zip(jaxpr.constvars, constants, strict=True))
        known |= dict(zip(jaxpr.invars, values, strict=True))
        for eqn in jaxpr.eqns:
            if eqn.primitive.name in _CALLS:
                inputs = [_read(known, v) for v in eqn.invars]
                inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
                constants_ = getattr(inner, "consts", ())
                outputs = evaluate(getattr(inner, "jaxpr", inner), constants_, *inputs)
            else:
                outputs = _bind(eqn, known)
            known |= dict(zip(eqn.outvars, outputs, strict=True))
        return [_read(known, v) for v in jaxpr.outvars]

    shapes = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in closed.jaxpr.invars]
    return jax.make_jaxpr(functools.partial(evaluate, closed.jaxpr, closed.consts))(*shapes)


def _read(known, variable):
    return variable.val if isinstance(variable, core.Literal) else known[variable]


def _bind(eqn, known) -> Sequence[jax.Array]:
    """Runs one equation."""
    inputs = list(dict.fromkeys(v for v in eqn.invars if not isinstance(v, core.Literal)))
    alone = core.Jaxpr([], inputs, eqn.outvars, [eqn], eqn.effects)
    return core.jaxpr_as_fun(core.ClosedJaxpr(alone, []))(*(known[v] for v in inputs))


def _contractions(jaxpr: core.Jaxpr) -> tuple[dict[int, list[_Contraction]], list[core.Var]]:
    """What to contract in which scan, by the number of its equation; and the other outputs."""
    made = {
        variable: (number, place)
        for number, eqn in enumerate(jaxpr.eqns)
        for place, variable in enumerate(eqn.outvars)
    }
    times = collections.Counter(
        v
        for v in [*(v for eqn in jaxpr.eqns for v in eqn.invars), *jaxpr.outvars]
        if not isinstance(v, core.Literal)
    )

    def source(variable):
        axis = 0
        while variable in made and times[variable] == 1:
            number, place = made[variable]
            eqn = jaxpr.eqns[number]
            if eqn.primitive.name == "transpose":
                axis, variable = eqn.params["permutation"][axis], eqn.invars[0]
                continue
            if eqn.primitive.name == "scan" and axis > 0 and place >= eqn.params["num_carry"]:
                return number, _Contraction(place, axis - 1)
            break
        return None

    found, rest = collections.defaultdict(list), []
    for output in jaxpr.outvars:
        if (place := source(output)) is None:
            rest.append(output)
        else:
            found[place[0]].append(place[1])
    return found, rest


def _evaluate(closed, arguments, contractions, outputs, dtype):
    """The products of what is contracted, and the other outputs."""
    known = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
    known |= dict(zip(closed.jaxpr.invars, arguments, strict=True))
    totals = []
    for number, eqn in enumerate(closed.jaxpr.eqns):
        if any(v not in known for v in eqn.invars if not isinstance(v, core.Literal)):
            continue  # turns what is contracted
        if number not in contractions:
            known |= dict(zip(eqn.outvars, _bind(eqn, known), strict=True))
            continue
        inputs = [_read(known, v) for v in eqn.invars]
        total, found = _contracted_scan(eqn, inputs, contractions[number], dtype)
        totals.append(total)
        gone = {contraction.output for contraction in contractions[number]}
        kept = [v for place, v in enumerate(eqn.outvars) if place not in gone]
        known |= dict(zip(kept, found, strict=True))
    return totals, [_read(known, v) for v in outputs]


def _contracted_scan(eqn, inputs, contractions, dtype):
    """Runs a scan that adds up products instead of stacking up what they are of."""
    num_consts, num_carry = eqn.params["num_consts"], eqn.params["num_carry"]
    constants, first, rows = (
        inputs[:num_consts],
        inputs[num_consts : num_consts + num_carry],
        inputs[num_consts + num_carry :],
    )
    body = core.jaxpr_as_fun(eqn.params["jaxpr"])
    gone = {contraction.output for contraction in contractions}
    count = eqn.params["jaxpr"].out_avals[contractions[0].output].shape[contractions[0].axis]

    def step(carry, row):
        state, total = carry
        outputs = body(*constants, *state, *row)
        for place, axis in contractions:
            gradients = jnp.moveaxis(outputs[place], axis, 0)
            total = total + base.products(gradients, gradients, dtype)
        kept = [x for place, x in enumerate(outputs) if place >= num_carry and place not in gone]
        return (outputs[:num_carry], total), kept

    (last, total), stacked = lax.scan(
        step,
        (list(first), jnp.zeros((count, count), dtype)),
        list(rows),
        length=eqn.params["length"],
        reverse=eqn.params["reverse"],
        unroll=eqn.params["unroll"],
    )
    return total, [*last, *stacked]

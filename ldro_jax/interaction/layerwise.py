"""The gradients of layers, used up where they come out of the backward pass.

Layers that are scanned (``flax.linen.scan``, ``jax.lax.scan``) have their parameters stacked in one
array, whose N gradients are as large as N models. In the backward pass they come out layer by
layer. Here the products of each layer's gradients are taken as soon as they are there, and their
weighted sum, so that those of one layer are all that is held.

It works on the traced program of the gradients, not on the model. An example: two scanned layers of
8 × 8 and a head of 8 × 4, for three tasks of five examples each::

    def loss(params, x):
        h, _ = lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, params["layers"])
        return jnp.mean((h @ params["head"]) ** 2)

``vmap(value_and_grad(loss))`` is traced, which computes nothing, and its program has four parts:

1. a scan forward through the layers, which saves what each of them computed, ``[2, 3, 5, 8]``;
2. some equations for the losses, ``[3]``, and the cotangents of what came out of the layers;
3. a product that makes the head's gradients, ``[3, 4, 8]``, and one that turns them, ``[3, 8, 4]``;
4. a scan back through the layers. Each step makes the gradients of its layer, ``[3, 8, 8]``, which
   the scan stacks up, ``[2, 3, 8, 8]``; one more equation turns them, ``[3, 2, 8, 8]``.

What the losses need, 1 and most of 2, is run as it is, once. The rest is run when the weights are
there. The scan of 4 gets another body: after each layer it adds the products of the three gradients
to a matrix, ``[3, 3]``, and puts out their weighted sum, ``[8, 8]``, in their place, so that
``[2, 3, 8, 8]`` never exists (:mod:`.scans` finds out that nothing else uses it). The product of 3
is made and used up in slices of its rows (:mod:`.slices`). What fits neither way, as the gradient
of a bias, is made as a whole.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from ldro_jax.interaction import base, scans, slices
from ldro_jax.runtime import equations
from ldro_jax.runtime import leaves as leaves_lib


class _Program(NamedTuple):
    """Losses and gradients of all tasks, traced.

    Attributes:
      closed: without calls; its last outputs are the leaves of the gradients.
      leaves: these outputs.
      arguments: its arguments.
      stacked: those of the leaves that come out of a scan, by their number.
      sliced: those of the leaves that can be made slice by slice, by their number.
      structure: of the gradients, and of what comes before them.
      shardings: of the leaves, in the same order, or ``None``.
    """

    closed: equations.Program
    leaves: list[Any]
    arguments: list[Any]
    stacked: dict[int, scans.Stacked]
    sliced: dict[int, slices.Sliced]
    structure: tuple[Any, Any]
    shardings: list[NamedSharding] | None

    def placed(self, gradients: jax.Array, leaf: int) -> jax.Array:
        """The gradients of a leaf or of one layer of it, ``[N, ...]``, split over the devices."""
        if self.shardings is None:
            return gradients
        whole = self.shardings[leaf]
        spec = [*whole.spec, *[None] * self.leaves[leaf].aval.ndim]
        if (output := self.stacked.get(leaf)) is not None:
            axes = sorted(set(output.order[1:]) - {0})
            spec = [spec[output.order.index(axis) - 1] for axis in axes]
        shape = jax.ShapeDtypeStruct(gradients.shape[1:], gradients.dtype)
        spec = PartitionSpec(*spec[: len(shape.shape)])
        split = base.over_data(shape, NamedSharding(whole.mesh, spec))
        split = NamedSharding(whole.mesh, PartitionSpec(None, *split.spec))
        return lax.with_sharding_constraint(gradients, split)


@leaves_lib.needs_arrays
def layerwise(shardings: Any = None) -> base.Interaction:
    """Uses up the gradients of scanned layers where they come out, and of dense ones in slices.

    Work: one backward pass. Memory: as ``vmap``, but of stacked parameters N gradients of one
    layer, and of dense layers N slices where there is one device. With ``lagged``, and an
    ``interaction_interval`` of 1, the training gradient comes from the same pass.

    Args:
      shardings: of the parameters, a pytree of ``NamedSharding``. The gradients of a layer are then
        split in the same way, and over the mesh axis ``data`` as well.

    Returns:
      The :class:`~ldro_jax.interaction.base.Interaction`. Its functions raise a
      ``NotImplementedError`` where JAX writes a traced program down in a form that isn't known.
    """

    def pullback(loss_fn, params, batch, *, has_aux=False, shared=None):
        program = _traced(loss_fn, params, batch, shardings, has_aux)
        counted = base.flags(params, shared)
        return _used_up(program, base.statistics_dtype(params), counted)

    def matrix(loss_fn, params, batch):
        return pullback(loss_fn, params, batch)[1](None).matrix

    return base.Interaction(matrix, pullback=pullback)


def held(loss_fn: base.LossFn, params: Any, batch: Any, *, layers: bool = False) -> int | None:
    """Bytes of the N gradients that :func:`layerwise` holds at a time, for the largest parameter.

    ``None`` where no gradient comes in parts, so that nothing is saved. Parts are the layers of a
    scan, and unless ``layers`` are looked for alone the slices of a product.

    Args:
      loss_fn: ``(params, task_batch) -> scalar``.
      params: arrays or their shapes.
      batch: arrays or their shapes, ``[task, example, ...]``.
      layers: whether slices don't count.
    """
    program = _traced(loss_fn, params, batch)
    in_slices = not layers and any(each.pieces > 1 for each in program.sliced.values())
    if not program.stacked and not in_slices:
        return None
    sizes = [0]
    for number, leaf in enumerate(program.leaves):
        size = leaf.aval.size * leaf.aval.dtype.itemsize
        if number in program.stacked:
            size //= program.stacked[number].length
        elif number in program.sliced:
            size //= program.sliced[number].pieces
        sizes.append(size)
    return max(sizes)


def _traced(loss_fn, params, batch, shardings=None, has_aux=False) -> _Program:
    flat, structure = jax.tree.flatten((params, batch))
    both = jax.vmap(jax.value_and_grad(loss_fn, has_aux=has_aux), in_axes=(None, 0))
    made, shapes = jax.make_jaxpr(
        lambda *leaves: both(*jax.tree.unflatten(structure, leaves)), return_shape=True
    )(*flat)
    first, like = (jax.tree.structure(part) for part in shapes)
    places = None if shardings is None else jax.tree.leaves(shardings)
    with equations.reading():
        closed, sliced = equations.inlined(made), {}
        leaves = closed.jaxpr.outvars[first.num_leaves :]
        stacked = scans.stacked_outputs(closed.jaxpr, leaves)
        if jax.device_count() == 1:
            # Slices of what is split over devices would move it between them.
            sliced = slices.sliced_outputs(closed.jaxpr, leaves)
    return _Program(closed, leaves, flat, stacked, sliced, (like, first), places)


def _used_up(
    program: _Program, dtype: Any, counted: list[bool]
) -> tuple[jax.Array, Callable[[jax.Array | None], base.Pulled]]:
    """The losses (and what comes with them), and what weights pull back.

    Without weights, that is the matrix alone. Which of the gradients count in it is ``counted``.
    """
    jaxpr, stacked = program.closed.jaxpr, program.stacked
    known = dict(zip(jaxpr.constvars, program.closed.consts, strict=True))
    known |= dict(zip(jaxpr.invars, program.arguments, strict=True))
    like, first = program.structure
    outputs = jaxpr.outvars[: first.num_leaves]
    forward = dict.fromkeys(equations.needed(jaxpr, outputs))
    for number in forward:
        eqn = jaxpr.eqns[number]
        known |= dict(zip(eqn.outvars, equations.run(jaxpr, eqn, known), strict=True))
    losses = [equations.read(known, output) for output in outputs]
    # A sum of several sources is made when the last of them could be.
    last = {max(output.sources): leaf for leaf, output in program.sliced.items()}
    left_out = {number for output in stacked.values() for number in output.turned}
    for output in program.sliced.values():
        left_out |= {*output.between, *output.sources} - {max(output.sources)}

    def pull(weights):
        values, total = dict(known), jnp.zeros((losses[0].size,) * 2, dtype)
        leaves: dict[int, Any] = {}
        for number, eqn in enumerate(jaxpr.eqns):
            if number in forward or number in left_out:
                continue
            if (leaf := last.get(number)) is not None:
                output = program.sliced[leaf]
                products, summed = slices.used_up(jaxpr, output, values, weights, dtype)
                total += products if counted[leaf] else 0
                if summed is not None:
                    leaves[leaf] = _turned(jaxpr, output, summed[None])
                continue
            here = {leaf: output for leaf, output in stacked.items() if output.scan == number}
            if not here:
                values |= dict(zip(eqn.outvars, equations.run(jaxpr, eqn, values), strict=True))
                continue
            inputs = [equations.read(values, v) for v in eqn.invars]
            products, sums, others = _scanned(program, eqn, inputs, here, weights, dtype, counted)
            total += products
            gone = {output.place for output in here.values()}
            kept = [v for place, v in enumerate(eqn.outvars) if place not in gone]
            values |= dict(zip(kept, others, strict=True))
            for (leaf, output), summed in zip(here.items(), sums, strict=False):
                leaves[leaf] = _turned(jaxpr, output, jnp.expand_dims(summed, output.axis + 1))
        for leaf, variable in enumerate(program.leaves):
            if leaf not in stacked and leaf not in program.sliced:
                gradients = program.placed(equations.read(values, variable), leaf)
                if counted[leaf]:
                    total += base.gram(gradients).astype(dtype)
                if weights is not None:
                    leaves[leaf] = base.combined(weights, gradients)
        if weights is None:
            return base.Pulled(None, total)
        gradient = [leaves[leaf] for leaf in range(len(program.leaves))]
        return base.Pulled(jax.tree.unflatten(like, gradient), total)

    return jax.tree.unflatten(first, losses), pull


def _scanned(program, eqn, inputs, stacked: dict[int, scans.Stacked], weights, dtype, counted):
    """Runs a scan that adds up products and weighted sums instead of stacking up gradients.

    Returns the products ``[N, N]``, the weighted sums of each output that is gone, stacked, and the
    other outputs.
    """
    body, num_consts, num_carry, options = equations.scan(eqn)
    carried = num_consts + num_carry
    constants, first, rows = inputs[:num_consts], inputs[num_consts:carried], inputs[carried:]
    gone = {output.place for output in stacked.values()}
    count = program.closed.jaxpr.outvars[0].aval.size

    def step(carry, row):
        state, total = carry
        outputs = body(*constants, *state, *row)
        sums = []
        for leaf, output in stacked.items():
            gradients = program.placed(jnp.moveaxis(outputs[output.place], output.axis, 0), leaf)
            if counted[leaf]:
                total += base.gram(gradients).astype(dtype)
            if weights is not None:
                sums.append(base.combined(weights, gradients))
        kept = [x for place, x in enumerate(outputs) if place >= num_carry and place not in gone]
        return (outputs[:num_carry], total), (sums, kept)

    (last, total), (sums, others) = lax.scan(
        step,
        (list(first), base.zeros((count, count), dtype, inputs)),
        list(rows),
        **options,
    )
    return total, sums, [*last, *others]


def _turned(jaxpr: equations.Program, output: Any, value: jax.Array) -> jax.Array:
    """A sum over the tasks, turned and converted as the gradients of each would have been."""
    for number in reversed(output.turned):
        eqn = jaxpr.eqns[number]
        if eqn.primitive.name == "transpose":
            value = jnp.transpose(value, eqn.params["permutation"])
        else:
            value = value.astype(eqn.params.get("new_dtype", value.dtype))
    return value[0]

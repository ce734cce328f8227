"""Programs that JAX has traced: the one place that knows how their equations are written down.

That is JAX's own affair and changes between its releases: since 0.12 a ``scan`` no longer says how
many values it carries, and has a ``Jaxpr`` where there was a ``ClosedJaxpr``. This module knows the
forms from 0.6 to 0.12, and raises :class:`UnknownFormError` for any other. Callers that can do
without reading the program then do.
"""

import collections
import contextlib
import functools
import math
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend import core

# JAX renames the classes of programs and equations, so that nothing here is annotated with them.
Program = Any
Equation = Any

_CALLS = ("closed_call", "core_call", "custom_jvp_call", "jit", "pjit")
# What computes each entry from those in the same place.
# fmt: off
_ENTRY_BY_ENTRY = {
    "abs", "add", "add_any", "and", "ceil", "clamp", "convert_element_type", "copy", "copy_p",
    "cos", "div", "eq", "erf", "exp", "exp2", "expm1", "floor", "ge", "gt", "integer_pow",
    "is_finite", "le", "log", "log1p", "logistic", "lt", "max", "min", "mul", "ne", "neg",
    "not", "or", "pow", "reduce_precision", "rem", "round", "rsqrt", "select_n",
    "sharding_constraint", "sign", "sin", "sqrt", "square", "stop_gradient", "sub", "tanh",
}
# fmt: on
_SCAN = {"jaxpr", "length", "reverse", "unroll"}
# What is carried and what is stacked shows in the shapes, which all releases have in common.
_OTHERS_OF_SCAN = {"_split_transpose", "ft_in", "ft_out", "linear", "num_carry", "num_consts"}


class UnknownFormError(NotImplementedError):
    """A traced program has a form that this release of the library doesn't know."""

    def __init__(self, found: str) -> None:
        super().__init__(
            f"JAX {jax.__version__} writes a traced program down in a form that ldro-jax doesn't "
            f"know: {found}. Only interaction='layerwise' needs to read it: use 'auto', 'vmap' or "
            "'tiled' instead, or an older JAX."
        )


class Scan(NamedTuple):
    """The equation of a ``jax.lax.scan``.

    Attributes:
      body: one step, ``(*constants, *carried, *rows) -> [*carried, *outputs]``.
      constants: how many of its inputs are the same for all steps.
      carried: how many go from step to step.
      options: ``length``, ``reverse`` and ``unroll`` of ``jax.lax.scan``.
    """

    body: Callable[..., Sequence[jax.Array]]
    constants: int
    carried: int
    options: dict[str, Any]


@contextlib.contextmanager
def reading() -> Iterator[None]:
    """Makes an :class:`UnknownFormError` of whatever fails while a program is read."""
    try:
        yield
    except UnknownFormError:
        raise
    except Exception as error:
        raise UnknownFormError(f"{type(error).__name__}: {error}") from error


def inlined(closed: Program) -> Program:
    """The same program, as from ``jax.make_jaxpr``, without calls of compiled functions."""

    def evaluate(jaxpr, constants, *values):
        known = dict(zip(jaxpr.constvars, constants, strict=True))
        known |= dict(zip(jaxpr.invars, values, strict=True))
        for eqn in jaxpr.eqns:
            if eqn.primitive.name in _CALLS:
                inner = eqn.params["jaxpr" if "jaxpr" in eqn.params else "call_jaxpr"]
                outputs = evaluate(
                    getattr(inner, "jaxpr", inner),
                    getattr(inner, "consts", ()),
                    *(read(known, v) for v in eqn.invars),
                )
            else:
                outputs = run(jaxpr, eqn, known)
            known |= dict(zip(eqn.outvars, outputs, strict=True))
        return [read(known, v) for v in jaxpr.outvars]

    shapes = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in closed.jaxpr.invars]
    return jax.make_jaxpr(functools.partial(evaluate, closed.jaxpr, closed.consts))(*shapes)


def scan(eqn: Equation) -> Scan:
    """Reads the equation of a ``jax.lax.scan``; may raise :class:`UnknownFormError`."""
    names = set(eqn.params)
    if not _SCAN <= names <= _SCAN | _OTHERS_OF_SCAN:
        raise UnknownFormError(f"a scan with the parameters {', '.join(sorted(names))}")
    body, length = eqn.params["jaxpr"], eqn.params["length"]

    def whole(variables, parts):
        """How many are the same in all steps; the others come after, a row for each step."""
        shapes = [v.aval.shape for v in variables]
        count = sum(map(operator.eq, shapes, (part.shape for part in parts)))
        rows = [part.shape if n < count else (length, *part.shape) for n, part in enumerate(parts)]
        if shapes != rows:
            raise UnknownFormError("a scan whose inputs and outputs don't fit those of its body")
        return count

    carried = whole(eqn.outvars, body.out_avals)
    constants = whole(eqn.invars, body.in_avals) - carried
    options = {name: eqn.params[name] for name in ("length", "reverse", "unroll")}
    return Scan(core.jaxpr_as_fun(body), constants, carried, options)


def mentions(program: Program, name: str) -> bool:
    """Whether a primitive of a name is in a program, or in one inside of it."""
    # The text names the primitives of inner programs as well, whatever holds them.
    return f" {name}[" in str(program)


def batch_axes_of_convolutions(program: Program) -> list[int]:
    """Which axis of its first input holds the examples, of each convolution: 0 when forward."""
    return [int(axis) for axis in re.findall(r"lhs_spec=\((\d+)", str(program))]


def made_and_used(jaxpr: Program) -> tuple[dict[Any, int], collections.Counter[Any]]:
    """By variable, the number of the equation that it comes from, and how often it is used."""
    made = {v: number for number, eqn in enumerate(jaxpr.eqns) for v in eqn.outvars}
    used = collections.Counter(
        v for eqn in [*jaxpr.eqns, jaxpr.outvars] for v in variables(getattr(eqn, "invars", eqn))
    )
    return made, used


def needed(jaxpr: Program, outputs: Iterable[Any]) -> list[int]:
    """The numbers of the equations that some variables of a program depend on, in order."""
    wanted, numbers = set(variables(outputs)), []
    for number in reversed(range(len(jaxpr.eqns))):
        eqn = jaxpr.eqns[number]
        if wanted.intersection(eqn.outvars):
            wanted.update(variables(eqn.invars))
            numbers.append(number)
    return numbers[::-1]


def depending(jaxpr: Program, inputs: Iterable[Any]) -> list[bool]:
    """For each output of a program, whether it depends on one of these variables.

    The program must have no calls; a loop or a condition counts as depending on all its inputs.
    """
    live = dependents(jaxpr, inputs)
    return [not is_literal(v) and v in live for v in jaxpr.outvars]


def dependents(jaxpr: Program, inputs: Iterable[Any]) -> set[Any]:
    """The variables of such a program that depend on one of these, and these."""
    live = set(inputs)
    for eqn in jaxpr.eqns:
        if live.intersection(variables(eqn.invars)):
            live.update(eqn.outvars)
    return live


def inputs_of_entries(closed: Program, axis: int) -> list[list[bool]]:
    """Which inputs each entry of a program's only output depends on, along an axis of it.

    It follows entries through what stacks, pads, turns, reduces and takes apart arrays, and through
    what goes entry by entry. Otherwise an entry counts as depending on all that its array does.

    Returns:
      For each entry, whether it depends on each of the inputs.
    """
    jaxpr = closed.jaxpr
    made, _ = made_and_used(jaxpr)
    # Sets of inputs, as the bits of a number.
    whole: dict[Any, int] = {v: 1 << number for number, v in enumerate(jaxpr.invars)}

    def all_of(atoms) -> int:
        return functools.reduce(operator.or_, (whole.get(v, 0) for v in variables(atoms)), 0)

    @functools.cache
    def of_entry(variable, axis, entry) -> int:
        if variable not in made:
            return all_of([variable])
        bits = 0
        for operand, place in _entries(jaxpr.eqns[made[variable]], axis, entry):
            if place is None or is_literal(operand):
                bits |= all_of([operand])
            else:
                bits |= of_entry(operand, *place)
        return bits

    for eqn in jaxpr.eqns:
        whole |= dict.fromkeys(eqn.outvars, all_of(eqn.invars))
        for output, place in _taken(eqn).items():
            whole[output] = of_entry(eqn.invars[0], *place)
    (output,) = jaxpr.outvars
    if is_literal(output):
        return [[False] * len(jaxpr.invars)] * output.aval.shape[axis]
    sets = [of_entry(output, axis, entry) for entry in range(output.aval.shape[axis])]
    return [[bool(bits >> number & 1) for number in range(len(jaxpr.invars))] for bits in sets]


def _taken(eqn: Equation) -> dict[Any, tuple[int, int]]:
    """The outputs of an equation that are one entry of its first input, with the axis and entry."""
    if eqn.primitive.name == "unstack":
        return {v: (eqn.params["axis"], entry) for entry, v in enumerate(eqn.outvars)}
    if eqn.primitive.name != "slice" or is_literal(eqn.invars[0]):
        return {}
    (output,), starts = eqn.outvars, eqn.params["start_indices"]
    sizes = zip(output.aval.shape, eqn.invars[0].aval.shape, strict=True)
    axis = next((axis for axis, (new, old) in enumerate(sizes) if new == 1 < old), None)
    return {} if axis is None else {output: (axis, starts[axis])}


def _entries(eqn: Equation, axis: int, entry: int) -> list[tuple[Any, tuple[int, int] | None]]:
    """What an entry of an equation's output comes from: operands, with an axis and an entry of it.

    ``None`` for the whole of an operand.
    """
    name, params, operands = eqn.primitive.name, eqn.params, eqn.invars
    shape = eqn.outvars[0].aval.shape
    first = operands[0]
    if name == "stack":
        along = params["axis"]
        if along == axis:
            return [(operands[entry], None)]
        return [(x, (axis - (along < axis), entry)) for x in operands]
    if name == "concatenate":
        if params["dimension"] != axis:
            return [(x, (axis, entry)) for x in operands]
        for x in operands:
            if entry < x.aval.shape[axis]:
                return [(x, (axis, entry))]
            entry -= x.aval.shape[axis]
    if name == "slice":
        start, step = params["start_indices"][axis], (params["strides"] or [1] * len(shape))[axis]
        return [(first, (axis, start + step * entry))]
    if name in _ENTRY_BY_ENTRY:
        return [(x, (axis, entry) if x.aval.shape == shape else None) for x in operands]
    if name == "pad":
        low, _, between = params["padding_config"][axis]
        if between == 0:
            inside = 0 <= entry - low < first.aval.shape[axis]
            return [(first, (axis, entry - low)) if inside else (operands[1], None)]
    before: int | None = None
    if name == "transpose":
        before = params["permutation"][axis]
    elif name == "squeeze":
        kept = [a for a in range(first.aval.ndim) if a not in params["dimensions"]]
        before = kept[axis]
    elif name.startswith("reduce_") and "axes" in params:
        before = [a for a in range(first.aval.ndim) if a not in params["axes"]][axis]
    elif name == "broadcast_in_dim" and axis in params["broadcast_dimensions"]:
        before = params["broadcast_dimensions"].index(axis)
    elif name == "reshape":
        outer = math.prod(shape[:axis])
        same = (a for a, size in enumerate(first.aval.shape) if size == shape[axis])
        before = next((a for a in same if math.prod(first.aval.shape[:a]) == outer), None)
    if before is None or first.aval.shape[before : before + 1] != (shape[axis],):
        return [(x, None) for x in operands]
    return [(first, (before, entry)), *((x, None) for x in operands[1:])]


def function(closed: Program, outputs: Sequence[Any]) -> Callable[..., list[jax.Array]]:
    """The function of a program's inputs that gives some of its variables, and no more."""
    jaxpr = closed.jaxpr
    eqns = [jaxpr.eqns[number] for number in needed(jaxpr, outputs)]

    def run_needed(*inputs):
        known = dict(zip(jaxpr.constvars, closed.consts, strict=True))
        known |= dict(zip(jaxpr.invars, inputs, strict=True))
        for eqn in eqns:
            known |= dict(zip(eqn.outvars, run(jaxpr, eqn, known), strict=True))
        return [read(known, v) for v in outputs]

    return run_needed


def is_literal(atom: Any) -> bool:
    """Whether an input or output of an equation is a number and no variable."""
    return isinstance(atom, core.Literal)


def variables(atoms: Iterable[Any]) -> list[Any]:
    """The variables among the inputs or outputs of an equation, in their order."""
    return [v for v in atoms if not is_literal(v)]


def read(known: Mapping[Any, Any], atom: Any) -> Any:
    """The value of a literal, or of a variable whose value is known."""
    return atom.val if is_literal(atom) else known[atom]


def run(jaxpr: Program, eqn: Equation, known: Mapping[Any, Any]) -> Sequence[jax.Array]:
    """The outputs of one equation of a program, from the values of the variables so far."""
    inputs = list(dict.fromkeys(variables(eqn.invars)))
    alone = jaxpr.replace(
        constvars=[], invars=inputs, outvars=eqn.outvars, eqns=[eqn], effects=eqn.effects
    )
    # JAX 0.12 keeps this name for what is now a Jaxpr, without exporting it to type checkers.
    closed = core.ClosedJaxpr(alone, [])  # pyright: ignore[reportPrivateImportUsage]
    return core.jaxpr_as_fun(closed)(*(known[v] for v in inputs))

"""Programs that JAX has traced: the one place that knows how their equations are written down.

That is JAX's own affair and changes between its releases: since 0.12 a ``scan`` no longer says how
many values it carries, and has a ``Jaxpr`` where there was a ``ClosedJaxpr``. This module knows the
forms from 0.6 to 0.12, and raises :class:`UnknownFormError` for any other. Callers that can do
without reading the program then do.
"""

import collections
import contextlib
import functools
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend import core

# JAX renames the classes of programs and equations, so that nothing here is annotated with them.
Program = Any
Equation = Any

_CALLS = ("closed_call", "core_call", "jit", "pjit")
_SCAN = {"jaxpr", "length", "reverse", "unroll"}
# What is carried and what is stacked shows in the shapes, which all releases have in common.
_OTHERS_OF_SCAN = {"_split_transpose", "ft_in", "ft_out", "linear", "num_carry", "num_consts"}


class UnknownFormError(NotImplementedError):
    """A traced program has a form that this release of the library doesn't know."""

    def __init__(self, found: str):
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

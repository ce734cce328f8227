"""Programs that are traced, and what of their outputs comes layer by layer out of a scan."""

import collections
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend import core

_CALLS = ("closed_call", "core_call", "jit", "pjit")
SAME = ("convert_element_type", "copy", "copy_p")


class Stacked(NamedTuple):
    """An output of the program that comes layer by layer out of a scan.

    Attributes:
      scan: the number of the scan's equation.
      place: which of the scan's outputs it is.
      order: for each axis of the output, tasks first, where it is in what the scan has stacked up;
        0 is the axis of its steps.
      turned: the equations between the scan and the output, the last one first.
    """

    scan: int
    place: int
    order: tuple[int, ...]
    turned: tuple[int, ...]

    @property
    def axis(self) -> int:
        """That of the tasks, in what one step of the scan puts out."""
        return self.order[0] - 1


def inlined(closed: core.ClosedJaxpr) -> core.ClosedJaxpr:
    """The same program without calls of compiled functions.

    Args:
      closed: the program.

    Returns:
      It with the calls' own equations in their place.
    """

    def evaluate(jaxpr, constants, *values):
        known = dict(zip(jaxpr.constvars, constants, strict=True))
        known |= dict(zip(jaxpr.invars, values, strict=True))
        for eqn in jaxpr.eqns:
            if eqn.primitive.name in _CALLS:
                inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
                found = evaluate(
                    getattr(inner, "jaxpr", inner),
                    getattr(inner, "consts", ()),
                    *(read(known, v) for v in eqn.invars),
                )
            else:
                found = run(jaxpr, eqn, known)
            known |= dict(zip(eqn.outvars, found, strict=True))
        return [read(known, v) for v in jaxpr.outvars]

    shapes = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in closed.jaxpr.invars]
    return jax.make_jaxpr(functools.partial(evaluate, closed.jaxpr, closed.consts))(*shapes)


def stacked_outputs(jaxpr: core.Jaxpr, outputs: Sequence[Any]) -> dict[int, Stacked]:
    """Which outputs come out of a scan, turned and converted, and are needed nowhere else.

    Args:
      jaxpr: a program.
      outputs: some of its outputs.

    Returns:
      From the number of such an output among them to where it comes from.
    """
    made, used = made_and_used(jaxpr)

    def source(variable: Any) -> Stacked | None:
        order, turned = tuple(range(variable.aval.ndim)), []
        while variable in made and used[variable] == 1:
            number = made[variable]
            eqn = jaxpr.eqns[number]
            if eqn.primitive.name == "scan":
                place = eqn.outvars.index(variable)
                # The first axis of what a scan stacks up is that of its steps.
                if order[0] == 0 or place < eqn.params["num_carry"]:
                    return None
                return Stacked(number, place, order, tuple(turned))
            if eqn.primitive.name == "transpose":
                order = tuple(eqn.params["permutation"][axis] for axis in order)
            elif eqn.primitive.name not in SAME:
                return None
            turned.append(number)
            (variable,) = eqn.invars
        return None

    found = {number: source(v) for number, v in enumerate(outputs)}
    return {number: place for number, place in found.items() if place is not None}


def made_and_used(jaxpr: core.Jaxpr) -> tuple[dict[Any, int], collections.Counter[Any]]:
    """The number of the equation that each variable comes from, and how often it is used.

    Args:
      jaxpr: a program.

    Returns:
      Both by variable.
    """
    made = {v: number for number, eqn in enumerate(jaxpr.eqns) for v in eqn.outvars}
    used = collections.Counter(
        v for eqn in [*jaxpr.eqns, jaxpr.outvars] for v in variables(getattr(eqn, "invars", eqn))
    )
    return made, used


def needed(jaxpr: core.Jaxpr, outputs: Iterable[Any]) -> list[int]:
    """The numbers of the equations that some outputs depend on, in order.

    Args:
      jaxpr: the program.
      outputs: variables of it.

    Returns:
      The numbers.
    """
    wanted, found = set(variables(outputs)), []
    for number in reversed(range(len(jaxpr.eqns))):
        eqn = jaxpr.eqns[number]
        if wanted.intersection(eqn.outvars):
            wanted.update(variables(eqn.invars))
            found.append(number)
    return found[::-1]


def depending(jaxpr: core.Jaxpr, inputs: Iterable[Any]) -> list[bool]:
    """Which outputs depend on some of the inputs.

    Args:
      jaxpr: the program, without calls; a loop or a condition depends on all that it is given.
      inputs: variables of it.

    Returns:
      For each output.
    """
    live = set(inputs)
    for eqn in jaxpr.eqns:
        if live.intersection(variables(eqn.invars)):
            live.update(eqn.outvars)
    return [not isinstance(v, core.Literal) and v in live for v in jaxpr.outvars]


def read(known: Mapping[Any, Any], variable: Any) -> Any:
    """The value of a variable or a literal.

    Args:
      known: the values of variables.
      variable: one of them, or a literal.

    Returns:
      Its value.
    """
    return variable.val if isinstance(variable, core.Literal) else known[variable]


def run(jaxpr: core.Jaxpr, eqn: Any, known: Mapping[Any, Any]) -> Sequence[jax.Array]:
    """Runs one equation of a program.

    Args:
      jaxpr: the program.
      eqn: the equation.
      known: the values of the variables so far.

    Returns:
      Its outputs.
    """
    inputs = list(dict.fromkeys(variables(eqn.invars)))
    alone = jaxpr.replace(
        constvars=[], invars=inputs, outvars=eqn.outvars, eqns=[eqn], effects=eqn.effects
    )
    return core.jaxpr_as_fun(core.ClosedJaxpr(alone, []))(*(known[v] for v in inputs))


def variables(atoms: Iterable[Any]) -> list[Any]:
    """Those of the inputs or outputs of an equation that aren't literals.

    Args:
      atoms: the inputs or outputs.

    Returns:
      The variables, in their order.
    """
    return [v for v in atoms if not isinstance(v, core.Literal)]

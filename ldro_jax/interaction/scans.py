"""Which outputs of a traced program come layer by layer out of a scan.

In the example at :mod:`.layerwise` the gradients of the layers are ``bk``, and the program ends::

    _, y:f32[2,3,8,8] = scan[...] x b e f g
    bk:f32[3,2,8,8] = transpose[permutation=(1, 0, 2, 3)] y

From ``bk`` the way goes back: a transposition, and then the scan, whose second output ``y`` is
stacked up along its axis 0, that of the layers. Nothing else uses ``y`` or ``bk``. So that is a
:class:`Stacked` output: ``place`` 1 of the scan, ``order`` (1, 0, 2, 3), since its axis 0, the
tasks, is axis 1 of ``y``, and the transposition as what is ``turned``. Had the way met an addition,
or an array that is used twice, there would be none, and the gradients would be made as a whole.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from ldro_jax.runtime import equations

SAME = ("convert_element_type", "copy", "copy_p")


class Stacked(NamedTuple):
    """An output of the program that comes layer by layer out of a scan.

    Attributes:
      scan: the number of the scan's equation.
      length: its number of steps.
      place: which of the scan's outputs it is.
      order: for each axis of the output, tasks first, where it is in what the scan has stacked up;
        0 is the axis of its steps.
      turned: the equations between the scan and the output, the last one first.
    """

    scan: int
    length: int
    place: int
    order: tuple[int, ...]
    turned: tuple[int, ...]

    @property
    def axis(self) -> int:
        """That of the tasks, in what one step of the scan puts out."""
        return self.order[0] - 1


def stacked_outputs(jaxpr: equations.Program, outputs: Sequence[Any]) -> dict[int, Stacked]:
    """Which outputs come out of a scan, turned and converted, and are needed nowhere else.

    Args:
      jaxpr: a program.
      outputs: some of its outputs; those that are found are named by their number among these.
    """
    made, used = equations.made_and_used(jaxpr)

    def source(variable: Any) -> Stacked | None:
        order, turned = tuple(range(variable.aval.ndim)), []
        while variable in made and used[variable] == 1:
            number = made[variable]
            eqn = jaxpr.eqns[number]
            if eqn.primitive.name == "scan":
                place, form = eqn.outvars.index(variable), equations.scan(eqn)
                # The first axis of what a scan stacks up is that of its steps.
                if order[0] == 0 or place < form.carried:
                    return None
                length = form.options["length"]
                return Stacked(number, length, place, order, tuple(turned))
            if eqn.primitive.name == "transpose":
                order = tuple(eqn.params["permutation"][axis] for axis in order)
            elif eqn.primitive.name not in SAME:
                return None
            turned.append(number)
            (variable,) = eqn.invars
        return None

    places = {number: source(v) for number, v in enumerate(outputs)}
    return {number: place for number, place in places.items() if place is not None}

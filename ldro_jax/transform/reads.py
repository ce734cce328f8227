"""What a weighting reads, found by tracing it, against what it says that it uses."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldro_jax.runtime import equations as equations_lib
from ldro_jax.weighting import base, products

_UNTRACEABLE = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)


def read(weighting: base.Weighting, num_tasks: int, dtype: Any = jnp.float32) -> set[str]:
    """The names of the statistics that a weighting's weights or expected losses depend on.

    Raises:
      NotImplementedError: if the traced program has an unknown form.
    """

    def weigh(statistics, state):
        if weighting.uses_products:
            asking = products.nothing_to_ask(num_tasks, dtype)
            statistics = statistics._replace(products=asking)
        weights, state = weighting.update(statistics, state)
        if weighting.expected_losses is None:
            return weights, state
        return weights, state, weighting.expected_losses(statistics, weights)

    statistics = base.nothing_known(num_tasks, dtype)._replace(known=np.ones(num_tasks, bool))
    state = jax.eval_shape(lambda: weighting.init(num_tasks, dtype))
    traced = jax.make_jaxpr(weigh)(statistics, state)
    with equations_lib.reading():
        jaxpr = equations_lib.inlined(traced).jaxpr
        equations = [jaxpr.eqns[each].invars for each in equations_lib.needed(jaxpr, jaxpr.outvars)]
        needed = {
            v for atoms in (*equations, jaxpr.outvars) for v in equations_lib.variables(atoms)
        }
        inputs = zip(statistics._fields, jaxpr.invars, strict=False)
        return {name for name, v in inputs if v in needed}


def check(weighting: base.Weighting, num_tasks: int, dtype: Any) -> None:
    """Raises ``ValueError`` for a weighting that reads the interaction matrix and doesn't say so.

    It would be shown zeros in its place.
    """
    # Noise and excess are None where nobody asked for them, which no method mistakes for a number.
    if weighting.uses_interaction:
        return
    try:
        names = read(weighting, num_tasks, dtype)
    # Computed in NumPy, for steps outside of a jit; or traced by a JAX that isn't known.
    except (*_UNTRACEABLE, equations_lib.UnknownFormError):
        return
    if "interaction" in names:
        raise ValueError(
            "The weighting reads statistics.interaction, but doesn't say so, and the interaction "
            "would not be measured for it: it must have uses_interaction=True. Pass that to "
            "weighting.stateless, weighting.exponentiated_gradient or weighting.Weighting."
        )


def check_losses(weighting: base.Weighting, num_tasks: int, dtype: Any) -> None:
    """Raises ``ValueError`` for a weighting by signal that doesn't look at the losses it is shown.

    The signal would have no effect.
    """
    try:
        names = read(weighting, num_tasks, dtype)
    except (*_UNTRACEABLE, equations_lib.UnknownFormError):
        return
    if not names & {"losses", "excess"}:
        raise ValueError(
            "signal_power scales the losses that a weighting looks at, but this one doesn't look "
            "at them. Leave it out, or use weighting.signal, whose weights are the signal shares."
        )

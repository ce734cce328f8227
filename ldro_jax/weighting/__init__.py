"""Weightings: pure functions from task statistics to task weights, one paper a file."""

from ldro_jax.weighting.base import (
    Statistics,
    Weighting,
    exponentiated_gradient,
    stateless,
    with_floor,
)
from ldro_jax.weighting.baselined_dro import baselined_dro
from ldro_jax.weighting.group_dro import group_dro
from ldro_jax.weighting.interpolated import interpolated
from ldro_jax.weighting.lookahead import exact as lookahead_exact
from ldro_jax.weighting.lookahead import online as lookahead_online
from ldro_jax.weighting.pcgrad import pcgrad
from ldro_jax.weighting.registry import (
    FROM_DATA,
    METHODS,
    create,
    described,
    factory,
    from_data,
    lacking,
    outline,
    rates,
)
from ldro_jax.weighting.static import average, static_mixing

__all__ = [
    "FROM_DATA",
    "METHODS",
    "Statistics",
    "Weighting",
    "average",
    "baselined_dro",
    "create",
    "described",
    "exponentiated_gradient",
    "factory",
    "from_data",
    "group_dro",
    "interpolated",
    "lacking",
    "lookahead_exact",
    "lookahead_online",
    "outline",
    "pcgrad",
    "rates",
    "stateless",
    "static_mixing",
    "with_floor",
]

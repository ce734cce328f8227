"""Weightings: pure functions from task statistics to task weights, one paper a file."""

from ldro_jax.weighting.afl import afl
from ldro_jax.weighting.aioli import aioli
from ldro_jax.weighting.aligned_mtl import aligned_mtl
from ldro_jax.weighting.base import (
    Statistics,
    Weighting,
    exponentiated_gradient,
    first_weights,
    nothing_known,
    stateless,
)
from ldro_jax.weighting.baselined_dro import baselined_dro
from ldro_jax.weighting.cagrad import cagrad
from ldro_jax.weighting.config import config
from ldro_jax.weighting.cvar import cvar
from ldro_jax.weighting.db_mtl import db_mtl
from ldro_jax.weighting.doge import doge
from ldro_jax.weighting.doremi import doremi
from ldro_jax.weighting.dualproj import dualproj
from ldro_jax.weighting.dwa import dwa
from ldro_jax.weighting.fairgrad import fairgrad
from ldro_jax.weighting.famo import famo
from ldro_jax.weighting.geometric_mean import geometric_mean, scale_invariant
from ldro_jax.weighting.go4align import go4align
from ldro_jax.weighting.gradnorm import gradnorm
from ldro_jax.weighting.gradvac import gradvac
from ldro_jax.weighting.grape import grape
from ldro_jax.weighting.group_dro import group_dro
from ldro_jax.weighting.imtl import imtl_g, imtl_l
from ldro_jax.weighting.interpolated import interpolated
from ldro_jax.weighting.krum import krum
from ldro_jax.weighting.lookahead import exact as lookahead_exact
from ldro_jax.weighting.lookahead import online as lookahead_online
from ldro_jax.weighting.mgda import mgda
from ldro_jax.weighting.modo import modo
from ldro_jax.weighting.nash_mtl import nash_mtl
from ldro_jax.weighting.pcgrad import pcgrad
from ldro_jax.weighting.pike import pike
from ldro_jax.weighting.q_ffl import q_ffl
from ldro_jax.weighting.random_loss import random_loss
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
from ldro_jax.weighting.regularized_dro import regularized_dro
from ldro_jax.weighting.scalarization import scalarization
from ldro_jax.weighting.sdmgrad import sdmgrad
from ldro_jax.weighting.skill_it import skill_it
from ldro_jax.weighting.smooth import smooth_lookahead
from ldro_jax.weighting.static import average, erm, static_mixing, unimax
from ldro_jax.weighting.stch import stch
from ldro_jax.weighting.term import term
from ldro_jax.weighting.uncertainty import uncertainty
from ldro_jax.weighting.upgrad import upgrad
from ldro_jax.weighting.wrappers import (
    averaged,
    clipped,
    normalized_gradients,
    rescaled,
    smoothed,
    with_floor,
)

__all__ = [
    "FROM_DATA",
    "METHODS",
    "Statistics",
    "Weighting",
    "afl",
    "aioli",
    "aligned_mtl",
    "average",
    "averaged",
    "baselined_dro",
    "cagrad",
    "clipped",
    "config",
    "create",
    "cvar",
    "db_mtl",
    "described",
    "doge",
    "doremi",
    "dualproj",
    "dwa",
    "erm",
    "exponentiated_gradient",
    "factory",
    "fairgrad",
    "famo",
    "first_weights",
    "from_data",
    "geometric_mean",
    "go4align",
    "gradnorm",
    "gradvac",
    "grape",
    "group_dro",
    "imtl_g",
    "imtl_l",
    "interpolated",
    "krum",
    "lacking",
    "lookahead_exact",
    "lookahead_online",
    "mgda",
    "modo",
    "nash_mtl",
    "normalized_gradients",
    "nothing_known",
    "outline",
    "pcgrad",
    "pike",
    "q_ffl",
    "random_loss",
    "rates",
    "regularized_dro",
    "rescaled",
    "scalarization",
    "scale_invariant",
    "sdmgrad",
    "skill_it",
    "smooth_lookahead",
    "smoothed",
    "stateless",
    "static_mixing",
    "stch",
    "term",
    "uncertainty",
    "unimax",
    "upgrad",
    "with_floor",
]

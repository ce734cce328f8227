"""Interaction strategies: ways to measure ``A_ij = ⟨∇ℓ_i, ∇ℓ_j⟩``, one a file."""

from ldro_jax.interaction.base import Interaction, Measured, Pulled, gram
from ldro_jax.interaction.choice import STRATEGIES, auto, choose, get, split
from ldro_jax.interaction.columns import columns
from ldro_jax.interaction.features import features
from ldro_jax.interaction.geometry import preconditioned
from ldro_jax.interaction.jacrev import jacobian_gram, jacrev
from ldro_jax.interaction.layerwise import layerwise
from ldro_jax.interaction.lookahead import lookahead
from ldro_jax.interaction.offload import offload
from ldro_jax.interaction.products import Products, products
from ldro_jax.interaction.scan import scan
from ldro_jax.interaction.tiled import tiled
from ldro_jax.interaction.vmap import vmap

__all__ = [
    "STRATEGIES",
    "Interaction",
    "Measured",
    "Products",
    "Pulled",
    "auto",
    "choose",
    "columns",
    "features",
    "get",
    "gram",
    "jacobian_gram",
    "jacrev",
    "layerwise",
    "lookahead",
    "offload",
    "preconditioned",
    "products",
    "scan",
    "split",
    "tiled",
    "vmap",
]

"""Flax Linen models."""

from ldro_jax import _extras

_extras.need("flax")

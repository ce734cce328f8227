"""Flax Linen models."""

from ldro_jax.runtime import extras

extras.need("flax")

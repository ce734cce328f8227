"""Experiments: problems trained with several methods and seeds, and reported."""

from ldro_jax.runtime import extras

extras.need(*extras.TRAINER)

"""Experiments: problems trained with several methods and seeds, and reported."""

from ldro_jax import _extras

_extras.need(*_extras.TRAINER)

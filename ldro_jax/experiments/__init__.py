"""Experiments: problems trained with several methods and seeds, and reported."""

# ruff: noqa: E402
from ldro_jax.runtime import extras

# Before what needs it is imported.
extras.need(*extras.TRAINER)

from ldro_jax.experiments.arguments import Directories, Report

__all__ = ["Directories", "Report"]

"""Multitask learning in JAX that balances average and worst-task accuracy."""

from ldro_jax import games, interaction, ldro, transform, weighting

__version__ = "0.1.0"

__all__ = ["games", "interaction", "ldro", "transform", "weighting"]

"""Zero-sum matrix games, solved inside a program."""

from ldro_jax.games.nash import Equilibrium, max_entropy_nash

__all__ = ["Equilibrium", "max_entropy_nash"]

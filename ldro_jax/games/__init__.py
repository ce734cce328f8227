"""Zero-sum matrix games, solved inside a program."""

from ldro_jax.games.nash import Equilibrium, max_entropy_nash
from ldro_jax.games.smooth import SmoothEquilibrium, smooth_equilibrium

__all__ = ["Equilibrium", "SmoothEquilibrium", "max_entropy_nash", "smooth_equilibrium"]

"""Statistics → weights → gradient, as one Optax gradient transformation.

:func:`weighted` joins a :class:`~ldro_jax.weighting.Weighting` and an interaction strategy behind
Optax's contract; :func:`find_state` finds its state in that of a whole optimizer.
"""

from ldro_jax.transform.state import WeightedState, find_state
from ldro_jax.transform.weighted import Weighted, weighted

__all__ = ["Weighted", "WeightedState", "find_state", "weighted"]

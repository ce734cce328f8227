"""Statistics → weights → gradient, as one Optax gradient transformation; see :func:`weighted`."""

from ldro_jax.transform.state import WeightedState, find_state
from ldro_jax.transform.weighted import Weighted, weighted

__all__ = ["Weighted", "WeightedState", "find_state", "weighted"]

"""Training: one step, two engines, the loop."""

from ldro_jax.training.method import Method, grid
from ldro_jax.training.schedule import Schedule, epochs
from ldro_jax.training.sharding import Layout

__all__ = ["Layout", "Method", "Schedule", "epochs", "grid"]

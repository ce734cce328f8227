"""Training: one step, two engines, the loop."""

from ldro_jax import _extras

_extras.need("flax")

from ldro_jax.sharding import Layout
from ldro_jax.training.method import Method, grid
from ldro_jax.training.schedule import Schedule, epochs

__all__ = ["Layout", "Method", "Schedule", "epochs", "grid"]

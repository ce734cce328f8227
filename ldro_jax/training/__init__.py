"""Training: one step, two engines, the loop."""

# ruff: noqa: E402
from ldro_jax.runtime import extras

# Before what needs it is imported.
extras.need("flax")

from ldro_jax.sharding import Layout
from ldro_jax.training.batches import Batches
from ldro_jax.training.method import Method, grid
from ldro_jax.training.schedule import Schedule, epochs

__all__ = ["Batches", "Layout", "Method", "Schedule", "epochs", "grid"]

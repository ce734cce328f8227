"""Weightings inside trainers of other libraries, one module a trainer.

Each is imported by its name, since it imports its library: :mod:`ldro_jax.integrations.nnx` for a
loop of Flax NNX, :mod:`ldro_jax.integrations.tunix` for Tunix. ``docs/trainers.md`` shows them.
"""

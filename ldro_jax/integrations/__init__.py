"""Weightings inside trainers of other libraries, one module a trainer.

Each is imported by its name, since it imports its library: ``nnx`` for a loop of Flax NNX,
``tunix``, ``maxtext``, ``kauldron`` and ``keras``. ``docs/trainers.md`` shows them.
"""

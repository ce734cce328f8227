"""Multitask learning in JAX that balances average and worst-task accuracy."""

import importlib
import typing

if typing.TYPE_CHECKING:
    from ldro_jax import games, grouping, interaction, ldro, problems, transform, weighting
    from ldro_jax.experiments.compare import compare
    from ldro_jax.records.kept import load
    from ldro_jax.runtime.preemption import PreemptedError

__version__ = "0.2.0"

__all__ = [
    "PreemptedError",
    "compare",
    "games",
    "grouping",
    "interaction",
    "ldro",
    "load",
    "problems",
    "transform",
    "weighting",
]


def __getattr__(name: str) -> typing.Any:
    # Importing JAX takes a second, in which the command line must already heed Ctrl-C.
    if name == "compare":
        return importlib.import_module("ldro_jax.experiments.compare").compare
    if name == "PreemptedError":
        return importlib.import_module("ldro_jax.runtime.preemption").PreemptedError
    if name == "load":
        return importlib.import_module("ldro_jax.records.kept").load
    if name in __all__:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""What a method is, said beside its function: tables, tests and benchmarks are made from it."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np

from ldro_jax.weighting import base

FIXED = "fixed weights"
WORST = "the worst loss"
LOOKAHEAD = "the worst loss after the step"
GRADIENTS = "no conflict between gradients"
SCALES = "losses of different size"
MIXTURES = "data mixtures"
# What methods are for, the simplest first.
FAMILIES = (FIXED, WORST, LOOKAHEAD, GRADIENTS, SCALES, MIXTURES)

# Hyperparameters, or a function that makes them from a number for each task.
Settings = Mapping[str, Any] | Callable[[np.ndarray], Mapping[str, Any]]
_Factory = TypeVar("_Factory", bound=Callable[..., base.Weighting])

# The function of every method, by its name.
METHODS: dict[str, Callable[..., base.Weighting]] = {}


@dataclasses.dataclass(frozen=True)
class About:
    """What a method is, besides what its weighting says itself.

    Attributes:
      family: what it is for, one of :data:`FAMILIES`.
      weights: its formula, in a few signs.
      paper: first author and year; empty if there is none.
      state: what it keeps from one step to the next.
      sums_to: what its weights sum to: "1", "N", "1 or more" (then each is at least 1 / N), "about
        1", or nothing if nothing can be said.
      usual: hyperparameters to try it with, in tests and benchmarks.
      variants: others that compute something else, by a word for each.
      signed: whether weights can be negative.
      random: whether it draws numbers for the tasks in their order, so that another order is
        another draw.
      solver: "convex" if it iterates or inverts a matrix, so that its weights are right to more
        than rounding; "game" if it solves a matrix game; empty if neither.
      scale_free: whether the shares of the tasks are the same when all losses are in another unit,
        without ``relative=True``.

    Raises:
      ValueError: if the family is unknown.
    """

    family: str
    weights: str
    paper: str = ""
    state: str = ""
    sums_to: str = "1"
    usual: Settings = dataclasses.field(default_factory=dict)
    variants: Mapping[str, Settings] = dataclasses.field(default_factory=dict)
    signed: bool = False
    random: bool = False
    solver: str = ""
    scale_free: bool = False

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise ValueError(f"family must be one of {FAMILIES}, but it is {self.family!r}.")


# What every method says of itself, by its name.
ABOUT: dict[str, About] = {}


def method(family: str, weights: str, **more: Any) -> Callable[[_Factory], _Factory]:
    """Lists a function among :data:`METHODS`, by its own name; the decorator leaves it as it is.

    Args:
      family: see :class:`About`.
      weights: see :class:`About`.
      **more: its other fields.
    """
    described = About(family, weights, **more)

    def listed(factory):
        METHODS[factory.__name__], ABOUT[factory.__name__] = factory, described
        return factory

    return listed


def settings(given: Settings, numbers: Any) -> dict[str, Any]:
    """Arguments of a method's function, for some tasks.

    Args:
      given: its :attr:`About.usual` or one of its :attr:`About.variants`.
      numbers: a positive number for each task, ``[N]``, for what a method is told of each.
    """
    return dict(given(np.asarray(numbers, float)) if callable(given) else given)


def usual(name: str, num_tasks: int) -> dict[str, Any]:
    """Hyperparameters to try the method of a name with, for N tasks."""
    return settings(ABOUT[name].usual, np.arange(1, num_tasks + 1))

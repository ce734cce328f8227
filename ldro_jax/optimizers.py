"""The optimizer of language models, and Optax's own with their arguments checked."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import optax

from ldro_jax.runtime import checks

# Where the numbers among Optax's arguments must lie.
_INTERVALS = {
    "alpha": "[0, 1]",
    "b1": "[0, 1)",
    "b2": "[0, 1)",
    "eps": "[0, inf)",
    "eps_root": "[0, inf)",
    "exponent": "(0, inf)",
    "init_value": "[0, inf)",
    "learning_rate": "[0, inf)",
    "momentum": "[0, 1)",
    "weight_decay": "[0, inf)",
}


def adam(
    learning_rate: float,
    *,
    warmup_steps: int,
    train_steps: int,
    final_learning_rate: float = 0.0,
    b1: float = 0.9,
    b2: float = 0.99,
    weight_decay: float = 0.0,
    clip_norm: float | None = 1.0,
) -> optax.GradientTransformation:
    """Adam with a linear warm-up, a cosine decay and gradients of limited length.

    Args:
      learning_rate: after the warm-up.
      warmup_steps: length of the warm-up, from zero.
      train_steps: length of the run, warm-up included.
      final_learning_rate: at its end.
      b1: decay of the mean of the gradients.
      b2: decay of the mean of their squares.
      weight_decay: decoupled weight decay.
      clip_norm: largest global norm of a gradient; ``None`` for any.

    Raises:
      ValueError: if a number is out of range, or the warm-up not shorter than the run.
    """
    checks.number("learning_rate", learning_rate, "[0, inf)")
    checks.number("final_learning_rate", final_learning_rate, "[0, inf)")
    if clip_norm is not None:
        checks.number("clip_norm", clip_norm, "(0, inf)")
    checks.number("b1", b1, "[0, 1)")
    checks.number("b2", b2, "[0, 1)")
    checks.number("weight_decay", weight_decay, "[0, inf)")
    checks.integer("train_steps", train_steps)
    checks.integer("warmup_steps", warmup_steps, low=0)
    if warmup_steps >= train_steps:
        raise ValueError(
            f"warmup_steps must be less than train_steps, but they are {warmup_steps} and "
            f"{train_steps}."
        )
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, learning_rate, warmup_steps, train_steps, final_learning_rate
    )
    clip = optax.identity() if clip_norm is None else optax.clip_by_global_norm(clip_norm)
    return optax.chain(clip, optax.adamw(schedule, b1, b2, weight_decay=weight_decay))


def sgd_l2(
    learning_rate: float, *, momentum: float = 0.9, weight_decay: float = 0.0
) -> optax.GradientTransformation:
    """Stochastic gradient descent with an ℓ2 penalty, PyTorch's ``SGD``.

    Args:
      learning_rate: of each step.
      momentum: decay of the sum of the gradients.
      weight_decay: times the parameters is added to the gradient, before the momentum.

    Raises:
      ValueError: if a number is out of range.
    """
    for name, value in (("learning_rate", learning_rate), ("weight_decay", weight_decay)):
        checks.number(name, value, "[0, inf)")
    checks.number("momentum", momentum, "[0, 1)")
    decay = optax.add_decayed_weights(weight_decay)
    return optax.chain(decay, optax.sgd(learning_rate, momentum))


def checked(factory: Callable[..., Any]) -> Callable[..., Any]:
    """One of Optax's optimizers or schedules, whose arguments are checked first.

    It has the same name and arguments as the factory, such as ``optax.sgd``. It raises
    ``ValueError`` for a number out of range, where Optax would raise while training or not at all.
    Rates may be schedules.
    """
    signature = inspect.signature(factory)

    @functools.wraps(factory)
    def make(*args, **kwargs):
        for name, value in signature.bind_partial(*args, **kwargs).arguments.items():
            may_be_none = signature.parameters[name].default is None
            if name in _INTERVALS and not callable(value) and not (may_be_none and value is None):
                checks.number(name, value, _INTERVALS[name])
            if name == "decay_steps":
                checks.integer(name, value)
            if name == "nesterov":
                checks.flag(name, value)
        return factory(*args, **kwargs)

    # What reads arguments without following wrappers, as gin does, sees the original's.
    make.__dict__["__signature__"] = signature
    return make

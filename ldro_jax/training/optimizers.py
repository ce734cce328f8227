"""The optimizer of language models."""

import optax


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

    Returns:
      An ``optax.GradientTransformation``, to be chained after a weighting.

    Raises:
      ValueError: if the warm-up is not shorter than the run.
    """
    if not 0 <= warmup_steps < train_steps:
        raise ValueError(
            f"warmup_steps must be less than train_steps, but they are {warmup_steps} and "
            f"{train_steps}."
        )
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, learning_rate, warmup_steps, train_steps, final_learning_rate
    )
    clip = optax.identity() if clip_norm is None else optax.clip_by_global_norm(clip_norm)
    return optax.chain(clip, optax.adamw(schedule, b1, b2, weight_decay=weight_decay))

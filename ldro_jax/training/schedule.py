"""How long to train, and how often to look."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How long to train and how often to look.

    Attributes:
      train_steps: number of steps of a run.
      eval_interval: steps between two evaluations; what happens between them is one program.
      checkpoint_interval: steps between two checkpoints, made at the next evaluation.
      max_nonfinite_steps: a run stops after so many steps in a row whose losses aren't all finite,
        or after ``train_steps`` of them if that is fewer.
    """

    train_steps: int
    eval_interval: int
    checkpoint_interval: int
    max_nonfinite_steps: int = 100

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{field.name} must be a positive integer, but it is {value!r}.")


def epochs(num_epochs: int, steps_per_epoch: int, *, checkpoint_epochs: int = 1) -> Schedule:
    """A schedule in epochs, with an evaluation after each.

    Args:
      num_epochs: length of a run.
      steps_per_epoch: training examples divided by the batch size.
      checkpoint_epochs: epochs between two checkpoints.

    Returns:
      The :class:`Schedule`.
    """
    return Schedule(
        train_steps=num_epochs * steps_per_epoch,
        eval_interval=steps_per_epoch,
        checkpoint_interval=checkpoint_epochs * steps_per_epoch,
    )

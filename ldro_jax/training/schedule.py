"""How long to train, and how often to look."""

import dataclasses
from typing import Any

from ldro_jax.runtime import checks

TESTS = ("always", "best", "last")
_BY_DEFAULT: Any = None


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How long to train and how often to look.

    Attributes:
      train_steps: number of steps of a run.
      eval_interval: steps between two evaluations; what happens between them is one program. By
        default a twentieth of all steps.
      checkpoint_interval: steps between two checkpoints, made at the next evaluation; by default
        five evaluations.
      test: when the split "test" is measured: "always", at every evaluation; "last", once at the
        end; or "best", once at the end with the checkpoint that was best on validation.
      max_nonfinite_steps: a run stops after so many steps in a row whose losses, or the weights
        that the method gives them, aren't all finite. At its end two of them in a row are enough to
        count as stopped, or one if it has no more.
      patience: a run ends when its score on validation, :meth:`Problem.score`, hasn't been better
        than before for so many evaluations. What is tested is its state at that step, or with
        ``test="best"`` the best one. Runs that are trained together are computed until all of them
        have ended. By default no run ends early.
      eval_at_start: whether the parameters that a run begins with are evaluated as well. They are
        shown at step 0 and are not among the checkpoints that one is chosen of.
    """

    train_steps: int
    eval_interval: int = _BY_DEFAULT
    checkpoint_interval: int = _BY_DEFAULT
    test: str = "always"
    max_nonfinite_steps: int = 100
    patience: int | None = None
    eval_at_start: bool = False

    def __post_init__(self) -> None:
        checks.one_of("test", self.test, TESTS)
        checks.flag("eval_at_start", self.eval_at_start)
        defaults = {
            "eval_interval": lambda: -(-self.train_steps // 20),
            "checkpoint_interval": lambda: 5 * self.eval_interval,
        }
        # In this order: each from those before it.
        for field in dataclasses.fields(self):
            given = getattr(self, field.name)
            if given is None and field.name in defaults:
                given = defaults[field.name]()
            if field.name in ("test", "eval_at_start") or (field.name, given) == ("patience", None):
                continue
            object.__setattr__(self, field.name, checks.integer(field.name, given))

    @property
    def scores(self) -> bool:
        """Whether anything depends on scores on validation."""
        return self.test == "best" or self.patience is not None


def epochs(num_epochs: int, steps_per_epoch: int, *, checkpoint_epochs: int = 1) -> Schedule:
    """A schedule in epochs, with an evaluation after each.

    Args:
      num_epochs: length of a run.
      steps_per_epoch: training examples divided by the batch size.
      checkpoint_epochs: epochs between two checkpoints.

    Returns:
      The :class:`Schedule`.

    Raises:
      ValueError: if one of these isn't a positive integer.
    """
    checks.integer("num_epochs", num_epochs)
    checks.integer("steps_per_epoch", steps_per_epoch)
    checks.integer("checkpoint_epochs", checkpoint_epochs)
    return Schedule(
        train_steps=num_epochs * steps_per_epoch,
        eval_interval=steps_per_epoch,
        checkpoint_interval=checkpoint_epochs * steps_per_epoch,
    )

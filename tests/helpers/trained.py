"""Watches which runs an experiment trains, and interrupts them."""

from helpers import tiny

from ldro_jax.training import loop


class Trained:
    """Notes the runs that are trained, and stops one of them by Ctrl-C at some step.

    Args:
      patch: pytest's monkeypatch.

    Attributes:
      trials: one for each run, in order.
      steps: what each told its progress bar.
      interrupt: the number of the run to stop, from 1, and the step.
    """

    def __init__(self, patch):
        self.trials, self.steps, self.interrupt = [], [], None
        self._train = loop.train
        patch.setattr(loop, "train", self)

    def __call__(self, program, trials, schedule, *, progress, **options):
        del progress
        self.trials += trials
        run, at = self.interrupt or (None, None)
        bar = tiny.Progress(at=at if run == len(self.trials) else None, action=_ctrl_c)
        self.steps.append(bar.steps)
        return self._train(program, trials, schedule, progress=bar, **options)

    @property
    def names(self):
        return [(trial.method.name, trial.seed) for trial in self.trials]


def _ctrl_c():
    raise KeyboardInterrupt

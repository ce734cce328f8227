"""What is compared in an experiment: a weighting with its settings, under a name."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import optax

from ldro_jax import transform, weighting


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to weigh tasks, as an experiment runs and reports it.

    Attributes:
      name: how tables and pictures call it.
      weighting: a key of :data:`ldro_jax.weighting.METHODS`.
      hyperparameters: its arguments.
      interaction: how to measure the interaction, as in :func:`ldro_jax.transform.weighted`.
      interaction_interval: every how many steps to measure it.
      lagged: with an interval of 1, let the weights use the matrix of the step before.
      floor: share of the weight that is spread evenly.
      sampling: how language models draw the rows of a batch: ``"uniform"``, the same number of each
        task, or ``"weights"``, at random with the task weights as probabilities; the loss of a row
        then counts ``w / q``, with the weights w now and those q that it was drawn with.
    """

    name: str
    weighting: str
    hyperparameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    interaction: str = "auto"
    interaction_interval: int = 100
    lagged: bool = False
    floor: float = 0.0
    sampling: str = "uniform"

    def __post_init__(self):
        if self.sampling not in ("uniform", "weights"):
            raise ValueError(
                f"sampling must be 'uniform' or 'weights', but it is {self.sampling!r}."
            )

    def transform(
        self, num_tasks: int, rates: Mapping[str, Any] | None = None
    ) -> optax.GradientTransformationExtraArgs:
        """The Optax transformation of this method.

        Args:
          num_tasks: N.
          rates: values for the hyperparameters of :meth:`rates`, instead of its own; they may be
            traced, so that one program serves many settings.

        Returns:
          The transformation, to be chained before an optimizer.

        Raises:
          ValueError: if the method or one of its settings is unknown or out of range.
        """
        return transform.weighted(
            weighting.create(self.weighting, {**self.hyperparameters, **(rates or {})}),
            num_tasks,
            interaction=self.interaction,
            interaction_interval=self.interaction_interval,
            lagged=self.lagged,
            floor=self.floor,
        )

    def rates(self) -> dict[str, float]:
        """The hyperparameters that one program can take many values of, where they are numbers."""
        names = weighting.rates(self.weighting)
        numbers = {k: v for k, v in self.hyperparameters.items() if not isinstance(v, bool)}
        return {
            k: float(v) for k, v in numbers.items() if k in names and isinstance(v, (int, float))
        }

    def program(self) -> tuple[Any, ...]:
        """What methods have in common that the same compiled program can train.

        Returns:
          A hashable key: everything but the name and the values of :meth:`rates`.
        """
        static = {k: v for k, v in self.hyperparameters.items() if k not in self.rates()}
        others = (
            self.interaction,
            self.interaction_interval,
            self.lagged,
            self.floor,
            self.sampling,
        )
        return (self.weighting, *sorted(self.rates()), repr(sorted(static.items())), *others)

    @property
    def uses_interaction(self) -> bool:
        """Whether the weights depend on the interaction matrix."""
        return weighting.uses_interaction(self.weighting)

    @property
    def measures_every_step(self) -> bool:
        """Whether the interaction matrix is measured in every step."""
        return self.uses_interaction and self.interaction_interval == 1

    def settings(self) -> dict[str, Any]:
        """All that a record needs to tell this method from others: its non-default settings."""
        settings = dict(self.hyperparameters)
        if self.uses_interaction:
            settings["interaction_interval"] = self.interaction_interval
        for name, default in [("lagged", False), ("floor", 0.0), ("sampling", "uniform")]:
            if getattr(self, name) != default:
                settings[name] = getattr(self, name)
        return settings


def grid(method: Method, values: Mapping[str, Sequence[Any]]) -> list[Method]:
    """All combinations of some settings of a method, for a sweep.

    Args:
      method: the method, whose other settings all have.
      values: from the name of a hyperparameter, or of a field of :class:`Method`, to its values.

    Returns:
      The methods, of the same name, the last setting varying fastest.

    Raises:
      ValueError: if a setting has no values, or one that isn't a sequence.
    """
    for name, options in values.items():
        if isinstance(options, str) or not isinstance(options, Sequence) or not options:
            raise ValueError(
                f"A grid needs a sequence of values for each setting, but {name} has {options!r}."
            )
    fields = {field.name for field in dataclasses.fields(Method)}
    found = []
    for combination in itertools.product(*values.values()):
        chosen = dict(zip(values, combination, strict=True))
        own = {name: chosen.pop(name) for name in fields & chosen.keys()}
        hyperparameters = {**method.hyperparameters, **chosen}
        found.append(dataclasses.replace(method, **{"hyperparameters": hyperparameters, **own}))
    return found

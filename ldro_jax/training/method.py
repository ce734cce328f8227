"""What is compared in an experiment: a weighting with its settings, under a name."""

import dataclasses
from collections.abc import Mapping
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
    """

    name: str
    weighting: str
    hyperparameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    interaction: str = "auto"
    interaction_interval: int = 100
    lagged: bool = False
    floor: float = 0.0

    def transform(self, num_tasks: int) -> optax.GradientTransformationExtraArgs:
        """The Optax transformation of this method.

        Args:
          num_tasks: N.

        Returns:
          The transformation, to be chained before an optimizer.

        Raises:
          ValueError: if the method or one of its settings is unknown or out of range.
        """
        return transform.weighted(
            weighting.create(self.weighting, self.hyperparameters),
            num_tasks,
            interaction=self.interaction,
            interaction_interval=self.interaction_interval,
            lagged=self.lagged,
            floor=self.floor,
        )

    def settings(self) -> dict[str, Any]:
        """All that a record needs to tell this method from others: its non-default settings."""
        settings = dict(self.hyperparameters)
        if weighting.create(self.weighting, self.hyperparameters).uses_interaction:
            settings["interaction_interval"] = self.interaction_interval
        for name, default in [("lagged", False), ("floor", 0.0)]:
            if getattr(self, name) != default:
                settings[name] = getattr(self, name)
        return settings

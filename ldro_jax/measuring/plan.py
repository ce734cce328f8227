"""Which way a step goes, decided in one place.

A step needs three things: the losses of the tasks, the gradient for weights that are chosen from
these losses, and in every k-th step the interaction matrix. With two tasks, whose weights w depend
on the losses ℓ and the matrix A, there are three ways to get them:

* *apart*: one forward pass gives ℓ, and its backward pass ``w_1 ∇ℓ_1 + w_2 ∇ℓ_2``. Where A is due,
  a forward and a backward pass of its own measure it. That is the way where k is more than 1, where
  a batch is taken in parts, and where A is measured on other rows.
* *from one pass*: the gradients ∇ℓ_1 and ∇ℓ_2 are held. Their products are A, which gives w, and
  then their weighted sum is the gradient. There is no second pass, but N gradients take memory.
* *from one pass, lagged*: w comes from ℓ and the matrix of the step before, so it is known before
  the backward pass. Each layer's ∇ℓ_1 and ∇ℓ_2 are multiplied, added up with the weights and freed
  as they come.
"""

import dataclasses
import enum
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import NamedSharding

from ldro_jax.interaction import base as interaction_base
from ldro_jax.measuring.batch import Batch, Grouped


class Way(enum.Enum):
    """How a step measures; see the module."""

    APART = "apart"
    ONE_PASS = "from one pass"
    LAGGED = "from one pass, lagged"


@dataclasses.dataclass(frozen=True)
class Plan:
    """How the steps of a training measure losses, gradient and interaction.

    Attributes:
      num_tasks: N.
      strategy: how to measure the interaction.
      interval: k, it is measured in every k-th step; ``None`` if the weighting doesn't use it.
      lagged: whether the weights use the matrix of the step before.
      microbatches: in how many parts to take a batch. The weights are chosen from the losses of all
        of them, at the price of a second forward pass.
      rows: measure the interaction on so many rows of each task; by default on all.
      multiple: the number of rows of a task that are measured together is filled up to a multiple
        of this, so that they can be split over devices.
      pads: whether rows may be filled up in the pass that trains as well. Not where auxiliary
        outputs, such as metrics, would count them: then only a batch that has as many rows of each
        task, in turns, is measured in one pass.
      over_data: how rows are spread over the devices, where that isn't left to the compiler.
      whole: whether the losses of all tasks come from one pass over the whole batch, and can't be
        had task by task: a row has labels of several tasks, or what the model gives for a row
        depends on the others or on random numbers. The interaction is then measured by pulling the
        loss of each task back through that pass, N backward passes. Of the strategy only its
        ``parts`` count.
      owned: whether each row is of one task.
      tables: where the rows are several tables, a dictionary by name, how many tasks those of each
        have labels of, the first tasks first. A task is pulled back through its own table alone.
      shared: which of the trained parameters the interaction counts, a tree of bools like them;
        ``None`` if all.
      features: ``rows -> zeros`` to add to the features in them, if the strategy measures there.
    """

    num_tasks: int
    strategy: interaction_base.Interaction
    interval: int | jax.Array | None = None
    lagged: bool = False
    microbatches: int = 1
    rows: int | None = None
    multiple: int = 1
    pads: bool = True
    over_data: NamedSharding | None = None
    whole: bool = False
    owned: bool = True
    tables: Mapping[str, int] | None = None
    shared: Any = None
    features: Callable[[Any], Any] | None = None

    @property
    def every_step(self) -> bool:
        """Whether the interaction is measured in every step."""
        return isinstance(self.interval, int) and self.interval == 1

    @property
    def filled_to(self) -> int:
        """What the number of rows of a task is filled up to a multiple of."""
        return math.lcm(self.multiple, self.strategy.multiple)

    def work(self, size: int) -> float:
        """About how much the interaction adds to the work of a step, in plain steps, on average.

        A pass forwards counts one and a pass back two, which is a plain step together; so does a
        direction that is pushed forward. What is shared between passes, and products of gradients,
        are left out.

        Args:
          size: rows in a batch.
        """
        if self.interval is None:
            return 0.0
        each = self.num_tasks if self.owned else len(self.tables or [0])
        share = 1.0 if self.rows is None else self.rows * each / size
        strategy = self.strategy
        if strategy.gives_products:
            # On two halves there are two passes forwards, each on half of the rows.
            passes = 3.0 if strategy.multiple > 1 else 5.0
            passes *= 1 if strategy.in_turn else 2
        elif strategy.of_losses is not None:
            # Each task has a pass forwards over all rows, and one back over its own.
            passes = 3.0 * self.num_tasks if self.whole else 3.0 + self.num_tasks
        elif self.whole and not strategy.of_features:
            passes = 2.0 * self.num_tasks
        else:
            # Measured on the rows that are trained on in every step, it takes no pass of its own.
            passes = 0.0 if self.every_step and not self.whole and share <= 1 else 3.0
        return share * passes / 3 / int(self.interval)

    def due(self, count: jax.Array) -> jax.Array | None:
        """Whether it is due after ``count`` steps, bool; ``None`` if it always or never is."""
        return None if self.every_step or self.interval is None else count % self.interval == 0

    def way(self, batch: Batch | Grouped, *, preconditioned: bool = False) -> Way:
        """The way of a step.

        Args:
          batch: of the step, or its shapes.
          preconditioned: whether the interaction is measured in the geometry of the optimizer.
        """
        if self.whole or not self.every_step or self.microbatches > 1:
            return Way.APART
        if self.strategy.gives_products:
            return Way.APART
        if batch.measured is not None:
            return Way.APART
        is_rows = isinstance(batch, Batch)
        if is_rows and not self._serves(batch):
            return Way.APART
        if self.lagged and self.strategy.pullback is not None and not preconditioned:
            return Way.LAGGED
        if self.strategy.gradients is None:
            return Way.APART
        if is_rows and self.strategy.parts > 1 and not self._is_whole(batch):
            # The mean over parts is that over rows only if each part has as many.
            return Way.APART
        return Way.ONE_PASS

    def _serves(self, batch: Batch) -> bool:
        """Whether the matrix is measured on the very rows that are trained on."""
        if self.rows is not None and self.rows < batch.size // self.num_tasks:
            return False
        return self.pads or (batch.tasks is None and self._is_whole(batch))

    def _is_whole(self, batch: Batch) -> bool:
        """Whether all tasks have as many rows, and none need be filled up."""
        return batch.size % (self.num_tasks * self.filled_to) == 0

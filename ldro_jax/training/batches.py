"""How batches are drawn, and how many rows of each task are in them."""

import dataclasses

from ldro_jax.problems.base import Problem
from ldro_jax.runtime import checks
from ldro_jax.sharding import Layout
from ldro_jax.tasks import drawing
from ldro_jax.training.method import Method


@dataclasses.dataclass(frozen=True)
class Batches:
    """How batches are drawn, taken in parts, and spread over devices.

    Attributes:
      size: rows of all tasks in a batch, B.
      sampler: ``"balanced"``, the same number of rows from every task, or ``"uniform"``, plain
        random batches. Either way a task counts by its weight, not by its rows: the average loss is
        the mean of the tasks' mean losses, and ``weighting.erm`` the mean over all rows. Random
        batches hold few rows of a small task or none, so a row of it counts for many and gradients
        are noisier. A method with ``sampling="weights"`` draws rows by its weights instead.
      microbatches: in how many parts to take a batch. The weights are chosen from the losses of all
        of them.
      interaction_rows: measure the interaction on so many rows of each task; by default on those
        of the batch. More than these are drawn apart, when they are needed. Where rows have labels
        of several tasks it is so many rows of each table, which are always drawn apart.
      layout: how to use several devices, which one run at a time is then trained on, with rows from
        the host. Where it isn't given, data that fits on a device is held there, and runs that
        differ in rates and seeds alone are trained together.
      runs_together: how many runs to train at a time, as one program; halved while they don't fit
        into memory. By default all that can be on an accelerator, and one on CPU, where it makes no
        difference to the speed.

    Raises:
      ValueError: if one of these isn't what it must be.
    """

    size: int
    sampler: str = "balanced"
    microbatches: int = 1
    interaction_rows: int | None = None
    layout: Layout | None = None
    runs_together: int | None = None

    def __post_init__(self) -> None:
        # Numbers of NumPy would be other text in a configuration.
        object.__setattr__(self, "size", checks.integer("size", self.size))
        checks.one_of("sampler", self.sampler, drawing.SAMPLERS)
        checks.integer("microbatches", self.microbatches)
        if self.interaction_rows is not None:
            checks.integer("interaction_rows", self.interaction_rows)
        if self.layout is not None:
            checks.instance("layout", self.layout, Layout, "@Layout()")
        if self.runs_together is not None:
            checks.integer("runs_together", self.runs_together)

    def check(self, problem: Problem, data_size: int) -> None:
        """Raises ``ValueError`` unless the devices can take them in ``data_size`` parts."""
        least, each = problem.num_tables, "task" if problem.labels is None else "table"
        if self.sampler == "balanced" and self.size < least:
            raise ValueError(
                f"Batches.size must be at least {least}, a row of each {each}, but it is "
                f"{self.size}."
            )
        parts = self.microbatches * data_size * len(problem.tables or [0])
        if problem.tables is not None and (self.sampler != "balanced" or self.size % parts):
            raise ValueError(
                "Batches have as many rows of each table: Batches.sampler must be 'balanced', and "
                "Batches.size a multiple of tables × microbatches × the mesh's data axis, "
                f"{parts}, but they are {self.sampler!r} and {self.size}."
            )
        if self.size % (self.microbatches * data_size):
            raise ValueError(
                f"Batches.size must be a multiple of microbatches × the mesh's data axis, "
                f"{self.microbatches} × {data_size}, but it is {self.size}."
            )

    def rows_of_each(self, problem: Problem) -> int:
        """Rows of each task, or table, in a batch that is balanced, or what comes near to it."""
        return max(self.size // problem.num_tables, 1)

    def measured_rows(self, method: Method, problem: Problem) -> int | None:
        """On how many rows of each task, or table, a method measures the interaction.

        ``None`` where all of a batch serve.
        """
        given = method.interaction_rows or self.interaction_rows
        if given or not method.uses_products:
            return given
        return method.strategy.rows_of(self.rows_of_each(problem))

    def rows_apart(self, method: Method, problem: Problem) -> int | None:
        """Rows of each task, or table, to draw for the interaction if a batch's don't serve."""
        few, rows = self.rows_of_each(problem), self.measured_rows(method, problem)
        if problem.labels is not None:
            in_batch = method.uses_products and (rows or few) <= few
            return rows if method.uses_interaction and not in_batch else None
        # Random rows need not hold every task.
        is_balanced = self.sampler == "balanced" and method.sampling == "uniform"
        if not method.uses_interaction or (is_balanced and (rows or few) <= few):
            return None
        return rows or few

"""How runs are trained: what both engines have in common, and what the loop asks of them.

There are two, because the difference is real. :mod:`~ldro_jax.training.stacked` keeps the data on
one device, takes a whole stretch of steps as one compiled program, and trains several runs in it.
:mod:`~ldro_jax.training.meshed` takes one run step by step on rows from the host, with its state
spread over a mesh of devices and several processes.
"""

import abc
import copy
import dataclasses
import functools
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.core import meta

from ldro_jax import interaction
from ldro_jax.interaction import Interaction
from ldro_jax.measuring import Plan
from ldro_jax.measuring import trained as trained_lib
from ldro_jax.problems.base import Problem
from ldro_jax.runtime import checks, errors
from ldro_jax.sharding import Layout
from ldro_jax.tasks import drawing
from ldro_jax.tasks.source import Source
from ldro_jax.training import step as step_lib
from ldro_jax.training.method import Method
from ldro_jax.training.schedule import Schedule
from ldro_jax.training.step import TrainState
from ldro_jax.transform import preconditioner


class Trial(NamedTuple):
    """What tells one run from others of the same program.

    Attributes:
      method: with its own rates.
      seed: of the parameters and the batches.
    """

    method: Method
    seed: int


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
        of the batch. More than these are drawn apart, when they are needed.
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

    def __post_init__(self):
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

    def check(self, num_tasks: int, data_size: int) -> None:
        """Raises ``ValueError`` unless the devices can take them in ``data_size`` parts."""
        if self.sampler == "balanced" and self.size < num_tasks:
            raise ValueError(
                f"Batches.size must be at least {num_tasks}, a row of each task, but it is "
                f"{self.size}."
            )
        if self.size % (self.microbatches * data_size):
            raise ValueError(
                f"Batches.size must be a multiple of microbatches × the mesh's data axis, "
                f"{self.microbatches} × {data_size}, but it is {self.size}."
            )


class Session(abc.ABC):
    """R runs that are being trained together.

    Attributes:
      states: a pytree of arrays, all that a checkpoint keeps of them.
      step: number of steps taken.
      identity: what they must begin with again to go on, besides the problem's own.
      source: where the rows come from, if it has a state to be saved.
    """

    states: Any
    step: int
    identity: Mapping[str, Any] = types.MappingProxyType({})
    source: Source | None = None

    @abc.abstractmethod
    def advance(self, until: int, preempted: Callable[[int], bool], progress: Any) -> float:
        """Takes steps until there are so many, or fewer where ``preempted`` says so of a number.

        Shows them on ``progress``, a tqdm bar over the steps of all runs. Returns the seconds of
        one step of one run, without compilation; NaN if they aren't known.
        """

    @abc.abstractmethod
    def evaluated(self) -> np.ndarray:
        """Ends a stretch. Returns the mean losses of its steps, ``[R, N]``."""

    @abc.abstractmethod
    def state(self, index: int, states: Any = None) -> TrainState:
        """The state of one run, out of ``states`` or its own."""

    def observed(self, index: int) -> np.ndarray | None:
        """What the problem observed of one run in the last stretch, ``[steps, D]``, if anything."""
        del index

    def record(self) -> dict[str, Any]:
        """All that a checkpoint keeps besides ``states``, as JSON can hold it."""
        return {}

    @abc.abstractmethod
    def load(self, states: Any, record: Mapping[str, Any]) -> None:
        """Goes on from a checkpoint's states and :meth:`record`."""

    def load_some(self, states: Any, record: Mapping[str, Any], chosen: Sequence[int]) -> None:
        """Goes on from a checkpoint of more runs, as NumPy arrays; ``chosen`` are these."""
        raise NotImplementedError

    def renew_source(self) -> Source | None:
        """Puts the source at its beginning. Returns it, if it has a state to restore."""
        return None


class Program(abc.ABC):
    """A problem and a method, compiled once for all rates and seeds.

    Args:
      problem: what is trained.
      optimizer: the Optax optimizer to chain after the weighting.
      batches: how they are drawn.
      method: how to weigh the tasks; any whose :meth:`Method.compile_key` is the same can be
        trained.

    Attributes:
      rows_from: where rows come from, as an error tells one engine from the other.
      trained: which parameters the optimizer moves, a tree of bools; ``None`` if all.
      digests: those that programs of all methods have in common; see
        :mod:`~ldro_jax.training.fingerprint`.

    Raises:
      ValueError: if a setting of the method or of the batches is out of range.
    """

    rows_from: str

    def __init__(
        self,
        problem: Problem,
        optimizer: optax.GradientTransformation,
        batches: Batches,
        method: Method,
    ):
        checks.instance("optimizer", optimizer, optax.GradientTransformation, "@optax.sgd()")
        self.problem, self.batches, self.optimizer = problem, batches, optimizer
        self.digests: dict[Any, dict[str, str]] = {}
        with errors.of("init"):
            shapes = meta.unbox(jax.eval_shape(problem.init, jax.random.key(0)))
        if not jax.tree.leaves(shapes):
            raise ValueError(
                f"init must return parameters, a pytree of arrays, but it returned {shapes}."
            )
        with errors.of("optimizer"):
            moved = trained_lib.moved_by(optimizer, shapes)
        if not any(jax.tree.leaves(moved)):
            raise ValueError("optimizer leaves every parameter as it is, so nothing would train.")
        _check_floating(shapes, moved)
        self.trained = None if all(jax.tree.leaves(moved)) else moved
        self._set_method(method)

    def for_method(self, method: Method) -> "Program":
        """A program of another method, which shares all that doesn't depend on the method."""
        other = copy.copy(self)
        other._set_method(method)
        return other

    def _set_method(self, method: Method) -> None:
        self.method = method
        if method.uses_excess and self.problem.reference is None:
            raise ValueError(
                f"{method.name} compares each row with a reference model, which this problem "
                "doesn't have. Use problem.with_reference(params), or give the method one "
                "reference loss for each task."
            )
        self._tx({})

    def _train_step(self, multiple: int = 1) -> Callable:
        """The function that takes one step, which both engines jit."""
        return step_lib.train_step(
            self.problem.row_losses,
            self._tx,
            self.plan(multiple),
            geometry=self._geometry(),
            row_excess=self.problem.row_excess if self.method.uses_excess else None,
            trained=self.trained,
        )

    def plan(self, multiple: int = 1) -> Plan:
        """How steps measure. Raises ``ValueError`` if there are too few rows to halve.

        The number of rows of a task is filled up to a ``multiple``.
        """
        method, strategy = self.method, self._strategy()
        rows = _interaction_rows(method, self.batches)
        measured = rows or _rows_of_a_task(self.batches, self.problem.num_tasks)
        if method.uses_interaction and measured < strategy.multiple:
            raise ValueError(
                f"interaction='split' halves the rows of each task, but {method.name} "
                f"measures the interaction on {measured}. Use a larger Batches.size or "
                "Batches.interaction_rows=2."
            )
        return Plan(
            self.problem.num_tasks,
            strategy,
            interval=method.interval if method.uses_interaction else None,
            lagged=method.lagged,
            microbatches=self.batches.microbatches,
            rows=rows,
            multiple=multiple,
        )

    def _strategy(self) -> Interaction:
        if self.method.named_strategy == "split":
            # The losses of rows are plain means.
            return interaction.split(fused=True)
        return self.method.strategy

    def _geometry(self) -> Callable[[Any], Any] | None:
        """From the optimizer's state to what the interaction is measured with, if anything."""
        geometry = self.method.geometry
        if not self.method.uses_interaction or geometry == "euclidean":
            return None
        if callable(geometry):
            return functools.partial(_measured_with, geometry)
        shapes = jax.eval_shape(self.problem.init, jax.random.key(0))
        decay = preconditioner.decay_of(self.optimizer, shapes)
        return functools.partial(preconditioner.preconditioner, decay=decay)

    def _tx(self, rates: Mapping[str, Any]) -> optax.GradientTransformationExtraArgs:
        weighting = self.method.transform(self.problem.num_tasks, rates, trainable=self.trained)
        return optax.chain(weighting, self.optimizer)

    @property
    def frozen(self) -> list[str]:
        """The parameters that the optimizer leaves as they are."""
        leaves = jax.tree_util.tree_leaves_with_path(self.trained)
        return [jax.tree_util.keystr(path) for path, moves in leaves if not moves]

    @property
    def rows_apart(self) -> int | None:
        """Rows of each task that are drawn for the interaction, if those of a batch don't serve."""
        method, batches = self.method, self.batches
        few = _rows_of_a_task(batches, self.problem.num_tasks)
        rows = _interaction_rows(method, batches)
        # Random rows need not hold every task.
        balanced = batches.sampler == "balanced" and method.sampling == "uniform"
        if not method.uses_interaction or (balanced and (rows or few) <= few):
            return None
        return rows or few

    def _check_losses(self, params: Any, rows: Any) -> None:
        """Checks the shape of the problem's losses, for shapes of rows ``[R, ...]``."""
        size = self.batches.size
        with errors.of("row_losses"):
            found = jax.eval_shape(self.problem.row_losses, params, rows)
        shape = getattr(found, "shape", None)
        if shape != (size,):
            described = checks.shown(found)
            if shape is not None:
                described = f"an array of the shape {list(shape)}"
            raise ValueError(
                f"row_losses must return one loss for each of {size} rows, a shape of [{size}], "
                f"but it returned {described}."
            )
        if not jnp.issubdtype(found.dtype, jnp.floating):
            raise ValueError(
                "row_losses must return floating-point numbers, or no gradient flows through them, "
                f"but their dtype is {found.dtype}. Compute the loss in float32."
            )
        if found.dtype.itemsize < 4:
            raise ValueError(
                f"row_losses must return losses of 32 bits, but their dtype is {found.dtype}, in "
                "which means over rows and weights are rounded. Compute the loss from "
                "outputs.astype(float32); the model may stay as it is."
            )

    @property
    def problem_on_one_device(self) -> Problem:
        """The problem without what :meth:`Problem.on` arranges."""
        return self.problem

    @abc.abstractmethod
    def row_shapes(self, size: int) -> Any:
        """The shapes of so many rows, a pytree of ``jax.ShapeDtypeStruct``."""

    @abc.abstractmethod
    def digest_of_rows(self) -> str:
        """What tells the training rows from others that the problem calls by the same names."""

    @abc.abstractmethod
    def check(self) -> None:
        """Traces a step; raises ``ValueError`` for what doesn't fit, before any training."""

    def check_evaluation(self) -> None:
        """Tries what is measured on each split; raises ``ValueError`` where that would fail.

        Otherwise it would fail after the training, the test at its very end, and at every restart.
        """
        if self.problem.check_evaluation(self.abstract_state().params):
            return
        params = self.init(0).params
        for split in self.problem.splits:
            try:
                values = self.evaluate(params, split)
                if split == "validation":
                    self.problem.score(values)
            except Exception as error:
                raise ValueError(
                    f"evaluate can't measure the split {split!r} ({errors.first_line(error)})."
                ) from error

    @abc.abstractmethod
    def init(self, seed: int) -> TrainState:
        """The state before the first step, on which no method has an influence."""

    @abc.abstractmethod
    def abstract_state(self) -> TrainState:
        """The shapes and dtypes of such a state, and its shardings on a mesh."""

    @abc.abstractmethod
    def start(self, trials: Sequence[Trial], schedule: Schedule | None = None) -> Session:
        """Runs before their first step. Parameters depend on the seed alone, not on the method.

        The schedule says how long the stretches will be, so that one program is enough for all.
        """

    def evaluate(self, params: Any, split: str) -> dict[str, np.ndarray]:
        """The values of each metric by name, ``[N]``, checked."""
        values = self.problem.evaluate(params, split)
        expected = "a dictionary from the name of each metric to the values of all tasks"
        checks.require(isinstance(values, Mapping), "what evaluate returns", expected, values)
        found = {name: np.asarray(value) for name, value in values.items()}
        for metric in self.problem.metrics:
            shape = getattr(found.get(metric.name), "shape", None)
            if shape != (self.problem.num_tasks,):
                raise ValueError(
                    f"evaluate must give one value of {metric.name!r} for each of "
                    f"{self.problem.num_tasks} tasks, but gave "
                    f"{'none' if shape is None else f'a shape of {list(shape)}'}."
                )
            kind = found[metric.name].dtype
            if kind.kind not in "biuf" and kind.name != "bfloat16":
                raise ValueError(
                    f"evaluate must give values of {metric.name!r} that are real numbers, but they "
                    f"are {kind}."
                )
        return found


def _interaction_rows(method: Method, batches: Batches) -> int | None:
    return method.interaction_rows or batches.interaction_rows


def _rows_of_a_task(batches: Batches, num_tasks: int) -> int:
    """Rows of each task in a batch that is balanced, or what comes near to it."""
    return max(batches.size // num_tasks, 1)


def _check_floating(shapes: Any, moved: Any) -> None:
    """Raises ``ValueError`` for parameters that are trained and have no gradient."""
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    for (path, leaf), moves in zip(leaves, jax.tree.leaves(moved), strict=True):
        if moves and not jnp.issubdtype(leaf.dtype, jnp.inexact):
            raise ValueError(
                f"init must return floating-point parameters, but params"
                f"{jax.tree_util.keystr(path)} is {leaf.dtype}. Keep what isn't trained out of "
                "them, or freeze it with trainable."
            )


def _measured_with(geometry: Callable[[Any], Any], opt_state: Any) -> Any:
    with errors.of("geometry"):
        found = geometry(opt_state)
    if found is None:
        raise ValueError("geometry must return a preconditioner like the parameters, but not None.")
    return found

"""What trains runs: what the two engines have in common, and what the loop asks of them.

:mod:`~ldro_jax.training.stacked` keeps the data on
one device, takes a whole stretch of steps as one compiled program, and trains several runs in it.
:mod:`~ldro_jax.training.meshed` takes one run step by step on rows from the host, with its state
spread over a mesh of devices and several processes.

An :class:`Engine` has a problem on its devices, a :class:`Program` trains it with one method, and a
:class:`Session` holds the states of the runs that are being trained.
"""

import abc
import dataclasses
import functools
import operator
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
from ldro_jax.interaction.features import NEEDED
from ldro_jax.measuring import Plan
from ldro_jax.measuring import shared as shared_lib
from ldro_jax.measuring import trained as trained_lib
from ldro_jax.problems.base import Problem
from ldro_jax.problems.subset import Subset
from ldro_jax.runtime import checks, errors
from ldro_jax.tasks.source import Source
from ldro_jax.training import step as step_lib
from ldro_jax.training.batches import Batches
from ldro_jax.training.method import Method
from ldro_jax.training.schedule import Schedule
from ldro_jax.training.step import TrainState
from ldro_jax.transform import preconditioner

# Plain steps' work that is worth a word.
_MUCH = 0.1


class Trial(NamedTuple):
    """One run: a method and a seed.

    Attributes:
      method: with its own rates.
      seed: of the parameters and the batches.
      tasks: which tasks it trains, ascending, where the program trains some of a problem's at a
        time; see :class:`~ldro_jax.problems.subset.Subset`.
    """

    method: Method
    seed: int
    tasks: tuple[int, ...] | None = None


class Session(abc.ABC):
    """R runs that are being trained together.

    Attributes:
      states: the training states, a pytree of arrays as checkpoints hold them.
      step: number of steps taken.
      problems: of each run, with the tasks that it trains.
      identity: what the source says of its data; a checkpoint is refused where this differs.
      source: where the rows come from, if it has a state to be saved.
    """

    states: Any
    step: int
    problems: Sequence[Problem]
    identity: Mapping[str, Any] = types.MappingProxyType({})
    source: Source | None = None

    @abc.abstractmethod
    def advance(self, until: int, preempted: Callable[[int], bool], progress: Any) -> float:
        """Trains up to step ``until``, or stops earlier when ``preempted(step)`` is true.

        Shows them on ``progress``, a tqdm bar over the steps of all runs. Returns the seconds of
        one step of one run, without compilation; NaN if they aren't known.
        """

    @abc.abstractmethod
    def evaluated(self) -> np.ndarray:
        """Ends a stretch. Returns the mean losses of its steps, ``[R, N]``."""

    @abc.abstractmethod
    def state(self, index: int, states: Any = None) -> TrainState:
        """The state of one run, by default out of :attr:`states`."""

    def hold(self, index: int) -> None:
        """Keeps the state of one run as it is now, while the others of the group go on."""
        raise NotImplementedError

    def observed(self, index: int) -> np.ndarray | None:
        """What ``problem.observe`` gave of a run in the last stretch, ``[steps, D]``."""
        del index

    def record(self) -> dict[str, Any]:
        """What a checkpoint keeps besides ``states``, in JSON types."""
        return {}

    @abc.abstractmethod
    def load(self, states: Any, record: Mapping[str, Any]) -> None:
        """Goes on from a checkpoint's states and :meth:`record`."""

    def load_some(self, states: Any, record: Mapping[str, Any], chosen: Sequence[int]) -> None:
        """Goes on from a checkpoint of more runs, NumPy arrays; these are its ``chosen`` ones."""
        raise NotImplementedError

    def renew_source(self) -> Source | None:
        """Puts the source back to its first row. Returns it if it has a state to restore."""
        return None


class Engine(abc.ABC):
    """A problem on the devices that train it, with the optimizer and the batches: all but a method.

    Args:
      problem: what is trained.
      optimizer: the Optax optimizer to chain after the weighting.
      batches: how they are drawn.

    Attributes:
      is_whole: whether all tasks must be taken in one pass; see :class:`~ldro_jax.measuring.Plan`.
      source_problem: the problem without what :meth:`Problem.on` arranges for a mesh.
      frozen: the parameters that stay as they are.
      rows_from: where rows come from, as an error tells one engine from the other.
      trained: which parameters the optimizer moves, a tree of bools; ``None`` if all.
      digests: a cache of what :mod:`~ldro_jax.training.fingerprint` has traced.

    Raises:
      ValueError: if one of these isn't what it must be.
    """

    rows_from: str
    source_problem: Problem

    def __init__(
        self, problem: Problem, optimizer: optax.GradientTransformation, batches: Batches
    ) -> None:
        checks.instance("optimizer", optimizer, optax.GradientTransformation, "@optax.sgd()")
        self.problem = self.source_problem = problem
        self.batches = batches
        self.digests: dict[Any, dict[str, str]] = {}
        with errors.of("init"):
            shapes = meta.unbox(jax.eval_shape(problem.init, jax.random.key(0)))
        if not jax.tree.leaves(shapes):
            raise ValueError(
                f"init must return parameters, a pytree of arrays, but it returned {shapes}."
            )
        replaced = problem.replaced(shapes)
        if replaced is not None:
            optimizer = trained_lib.only(optimizer, jax.tree.map(operator.not_, replaced))
        self.optimizer = optimizer
        if problem.penalty is not None:
            checks.function("penalty", problem.penalty, example="params -> scalar")
        is_apart = not (problem.draws_at_random or problem.rows_depend)
        self.is_whole: bool = not (problem.labels is None and replaced is None and is_apart)
        with errors.of("optimizer"):
            moved = trained_lib.moved_by(optimizer, shapes)
        if not any(jax.tree.leaves(moved)):
            raise ValueError("optimizer leaves every parameter as it is, so nothing would train.")
        _check_floating(shapes, moved)
        self.trained: Any = None if all(jax.tree.leaves(moved)) else moved
        fixed = moved if replaced is None else jax.tree.map(operator.or_, moved, replaced)
        leaves = jax.tree_util.tree_leaves_with_path(fixed)
        self.frozen: list[str] = [jax.tree_util.keystr(path) for path, moves in leaves if not moves]

    @functools.cached_property
    def shared(self) -> Any:
        """The parameters that tasks share, as far as it can be read off the losses of some rows.

        A tree of bools like them; ``None`` if all count.
        """
        problem = self.problem.whole
        if problem.labels is None:
            return None
        rows = self.row_shapes(problem.num_tables)
        key = jax.eval_shape(lambda: jax.random.key(0)) if problem.draws_at_random else None

        def losses(params, rows, *key):
            return problem.training_losses(params, rows, *key).sums

        with errors.of("row_losses"):
            shapes = meta.unbox(jax.eval_shape(problem.init, jax.random.key(0)))
            found = shared_lib.found(losses, shapes, rows, *(() if key is None else (key,)), axis=1)
        # Where heads alone are trained, they count.
        moved = found if self.trained is None else trained_lib.hide(found, self.trained)
        return found if any(jax.tree.leaves(moved)) else None

    @abc.abstractmethod
    def program(self, method: Method) -> "Program":
        """The program of a method. Raises ``ValueError`` if it doesn't fit the problem."""

    @abc.abstractmethod
    def row_shapes(self, size: int) -> Any:
        """The shapes of so many rows, a pytree of ``jax.ShapeDtypeStruct``."""

    @abc.abstractmethod
    def digest_of_rows(self) -> str:
        """A digest of the training rows."""


class Program(abc.ABC):
    """An engine with a method, compiled once for all rates and seeds.

    Args:
      engine: what is trained, and on what.
      method: how to weigh the tasks; any whose :meth:`Method.compile_key` is the same can be
        trained.

    Attributes:
      problem: the engine's.
      batches: the engine's.
      rows_apart: rows of each task that are drawn for the interaction, if those of a batch don't
        serve.
      plan: how steps measure.

    Raises:
      ValueError: if a setting of the method is out of range, or its batches have too few rows.
    """

    engine: Engine
    method: Method
    problem: Problem
    batches: Batches
    plan: Plan

    def __init__(self, engine: Engine, method: Method) -> None:
        self.engine, self.method = engine, method
        self.problem, self.batches = engine.problem, engine.batches
        if method.uses_excess and self.problem.reference is None:
            raise ValueError(
                f"{method.name} compares each row with a reference model, which this problem "
                "doesn't have. Use problem.with_reference(params), or give the method one "
                "reference loss for each task."
            )
        if method.sampling == "weights" and self.problem.labels is not None:
            raise ValueError(
                f"sampling='weights' draws the rows of tasks by their weights, but {method.name} "
                "is given rows with labels of several tasks. Use sampling='uniform'."
            )
        self.rows_apart: int | None = self.batches.rows_apart(method, self.problem)
        self.shared: Any = method.shared
        if method.uses_interaction and self.shared is None:
            self.shared = engine.shared
        self.tx({})

    def tx(self, rates: Mapping[str, Any]) -> optax.GradientTransformationExtraArgs:
        """The weighting with some rates, and the optimizer after it."""
        num_tasks, trainable = self.problem.num_tasks, self.engine.trained
        weighting = self.method.transform(num_tasks, rates, trainable=trainable, shared=self.shared)
        penalty, optimizer = self.problem.penalty, self.engine.optimizer
        if penalty is None:
            return optax.chain(weighting, optimizer)
        return optax.chain(_with_penalty(weighting, penalty), optimizer)

    def problem_of(self, trial: Trial) -> Problem:
        """The problem with the tasks that a run trains."""
        if trial.tasks is None:
            return self.problem
        assert isinstance(self.problem, Subset)
        return self.problem.of(trial.tasks)

    def step_function(self, plan: Plan, problem: Problem | None = None) -> Callable:
        """The function that takes one step, which both engines jit; by default for all runs."""
        problem, method = problem or self.problem, self.method
        return step_lib.train_step(
            problem.training_losses,
            self.tx,
            plan,
            geometry=self.geometry,
            row_excess=problem.row_excess if method.uses_excess else None,
            trained=self.engine.trained,
        )

    @functools.cached_property
    def geometry(self) -> Callable[[Any], Any] | None:
        """What the interaction is measured with, ``optimizer state -> preconditioner``, if any.

        It is looked at with numbers, so not while something is traced.
        """
        if not self.method.uses_interaction:
            return None
        return _geometry(self.method, self.problem, self.engine.optimizer)

    def make_plan(self, strategy: Interaction, multiple: int = 1) -> Plan:
        """How steps measure. Raises ``ValueError`` if there are too few rows to halve.

        The number of rows of a task is filled up to a ``multiple``.
        """
        method, batches, problem = self.method, self.batches, self.problem
        own = not isinstance(method.named_strategy, str)
        serves = strategy.gives_products or strategy.of_losses is not None
        if self.engine.is_whole and own and not serves:
            raise ValueError(
                "interaction must be a name for rows with several labels and for models with "
                f"statistics or dropout, but {method.name} has an Interaction of its own."
            )
        rows = batches.measured_rows(method, problem)
        measured = min(rows or np.inf, batches.rows_of_each(problem))
        if self.rows_apart is not None:
            measured = self.rows_apart
        if method.uses_interaction and measured < strategy.multiple:
            named = "products" if strategy.gives_products else "split"
            raise ValueError(
                f"interaction={named!r} halves the rows of each task, but {method.name} "
                f"measures the interaction on {measured}. Use a larger Batches.size or "
                "Batches.interaction_rows=2."
            )
        if strategy.of_features and (problem.features is None or method.geometry != "euclidean"):
            raise ValueError(
                f"{method.name} measures the interaction at the features. "
                f"{NEEDED} It has no geometry."
            )
        return Plan(
            problem.num_tasks,
            strategy,
            interval=method.interval if method.uses_interaction else None,
            lagged=method.lagged,
            microbatches=batches.microbatches,
            rows=rows,
            multiple=multiple,
            whole=self.engine.is_whole,
            owned=problem.labels is None,
            # Of some tasks which table has which isn't known here.
            tables=problem.tables if problem.whole is problem else None,
            shared=self._counted(),
            features=problem.features if strategy.of_features else None,
        )

    def _counted(self) -> Any:
        """The trained parameters that the interaction counts; ``None`` if all."""
        if self.shared is None:
            return None
        shapes = meta.unbox(jax.eval_shape(self.problem.init, jax.random.key(0)))
        return shared_lib.mask(self.shared, shapes, self.engine.trained)

    def cost(self) -> str | None:
        """What measuring the interaction costs, in words; ``None`` where it isn't much."""
        method, size, plan = self.method, self.batches.size, self.plan
        work = plan.work(size)
        if work < _MUCH:
            return None
        often = "in every step" if plan.every_step else f"every {plan.interval} steps"
        text = f"the interaction, measured {often}, is about {work:.1f} plain steps' work a step"
        if plan.whole and not method.uses_products and method.wrapped().by_products is not None:
            other = interaction.products()
            rows = other.rows_of(self.batches.rows_of_each(self.problem))
            instead = dataclasses.replace(plan, strategy=other, rows=rows, interval=1)
            text += f"; with interaction='products' it would be {instead.work(size):.1f}"
        return f"{text}."

    @property
    def abstract_key(self) -> Any:
        """The shape of the key of a training pass, if it needs one."""
        if not self.problem.draws_at_random:
            return None
        return jax.eval_shape(lambda: jax.random.key(0))

    def check_losses(self, params: Any, rows: Any) -> None:
        """Checks the losses of a batch, given shapes of parameters and rows ``[R, ...]``."""
        size, problem = self.batches.size, self.problem
        with errors.of("row_losses"):
            found = jax.eval_shape(problem.training_losses, params, rows, self.abstract_key).sums
        shape, expected, of_each = getattr(found, "shape", None), (size,), ""
        if problem.labels is not None:
            expected, of_each = (size, problem.num_tasks), f" and {problem.num_tasks} tasks"
        if shape != expected:
            described = checks.shown(found)
            if shape is not None:
                described = f"an array of the shape {list(shape)}"
            raise ValueError(
                f"row_losses must return one loss for each of {size} rows{of_each}, a shape of "
                f"{list(expected)}, but it returned {described}."
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

    def evaluate(
        self, params: Any, split: str, problem: Problem | None = None
    ) -> dict[str, np.ndarray]:
        """The values of each metric by name, ``[N]``, checked; by default of :attr:`problem`."""
        problem = problem or self.problem
        values = problem.evaluate(params, split)
        expected = "a dictionary from the name of each metric to the values of all tasks"
        checks.require(isinstance(values, Mapping), "what evaluate returns", expected, values)
        found = {name: np.asarray(value) for name, value in values.items()}
        for metric in problem.metrics:
            shape = getattr(found.get(metric.name), "shape", None)
            if shape != (len(problem.measured),):
                raise ValueError(
                    f"evaluate must give one value of {metric.name!r} for each of "
                    f"{len(problem.measured)} {problem.measured_kind}, but gave "
                    f"{'none' if shape is None else f'a shape of {list(shape)}'}."
                )
            kind = found[metric.name].dtype
            if kind.kind not in "biuf" and kind.name != "bfloat16":
                raise ValueError(
                    f"evaluate must give values of {metric.name!r} that are real numbers, but they "
                    f"are {kind}."
                )
        return found


def strategy_on_one_device(method: Method) -> Interaction:
    """How a method measures the interaction where nothing is spread over devices."""
    # The losses of rows are plain means.
    return interaction.split(fused=True) if method.named_strategy == "split" else method.strategy


def _geometry(
    method: Method, problem: Problem, optimizer: optax.GradientTransformation
) -> Callable[[Any], Any] | None:
    """From the optimizer's state to what the interaction is measured with, if anything."""
    if method.geometry == "euclidean":
        return None
    if callable(method.geometry):
        return functools.partial(_measured_with, method.geometry)
    shapes = jax.eval_shape(problem.init, jax.random.key(0))
    decay = preconditioner.decay_of(optimizer, shapes)
    return functools.partial(preconditioner.preconditioner, decay=decay)


def _with_penalty(
    weighting: optax.GradientTransformationExtraArgs, penalty: Callable[[Any], jax.Array]
) -> optax.GradientTransformationExtraArgs:
    """Adds the gradient of a loss of no task, in steps that train."""

    def value(params):
        with errors.of("penalty"):
            return penalty(params)

    def update(updates, state, params=None, **statistics):
        updates, state = weighting.update(updates, state, params, **statistics)
        gradient = jax.grad(value, allow_int=True)(params)
        trains = jnp.isfinite(statistics["losses"]).all()

        def added(u, g):
            return (
                u if g.dtype == jax.dtypes.float0 else jnp.where(trains, u + g, u).astype(u.dtype)
            )

        return jax.tree.map(added, updates, gradient), state

    return optax.GradientTransformationExtraArgs(weighting.init, update)


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

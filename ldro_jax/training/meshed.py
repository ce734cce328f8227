"""One run, step by step, on rows from the host, with its state spread over a mesh of devices.

Rows are made in a thread while the devices compute. With several processes each reads the rows of
its own devices.
"""

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from flax.core import meta
from jax.sharding import NamedSharding, PartitionSpec
from typing_extensions import override

from ldro_jax import interaction, sharding, transform
from ldro_jax.measuring import Batch, Plan, trained
from ldro_jax.problems import starting
from ldro_jax.problems.base import Problem
from ldro_jax.runtime import preemption
from ldro_jax.tasks import drawing
from ldro_jax.tasks.source import Source
from ldro_jax.training import engine as engine_lib
from ldro_jax.training import feed as feed_lib
from ldro_jax.training import fingerprint
from ldro_jax.training import step as step_lib
from ldro_jax.training.batches import Batches
from ldro_jax.training.engine import Trial, strategy_on_one_device
from ldro_jax.training.method import Method
from ldro_jax.training.prefetch import prefetched
from ldro_jax.training.schedule import Schedule

# Steps are queued faster than they run, and a queue without end would hold as many batches.
_QUEUED_STEPS = 32
# How many batches may be drawn and not yet trained on: two wait, one is handed over, one is made.
_DRAWN_AHEAD = 4


class MeshedEngine(engine_lib.Engine):
    """A mesh of devices, with rows from the host; see the module.

    Args:
      problem: what is trained.
      optimizer: the Optax optimizer to chain after the weighting.
      batches: how they are drawn, and their layout on the devices.

    Attributes:
      mesh: the devices.
      rules: which axis of the mesh each logical axis of the parameters is spread over.
      row: shapes and dtypes of a row, from :meth:`Problem.row_shapes`, for which the source is
        asked once.

    Raises:
      ValueError: if the batch doesn't fit the tasks or the mesh.
    """

    rows_from = "a Layout, with rows from the host"
    mesh: jax.sharding.Mesh
    rules: list[tuple[str, str | None]]
    source_problem: Problem
    row: Any

    def __init__(
        self, problem: Problem, optimizer: optax.GradientTransformation, batches: Batches
    ) -> None:
        layout = batches.layout or sharding.Layout()
        self.mesh, self.rules = layout.mesh(), layout.rules()
        batches.check(problem, self.mesh.shape["data"])
        super().__init__(problem.on(self.mesh, batches.size), optimizer, batches)
        self.source_problem, self.row = problem, self.problem.row_shapes()

    @override
    def program(self, method: Method) -> "MeshedProgram":
        return MeshedProgram(self, method)

    def for_problem(self, problem: Problem) -> "MeshedEngine":
        """The engine for other data of the model in :attr:`problem`."""
        other = copy.copy(self)
        other.problem, other.row = problem, problem.row_shapes()
        return other

    @override
    def row_shapes(self, size: int) -> Any:
        size = self.problem.in_each_table(size)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct((size, *x.shape), x.dtype), self.row)

    @override
    def digest_of_rows(self) -> str:
        return fingerprint.of_source(self.source_problem)


class _Compiled(NamedTuple):
    """What of a program depends on the model and the method alone.

    Attributes:
      plan: how the step measures.
      shapes: of the state.
      shardings: of the state.
      init: ``(key, parameters to begin with) -> state``, jitted.
      step: ``(rates, state, batch) -> (state, losses [N])``, jitted.
    """

    plan: Plan
    shapes: step_lib.TrainState
    shardings: step_lib.TrainState
    init: Any
    step: Any


class MeshedProgram(engine_lib.Program):
    """What trains a method on a mesh of devices; see the module.

    Args:
      engine: the devices and what is trained on them.
      method: how to weigh the tasks.

    Attributes:
      shardings: of the state, a pytree of ``NamedSharding``.
      feed: what draws and places batches.

    Raises:
      ValueError: if a setting is out of range.
    """

    engine: MeshedEngine
    plan: Plan
    shardings: step_lib.TrainState

    def __init__(
        self, engine: MeshedEngine, method: Method, compiled: "_Compiled | None" = None
    ) -> None:
        super().__init__(engine, method)
        self.mesh: jax.sharding.Mesh = engine.mesh
        self._compiled = compiled or self._compile()
        self.plan, self.shardings = self._compiled.plan, self._compiled.shardings
        self.feed: feed_lib.Feed = feed_lib.Feed(engine, method, self.rows_apart)
        self._reference = None
        if method.uses_excess:
            self._reference = jax.device_put(self.problem.reference, self.shardings.params)

    def key(self, seed: int) -> jax.Array | None:
        """What a run draws at random with in its training passes, on the mesh; if anything."""
        if not self.problem.draws_at_random:
            return None
        everywhere = NamedSharding(self.mesh, PartitionSpec())
        make = jax.jit(
            lambda seed: step_lib.random_key(step_lib.run_key(seed)), out_shardings=everywhere
        )
        return make(np.uint32(seed))

    def for_problem(self, problem: Problem) -> "MeshedProgram":
        """The program for other data of the model in :attr:`problem`; it compiles nothing anew."""
        return MeshedProgram(self.engine.for_problem(problem), self.method, self._compiled)

    def _compile(self) -> "_Compiled":
        boxed = jax.eval_shape(self._boxed_state, jax.random.key(0), self.problem.starting)
        shardings = sharding.shardings(boxed, self.mesh, self.engine.rules)
        plan = self.make_plan(self._strategy(shardings.params), multiple=self.mesh.shape["data"])
        return _Compiled(
            plan,
            meta.unbox(boxed),
            shardings,
            jax.jit(
                lambda key, given: meta.unbox(self._boxed_state(key, given)),
                out_shardings=shardings,
            ),
            jax.jit(
                self.step_function(plan),
                donate_argnums=1,
                out_shardings=(shardings, NamedSharding(self.mesh, PartitionSpec())),
            ),
        )

    def _strategy(self, shardings: Any) -> interaction.Interaction:
        named = self.method.named_strategy
        is_same = not isinstance(named, str) or named in ("features", "products")
        if self.mesh.size == 1 or is_same:
            return strategy_on_one_device(self.method)
        if self.engine.trained is not None:
            shardings = trained.hide(shardings, self.engine.trained)
        found = interaction.auto(shardings)
        return interaction.split(found) if named == "split" else found

    def _boxed_state(self, key, given):
        params = starting.overlaid(self.problem.init(key), given)
        return step_lib.TrainState(jnp.zeros([], jnp.int32), params, self.tx({}).init(params))

    @override
    def init(self, seed: int) -> step_lib.TrainState:
        return self._compiled.init(jax.random.key(seed), self.problem.starting)

    @override
    def start(self, trials: Sequence[Trial], schedule: Schedule | None = None) -> "MeshedSession":
        del schedule
        (trial,) = trials
        return MeshedSession(self, trial)

    def step(
        self, state: step_lib.TrainState, batch: Batch, method: Method
    ) -> tuple[step_lib.TrainState, jax.Array]:
        """Takes one step with a method's rates, from a state whose buffers are reused.

        Returns the new state and the losses of the tasks, ``[N]``, not waited for.
        """
        rates = {k: np.asarray(v, np.float32) for k, v in method.rates().items()}
        return self._compiled.step(rates, state, batch._replace(reference=self._reference))

    @override
    def abstract_state(self) -> step_lib.TrainState:
        return jax.tree.map(
            lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
            self._compiled.shapes,
            self.shardings,
        )

    def lower(self) -> Any:
        """The lowered training step for its shapes alone, to look at its memory and its cost."""
        return self._compiled.step.lower(*self._abstract_arguments())

    @override
    def check(self) -> None:
        if self.feed.spans_processes:
            self.feed.check_source(self.problem.source(0))
        arguments = self._abstract_arguments()
        self.check_losses(arguments[1].params, arguments[2].rows)
        jax.eval_shape(self._compiled.step, *arguments)

    def _abstract_arguments(self) -> tuple[Any, ...]:
        """Shapes of the rates, the state and the batch of a step."""
        rates = {k: jax.ShapeDtypeStruct((), jnp.float32) for k in self.method.rates()}
        batch = self.feed.abstract_batch()._replace(key=self.abstract_key)
        if self.method.uses_excess:
            batch = batch._replace(reference=self.abstract_state().params)
        return rates, self.abstract_state(), batch


def _queue_length(began: float, timed: int) -> int:
    """How many steps to queue, so that they end soon after a signal."""
    seconds = (time.perf_counter() - began) / max(timed, 1)
    return int(np.clip(preemption.SECONDS / max(seconds, 1e-6), 1, _QUEUED_STEPS if timed else 1))


class MeshedSession(engine_lib.Session):
    """One run of a program, which draws its rows a few steps ahead."""

    states: step_lib.TrainState
    step: int

    def __init__(self, program: MeshedProgram, trial: Trial) -> None:
        self._program, self._trial = program, trial
        self.problems: Sequence[Problem] = [program.problem]
        self._source = program.problem.source(trial.seed)
        program.feed.check_source(self._source)
        self.source = self._source if self._source.has_state else None
        self._is_fresh = True
        self.identity: Mapping[str, Any] = self._source.identity
        self.states, self.step = program.init(trial.seed), 0
        self._drawer = program.feed.drawer(trial.method, trial.seed)
        self._key = program.key(trial.seed)
        # Of the steps since the last evaluation, each [N].
        self._losses: list[np.ndarray] = []
        self._end, self._queued_steps = 0, 1

    @override
    def advance(self, until: int, preempted: Callable[[int], bool], progress: Any) -> float:
        queued: list[jax.Array] = []
        began, timed = 0.0, 0

        def collect():
            preemption.wait(queued)
            self._losses += map(np.asarray, queued)
            queued.clear()

        self._end, self._is_fresh = until, False
        with prefetched(self._batches()) as ready:
            for batch, drawer in ready:
                batch = batch._replace(key=self._key)
                self.states, losses = self._program.step(self.states, batch, self._trial.method)
                queued.append(losses)
                self._drawer, self.step = drawer, drawer.step
                progress.update(1)
                if not began:
                    # The first step compiles.
                    preemption.wait(losses)
                    began = time.perf_counter()
                else:
                    timed += 1
                if len(queued) >= self._queued_steps:
                    collect()
                    self._queued_steps = _queue_length(began, timed)
                if self._end == until and preempted(self.step):
                    # What is drawn already is trained on: a stream would not give it again. The
                    # last step must be the same in all processes, however far each has drawn.
                    self._end = min(until, self.step + _DRAWN_AHEAD)
        collect()
        return (time.perf_counter() - began) / timed if timed else math.nan

    def _batches(self) -> Iterator[tuple[Batch, drawing.Drawer]]:
        drawer = self._drawer
        while drawer.step < self._end:
            batch, drawer = self._program.feed.batch(self._source, drawer)
            yield batch, drawer

    @override
    def evaluated(self) -> np.ndarray:
        losses = np.ma.masked_invalid(self._losses).mean(axis=0).filled(np.nan)
        self._losses.clear()
        weighted = transform.find_state(self.states.opt_state)
        # Until the next evaluation, so that a run that is resumed draws the same rows.
        self._drawer = self._drawer.following(weighted.weights, weighted.seen)
        return losses[None]

    @override
    def state(self, index: int, states: Any = None) -> step_lib.TrainState:
        del index
        return self.states if states is None else states

    @override
    def hold(self, index: int) -> None:
        del index  # it is alone, and nothing goes on

    @override
    def record(self) -> dict[str, Any]:
        return {
            "drawer": self._drawer.record(),
            # JSON has no NaN, and NumPy makes it of None again.
            "losses": [[None if math.isnan(x) else x for x in y.tolist()] for y in self._losses],
        }

    @override
    def load(self, states: step_lib.TrainState, record: Mapping[str, Any]) -> None:
        self.states, self.step = states, int(states.step)
        self._drawer = self._drawer.restored(record.get("drawer"))
        self._losses = [np.array(loss, np.float32) for loss in record["losses"]]
        if self.source is None and not _gives_again(self._source):
            logging.warning(
                "The source %s gives other rows when it is asked for the same ones again, so the "
                "run goes on with other rows than without the interruption. Rows must depend on "
                "their numbers alone, or the source must have has_state=True, save and restore.",
                type(self._source).__name__,
            )

    @override
    def renew_source(self) -> Source | None:
        # What a damaged checkpoint did to it must not stay.
        if self.source is not None and not self._is_fresh:
            self._source = self.source = self._program.problem.source(self._trial.seed)
        self._is_fresh = False
        return self.source


def _gives_again(source: Source) -> bool:
    """Whether a source gives the same row of a task whenever it is asked for it."""
    first = np.zeros(1, np.int32), np.zeros(1, np.int64)
    pairs = zip(*(jax.tree.leaves(source.rows(*first)) for _ in range(2)), strict=True)
    return all(np.array_equal(*pair, equal_nan=pair[0].dtype.kind == "f") for pair in pairs)

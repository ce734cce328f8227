"""Several runs as one compiled program on one device, which holds all data.

A stretch of steps is one ``scan``, which draws its batches itself. Runs that differ in rates and
seeds alone are trained together: under ``vmap`` on accelerators, where one small model leaves most
of the device idle, and one after the other on CPU.
"""

import copy
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.core import meta
from typing_extensions import override

from ldro_jax.measuring import Batch, Plan
from ldro_jax.problems import starting
from ldro_jax.problems.base import OnDevice, Problem
from ldro_jax.problems.subset import Subset
from ldro_jax.records import traced
from ldro_jax.runtime import preemption
from ldro_jax.tasks import drawing
from ldro_jax.training import engine as engine_lib
from ldro_jax.training import step as step_lib
from ldro_jax.training import stretches
from ldro_jax.training.batches import Batches
from ldro_jax.training.engine import Trial, strategy_on_one_device
from ldro_jax.training.method import Method
from ldro_jax.training.schedule import Schedule
from ldro_jax.training.stretches import Means, Runs, Stretch

# Runs from which on their first states are compiled.
_MANY = 8


class StackedEngine(engine_lib.Engine):
    """One device, which holds the data; see the module.

    Args:
      problem: what is trained; it has its rows on the device.
      optimizer: the Optax optimizer to chain after the weighting.
      batches: how they are drawn.
      together: how runs are trained together, ``"vmap"`` or ``"map"``; by default what suits the
        backend.

    Attributes:
      data: the rows.
      arrays: those of the data, and the reference parameters, on the device.

    Raises:
      ValueError: if a setting is out of range.
    """

    rows_from = "None, with rows from the device"

    def __init__(
        self,
        problem: Problem,
        optimizer: optax.GradientTransformation,
        batches: Batches,
        *,
        together: str | None = None,
    ):
        batches.check(problem, 1)
        super().__init__(problem, optimizer, batches)
        if together is None:
            together = "map" if jax.default_backend() == "cpu" else "vmap"
        self.together: Callable[[Callable[..., Any]], Callable[..., Any]] = {
            "vmap": stretches.vmapped,
            "map": stretches.mapped,
        }[together]
        assert problem.on_device is not None
        self.data: OnDevice = problem.on_device
        self.arrays: Any = jax.device_put((self.data.arrays, problem.reference))
        self._made = jax.jit(
            lambda key, given: starting.overlaid(meta.unbox(problem.init(key)), given)
        )

    def init_params(self, key: jax.Array) -> Any:
        """The parameters of a run before its first step."""
        return self._made(key, self.problem.starting)

    def on(self, problem: Problem) -> "StackedEngine":
        """The engine for other rows, or other first parameters, in a problem of the same form."""
        other = copy.copy(self)
        assert problem.on_device is not None
        other.problem = other.source_problem = problem
        other.data = problem.on_device
        other.arrays = jax.device_put((other.data.arrays, problem.reference))
        other.digests = {}
        return other

    @override
    def program(self, method: Method) -> "StackedProgram":
        return StackedProgram(self, method)

    @override
    def row_shapes(self, size: int) -> Any:
        return jax.eval_shape(self.data.take, *self._to_take(size))

    @override
    def digest_of_rows(self) -> str:
        taken = traced.of(self.data.take, *self._to_take(self.batches.size))
        if "content" in self.problem.identity:
            return taken
        return taken + traced.of_values(self.data.sizes, jax.tree.leaves(self.data.arrays))

    def _to_take(self, size: int) -> tuple[Any, ...]:
        """Shapes of what ``take`` is given for so many rows."""
        tasks = jax.ShapeDtypeStruct((size,), jnp.int32)
        key, step = jax.eval_shape(lambda: jax.random.key(0)), jax.ShapeDtypeStruct((), jnp.int32)
        return self.data.arrays, key, step, tasks, tasks


class StackedProgram(engine_lib.Program):
    """What trains runs of one method on one device, with all their data there; see the module.

    Args:
      engine: the device and its data.
      method: how to weigh the tasks.

    Raises:
      ValueError: if a setting is out of range, or needs the other engine.
    """

    engine: StackedEngine

    def __init__(self, engine: StackedEngine, method: Method) -> None:
        super().__init__(engine, method)
        if method.sampling != "uniform":
            raise ValueError(
                f"sampling must be 'uniform' for data on the device, but it is "
                f"{method.sampling!r}. Pass layout=Layout() to train on rows from the host."
            )
        self.plan: Plan = self.make_plan(strategy_on_one_device(method))
        self._stretches: dict[tuple[Any, ...], Callable] = {}

    def on(self, engine: StackedEngine) -> "StackedProgram":
        """The program for the rows of another engine, see :meth:`StackedEngine.on`.

        What is compiled serves both where tasks have as many rows.
        """
        other = copy.copy(self)
        other.engine, other.problem = engine, engine.problem
        return other

    def check_rows(self, num_steps: int) -> None:
        """Raises ``ValueError`` if so many steps draw more rows than int32 can number."""
        size = max(self.batches.size, self.problem.num_tables * (self.rows_apart or 0))
        if num_steps * size >= 2**31:
            raise ValueError(
                f"Batches.size × train_steps must be below 2³¹ for data on the device, but it is "
                f"{size} × {num_steps}. Pass layout=Layout() to draw rows on the host."
            )

    @override
    def init(self, seed: int) -> step_lib.TrainState:
        params = self.engine.init_params(jax.random.key(seed))
        return step_lib.TrainState(jnp.zeros([], jnp.int32), params, self.tx({}).init(params))

    @override
    def abstract_state(self) -> step_lib.TrainState:
        return jax.eval_shape(lambda: self.init(0))

    @override
    def check(self) -> None:
        state = self.abstract_state()
        self.check_losses(state.params, self.engine.row_shapes(self.batches.size))
        means = Means.none((self.problem.num_tasks,))
        run = jax.tree.map(lambda x: x[0], self.settings([Trial(self.method, 0)]))
        jax.eval_shape(self.stretch(Stretch(1, 1)), run, state, means, 1, self.engine.arrays)

    @override
    def start(self, trials: Sequence[Trial], schedule: Schedule | None = None) -> "StackedSession":
        if schedule is not None:
            self.check_rows(schedule.train_steps)
        # To compile it takes as long as some runs without.
        init = jax.jit(self.init) if len(trials) > _MANY else self.init
        states = jax.tree.map(lambda *x: jnp.stack(x), *(init(t.seed) for t in trials))
        return StackedSession(self, trials, states, Stretch.of(schedule) if schedule else None)

    def stretch(self, size: Stretch) -> Callable[..., tuple[step_lib.TrainState, Means, Any]]:
        """The function that takes a stretch of steps in one run, to be jitted.

        It is ``(run, state, means, blocks, (arrays, reference)) -> (state, means, observed)``, with
        the number of blocks to take, and what was observed ``[steps, D]``, where steps that weren't
        taken are zero.
        """
        batches, data = self.batches, self.engine.data
        num_tables, owned = self.problem.num_tables, self.problem.labels is None
        drawer = drawing.Drawer(
            batches.sampler, batches.size, np.zeros(num_tables, np.int64), sizes=data.sizes
        )
        interval, rows_apart = self.method.interval, self.rows_apart
        observe, _ = self.problem.observe or (lambda params: ()), self.geometry

        def places(tasks):
            return drawing.places(tasks, num_tables, -(-batches.size // num_tables))

        def stretch(run, state, means, blocks, arrays_and_reference):
            rates, key, tasks = run
            problem = self.problem
            if tasks is not None:
                assert isinstance(problem, Subset)
                problem = problem.of(tasks)
            step, chosen = self.step_function(self.plan, problem), tasks if owned else None
            arrays, reference = arrays_and_reference
            drawn = drawing.stretch(drawer, key, state.step, size.steps, chosen)
            apart, first = None, state.step // interval
            if rows_apart is not None:
                # One draw for each measurement in the stretch.
                other, count = jax.random.fold_in(key, 2), -(-size.steps // interval) + 1
                even = dataclasses.replace(drawer, sampler="balanced", size=num_tables * rows_apart)
                apart = drawing.stretch(even, other, first, count, chosen)

            def one_step(carry, drawn):
                state, means = carry

                def take(draw):
                    tasks = draw.tasks if chosen is None else chosen[draw.tasks]
                    return data.take(arrays, key, state.step, tasks, draw.indices)

                def measured():
                    now = jax.tree.map(lambda x: x[state.step // interval - first], apart)
                    # They are sorted by task, or table.
                    return take(
                        jax.tree.map(lambda x: x.reshape(num_tables, -1).T.reshape(-1), now)
                    )

                batch = Batch(
                    rows=take(drawn),
                    tasks=drawn.tasks,
                    expected=problem.labelled(jnp.asarray(drawer.expected(drawn.tasks))),
                    measured=None if apart is None else measured,
                    by_task=places(drawn.tasks) if owned else None,
                    reference=reference,
                    key=step_lib.random_key(key) if problem.draws_at_random else None,
                )
                state, losses = step(rates, state, batch)
                return (state, means.including(losses)), observe(state.params)

            def one_block(block, carry):
                carry, seen = carry
                rows = jax.tree.map(lambda x: x[block], by_block)
                carry, new = jax.lax.scan(one_step, carry, rows)
                return carry, jax.tree.map(lambda x, y: x.at[block].set(y), seen, new)

            split = (size.steps // size.block, size.block)
            by_block = jax.tree.map(lambda x: x.reshape(*split, *x.shape[1:]), drawn)
            seen = jax.tree.map(
                lambda x: jnp.zeros((*split, *x.shape), x.dtype),
                jax.eval_shape(observe, state.params),
            )
            (state, means), seen = jax.lax.fori_loop(0, blocks, one_block, ((state, means), seen))
            return state, means, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), seen)

        return stretch

    def settings(self, trials: Sequence[Trial]) -> Runs:
        """What tells R runs from each other, arrays ``[R, ...]``."""
        values = [trial.method.rates() for trial in trials]
        rates = {
            name: jnp.asarray([v[name] for v in values], float) for name in self.method.rates()
        }
        keys = jnp.stack([step_lib.run_key(t.seed) for t in trials])
        tasks = None
        if isinstance(self.problem, Subset):
            places = [self.problem.tasks if t.tasks is None else t.tasks for t in trials]
            tasks = jnp.asarray(np.array(places), jnp.int32)
        return Runs(rates, keys, tasks)

    def run(
        self,
        runs: Runs,
        states: step_lib.TrainState,
        num_steps: int,
        means: Means | None = None,
        size: Stretch | None = None,
    ) -> tuple[step_lib.TrainState, Means, Any, float]:
        """Takes some steps in R runs, from states ``[R, ...]`` whose buffers are reused.

        ``runs`` is what :meth:`settings` gives, and ``size`` that of the compiled program, by
        default for so many steps. Returns the new states, the means of the losses so far, ``[R,
        N]``, what was observed ``[R, steps, D]``, and the seconds it took, without compilation.
        """
        size = size or Stretch(num_steps, 1)
        so_far = means or Means.none((len(runs.key), self.problem.num_tasks))
        blocks = np.int32(num_steps // size.block)
        arguments: Any = (runs, states, so_far, blocks, self.engine.arrays)
        key = (len(runs.key), size, *np.asarray(self.engine.data.sizes).tolist())
        if key not in self._stretches:
            jitted = jax.jit(self.engine.together(self.stretch(size)), donate_argnums=(1, 2))
            self._stretches[key] = jitted.lower(*arguments).compile()
        began = time.perf_counter()
        states, found, seen = self._stretches[key](*arguments)
        preemption.wait(found)
        states, found, seen = jax.block_until_ready((states, found, seen))
        seconds = time.perf_counter() - began
        if num_steps < size.steps:
            seen = jax.tree.map(lambda x: np.asarray(x)[:, :num_steps], seen)
        return states, found, seen, seconds

    def compiled(self) -> list[Any]:
        """The compiled stretches so far, for their memory analysis."""
        return list(self._stretches.values())


class StackedSession(engine_lib.Session):
    """R runs of one program, with states ``[R, ...]``."""

    states: step_lib.TrainState
    step: int

    def __init__(
        self,
        program: StackedProgram,
        trials: Sequence[Trial],
        states: step_lib.TrainState,
        size: Stretch | None,
    ):
        self._program, self._num_runs = program, len(trials)
        self._runs = program.settings(trials)
        self.problems: Sequence[Problem] = [program.problem_of(trial) for trial in trials]
        self.states, self.step = states, 0
        self._held: dict[int, step_lib.TrainState] = {}
        self._size, self._steps_per_second = size, 0.0
        # Since the last evaluation, each [R, steps, D]; and those before it, [R, steps, D].
        self._observing: list[np.ndarray] = []
        self._observed: np.ndarray | None = None
        self._means = self._no_means()

    def _no_means(self) -> Means:
        return Means.none((self._num_runs, self._program.problem.num_tasks))

    @override
    def advance(self, until: int, preempted: Callable[[int], bool], progress: Any) -> float:
        self._program.check_rows(until)
        size, began, seconds = self._size or Stretch(until - self.step, 1), self.step, 0.0
        while self.step < until:
            # A shorter schedule may have ended within a block of this one.
            rest = (until - self.step) % size.block
            part = Stretch(rest, 1) if rest else size
            # In blocks: one, until it is known how long it takes.
            most = max(int(preemption.SECONDS * self._steps_per_second) // part.block, 1)
            num_steps = min(most * part.block, until - self.step, part.steps)
            self.states, self._means, seen, taken = self._program.run(
                self._runs, self.states, num_steps, self._means, part
            )
            self._observing += [] if isinstance(seen, tuple) else [np.asarray(seen)]
            self._steps_per_second = num_steps / max(taken, 1e-9)
            self.step, seconds = self.step + num_steps, seconds + taken
            progress.update(num_steps * self._num_runs)
            if self.step < until and preempted(self.step):
                break
        for index, state in self._held.items():
            self.states = _with_run(self.states, index, state)
        return seconds / ((self.step - began) * self._num_runs)

    @override
    def evaluated(self) -> np.ndarray:
        values, counts = map(np.asarray, self._means)
        self._means = self._no_means()
        seen, self._observing = self._observing, []
        self._observed = np.concatenate(seen, axis=1) if seen else None
        return np.where(counts > 0, values, np.nan)

    @override
    def state(self, index: int, states: Any = None) -> step_lib.TrainState:
        states = self.states if states is None else states
        return _of_run(states, index)

    @override
    def hold(self, index: int) -> None:
        self._held[index] = self.state(index)

    @override
    def observed(self, index: int) -> np.ndarray | None:
        return None if self._observed is None else self._observed[index]

    @override
    def record(self) -> dict[str, Any]:
        # Something only where a stretch was broken off.
        return {
            "means": [x.tolist() for x in self._means],
            "observed": [_json(x) for x in self._observing],
        }

    @override
    def load(self, states: step_lib.TrainState, record: Mapping[str, Any]) -> None:
        self.load_some(states, record, range(self._num_runs))

    @override
    def load_some(
        self, states: step_lib.TrainState, record: Mapping[str, Any], chosen: Sequence[int]
    ) -> None:
        runs = np.array(chosen)
        if runs.tolist() != list(range(len(states.step))):
            states = jax.tree.map(lambda x: jnp.asarray(x[runs]), states)
        self.states, self.step = states, int(np.max(states.step))
        values, counts = (np.array(x)[runs] for x in record["means"])
        self._means = Means(jnp.asarray(values, jnp.float32), jnp.asarray(counts, jnp.int32))
        self._observing = [np.array(x, np.float32)[runs] for x in record["observed"]]


def _json(values: np.ndarray) -> list[Any]:
    """Without NaN, which JSON doesn't have, and which NumPy makes of None again."""
    found = values.astype(np.float64).astype(object)
    found[~np.isfinite(values)] = None
    return found.tolist()


# One call instead of one for each array.
@jax.jit
def _of_run(states, index):
    return jax.tree.map(lambda x: x[index], states)


@jax.jit
def _with_run(states, index, state):
    return jax.tree.map(lambda x, y: x.at[index].set(y), states, state)

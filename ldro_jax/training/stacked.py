"""Several runs as one compiled program on one device, which holds all data.

A stretch of steps is one ``scan``, which draws its batches itself. Runs that differ in rates and
seeds alone are trained together: under ``vmap`` on accelerators, where one small model leaves most
of the device idle, and one after the other on CPU.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.core import meta
from typing_extensions import override

from ldro_jax import transform
from ldro_jax.problems.base import OnDevice, Problem
from ldro_jax.records import traced
from ldro_jax.tasks import draws, sampling
from ldro_jax.training import engine
from ldro_jax.training import step as step_lib
from ldro_jax.training.method import Method


class StackedProgram(engine.Program):
    """A problem and a method, compiled once for all rates and seeds; see the module.

    Args:
      problem: what is trained; it has its rows on the device.
      optimizer: the Optax optimizer to chain after the weighting.
      batches: how they are drawn.
      method: how to weigh the tasks.
      together: how runs are trained together, ``"vmap"`` or ``"map"``; by default what suits the
        backend.

    Raises:
      ValueError: if a setting is out of range, or needs the other engine.
    """

    rows_from = "None, with rows from the device"

    def __init__(
        self,
        problem: Problem,
        optimizer: optax.GradientTransformation,
        batches: engine.Batches,
        method: Method,
        *,
        together: str | None = None,
    ):
        if together is None:
            together = "map" if jax.default_backend() == "cpu" else "vmap"
        self._together = {"vmap": _vmapped, "map": _mapped}[together]
        batches.check(problem.num_tasks, 1)
        assert problem.on_device is not None
        self._data: OnDevice = problem.on_device
        self._arrays = jax.device_put((self._data.arrays, problem.reference))
        self._make_params = jax.jit(lambda key: meta.unbox(problem.init(key)))
        super().__init__(problem, optimizer, batches, method)

    @override
    def _set_method(self, method: Method) -> None:
        if method.sampling != "uniform":
            raise ValueError(
                f"sampling must be 'uniform' for data on the device, but it is "
                f"{method.sampling!r}. Pass layout=Layout() to train on rows from the host."
            )
        super()._set_method(method)
        self._stretches: dict[tuple[int, int], Callable] = {}

    def check_rows(self, num_steps: int) -> None:
        """Raises ``ValueError`` if so many steps draw more rows than int32 can number."""
        size = max(self.batches.size, self.problem.num_tasks * (self._rows_apart or 0))
        if num_steps * size >= 2**31:
            raise ValueError(
                f"batch_size × train_steps must be below 2³¹ for data on the device, but it is "
                f"{size} × {num_steps}. Pass layout=Layout() to draw rows on the host."
            )

    def init(self, seed: int) -> step_lib.TrainState:
        """The state before the first step, on which no method has an influence."""
        params = self._make_params(jax.random.key(seed))
        return step_lib.TrainState(jnp.zeros([], jnp.int32), params, self._tx({}).init(params))

    @override
    def row_shapes(self, size: int) -> Any:
        return jax.eval_shape(self._data.take, *self._to_take(size))

    @override
    def digest_of_rows(self) -> str:
        taken = traced.of(self._data.take, *self._to_take(self.batches.size))
        if "content" in self.problem.identity:
            return taken
        return taken + traced.of_values(self._data.sizes, jax.tree.leaves(self._data.arrays))

    def _to_take(self, size: int) -> tuple[Any, ...]:
        """Shapes of what ``take`` is given for so many rows."""
        tasks = jax.ShapeDtypeStruct((size,), jnp.int32)
        key, step = jax.eval_shape(lambda: jax.random.key(0)), jax.ShapeDtypeStruct((), jnp.int32)
        return self._data.arrays, key, step, tasks, tasks

    @override
    def check(self) -> None:
        state = jax.eval_shape(lambda: self.init(0))
        self._check_losses(state.params, self.row_shapes(self.batches.size))
        rates = {name: jnp.zeros([], float) for name in self.method.rates()}
        jax.eval_shape(self.stretch(1), rates, state, jax.random.key(0), self._arrays)
        self.problem.check_evaluation(state.params)

    @override
    def start(self, trials: Sequence[engine.Trial]) -> "StackedSession":
        states = jax.tree.map(lambda *x: jnp.stack(x), *(self.init(t.seed) for t in trials))
        return StackedSession(self, trials, states)

    def stretch(self, num_steps: int) -> Callable[..., tuple[step_lib.TrainState, Any, Any]]:
        """The function that takes a stretch of steps in one run, to be jitted.

        It is ``(rates, state, key, (arrays, reference)) -> (state, losses [N], observed)``, means
        over the steps and what was observed, ``[steps, D]``.
        """
        batches, sizes, num_tasks = self.batches, self._data.sizes, self.problem.num_tasks
        draw = sampling.SAMPLERS[batches.sampler]
        on_average = draws.expected_if_uniform(sizes, batches.size)
        interval, rows_apart = self.method.interval, self._rows_apart
        observe = self.problem.observe or (lambda params: ())
        step = self._train_step()

        def stretch(rates, state, key, arrays_and_reference):
            arrays, reference = arrays_and_reference
            drawn = draw(key, state.step, num_steps, sizes, batches.size)
            apart, first = None, state.step // interval
            if rows_apart is not None:
                # One draw for each measurement in the stretch.
                other, count = jax.random.fold_in(key, 2), -(-num_steps // interval) + 1
                apart = sampling.balanced(other, first, count, sizes, num_tasks * rows_apart)

            def one_step(state, drawn):
                def take(draw):
                    return self._data.take(arrays, key, state.step, draw.task, draw.index)

                def measured():
                    now = jax.tree.map(lambda x: x[state.step // interval - first], apart)
                    # They are sorted by task.
                    return take(jax.tree.map(lambda x: x.reshape(num_tasks, -1).T.reshape(-1), now))

                expected = jnp.asarray(on_average)
                if batches.sampler == "balanced":
                    expected = jnp.bincount(drawn.task, length=num_tasks).astype(jnp.float32)
                batch = step_lib.Batch(
                    rows=take(drawn),
                    tasks=drawn.task,
                    expected=expected,
                    measured=None if apart is None else measured,
                    by_task=sampling.places(drawn.task, num_tasks, -(-batches.size // num_tasks)),
                    reference=reference,
                )
                state, losses = step(rates, state, batch)
                return state, (losses, observe(state.params))

            state, (losses, seen) = jax.lax.scan(one_step, state, drawn)
            return state, jnp.nanmean(losses, axis=0), seen

        return stretch

    def run(self, trials: Sequence[engine.Trial], states: step_lib.TrainState, num_steps: int):
        """Takes a stretch of steps in R runs, from states ``[R, ...]`` whose buffers are reused.

        Returns the new states, the mean losses ``[R, N]``, what was observed ``[R, steps, D]``, and
        the seconds of one step of one run, without compilation.
        """
        values = [trial.method.rates() for trial in trials]
        rates = {
            name: jnp.asarray([v[name] for v in values], float) for name in self.method.rates()
        }
        # Not the keys that the parameters come from.
        keys = jnp.stack([jax.random.fold_in(jax.random.key(t.seed), 1) for t in trials])
        arguments = (rates, states, keys, self._arrays)
        size = (len(trials), num_steps)
        if size not in self._stretches:
            jitted = jax.jit(self._together(self.stretch(num_steps)), donate_argnums=1)
            self._stretches[size] = jitted.lower(*arguments).compile()
        began = time.perf_counter()
        states, losses, seen = jax.block_until_ready(self._stretches[size](*arguments))
        seconds = (time.perf_counter() - began) / (num_steps * len(trials))
        return states, losses, seen, seconds

    def compiled(self) -> list[Any]:
        """The compiled stretches so far, for their memory analysis."""
        return list(self._stretches.values())


class StackedSession(engine.Session):
    """R runs of one program, with states ``[R, ...]``."""

    def __init__(
        self,
        program: StackedProgram,
        trials: Sequence[engine.Trial],
        states: step_lib.TrainState,
    ):
        self._program, self._trials = program, trials
        self.states, self.step = states, 0
        self._losses: Any = None
        self._observed: Any = None

    @override
    def advance(self, until: int, preempted: Callable[[int], bool], progress: Any) -> float:
        del preempted  # a stretch doesn't stop early
        self._program.check_rows(until)
        num_steps = until - self.step
        self.states, self._losses, seen, seconds = self._program.run(
            self._trials, self.states, num_steps
        )
        self._observed = None if isinstance(seen, tuple) else np.asarray(seen)
        self.step = until
        progress.update(num_steps * len(self._trials))
        return seconds

    @override
    def evaluated(self) -> np.ndarray:
        return np.asarray(self._losses)

    @override
    def state(self, index: int, states: Any = None) -> step_lib.TrainState:
        states = self.states if states is None else states
        return jax.tree.map(lambda x: x[index], states)

    @override
    def observed(self, index: int) -> np.ndarray | None:
        return None if self._observed is None else self._observed[index]

    @override
    def load(self, states: step_lib.TrainState, record: Mapping[str, Any]) -> None:
        del record
        self.states, self.step = states, int(states.step[0])


def _vmapped(stretch):
    def together(rates, states, keys, arrays):
        step = states.step[0]

        def one(rates, state, key):
            # A count that is the same for all keeps the measuring of the interaction conditional:
            # with one of its own for each run it would be done, and thrown away, in every step.
            return stretch(rates, _with_count(state, step), key, arrays)

        return jax.vmap(one)(rates, states, keys)

    return together


def _mapped(stretch):
    def together(rates, states, keys, arrays):
        return jax.lax.map(lambda x: stretch(*x, arrays), (rates, states, keys))

    return together


def _with_count(state: step_lib.TrainState, step: jax.Array) -> step_lib.TrainState:
    """The state with the number of steps taken given from outside."""

    def replace(leaf):
        return leaf._replace(count=step) if isinstance(leaf, transform.WeightedState) else leaf

    opt_state = jax.tree.map(
        replace, state.opt_state, is_leaf=lambda x: isinstance(x, transform.WeightedState)
    )
    return state._replace(step=step, opt_state=opt_state)

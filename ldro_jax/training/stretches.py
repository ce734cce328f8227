"""Stretches of steps as compiled programs: their sizes, and how several runs share one."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ldro_jax import transform
from ldro_jax.training import step as step_lib
from ldro_jax.training.schedule import Schedule

# Steps in a block, and steps that rows are drawn for at a time, at most.
_LONGEST_BLOCK, _MOST_STEPS = 8, 10_000


class Stretch(NamedTuple):
    """The size of a compiled program, which takes any number of blocks of steps up to its own.

    How many is an argument of the program. So a stretch can be taken in parts of some seconds, with
    signals heeded in between, and its numbers stay the same to the bit.

    Attributes:
      steps: how many steps it draws batches for, a multiple of ``block``.
      block: steps that are always taken together. Accelerators are asked after each block whether
        there is another, which takes some of them as long as a small kernel.
    """

    steps: int
    block: int

    @classmethod
    def of(cls, schedule: Schedule) -> "Stretch":
        """The size that suits a schedule, on which alone it depends: a resumed run has the same."""
        interval = min(schedule.eval_interval, schedule.train_steps)
        whole = math.gcd(interval, schedule.train_steps)
        block = max(n for n in range(1, _LONGEST_BLOCK + 1) if whole % n == 0)
        return cls(min(interval, _MOST_STEPS // block * block), block)


class Runs(NamedTuple):
    """What tells runs of one program from each other, arrays ``[R, ...]``; or of one of them.

    Attributes:
      rates: the rates of the method by name.
      key: what its rows are drawn with.
      tasks: which tasks of the whole problem it trains, int32 ``[M]``; ``None`` where all runs
        train all.
    """

    rates: dict[str, jax.Array]
    key: jax.Array
    tasks: jax.Array | None


class Means(NamedTuple):
    """Mean losses over the steps in which they were finite.

    Attributes:
      values: ``[N]``; zero before the first.
      counts: the number of these steps, int32 ``[N]``.
    """

    values: jax.Array
    counts: jax.Array

    @classmethod
    def none(cls, shape: tuple[int, ...]) -> "Means":
        """Before the first step."""
        return cls(*_zeros(shape))

    def including(self, losses: jax.Array) -> "Means":
        """With one more step."""
        finite = jnp.isfinite(losses)
        counts = self.counts + finite.astype(jnp.int32)
        change = (losses - self.values) / jnp.maximum(counts, 1).astype(jnp.float32)
        return Means(self.values + jnp.where(finite, change, 0).astype(jnp.float32), counts)


# One call instead of six: the trainer makes some at every evaluation.
@functools.partial(jax.jit, static_argnums=0)
def _zeros(shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    return jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.int32)


def vmapped(stretch: Callable[..., Any]) -> Callable[..., Any]:
    """Many runs at once, for accelerators."""

    def together(runs, states, means, blocks, arrays):
        # That of a run that has ended stays behind.
        step = jnp.max(states.step)

        def one(run, state, means):
            # A count that is the same for all keeps the measuring of the interaction conditional:
            # with one of its own for each run it would be done, and thrown away, in every step.
            return stretch(run, _with_count(state, step), means, blocks, arrays)

        return jax.vmap(one)(runs, states, means)

    return together


def mapped(stretch: Callable[..., Any]) -> Callable[..., Any]:
    """One run after the other, for CPU."""

    def together(runs, states, means, blocks, arrays):
        return jax.lax.map(lambda run: stretch(*run, blocks, arrays), (runs, states, means))

    return together


def _with_count(state: step_lib.TrainState, step: jax.Array) -> step_lib.TrainState:
    """The state with the number of steps taken given from outside."""

    def replace(leaf):
        return leaf._replace(count=step) if isinstance(leaf, transform.WeightedState) else leaf

    opt_state = jax.tree.map(
        replace, state.opt_state, is_leaf=lambda x: isinstance(x, transform.WeightedState)
    )
    return state._replace(step=step, opt_state=opt_state)

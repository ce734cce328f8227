"""The state of a task weighting in an optimizer, and how to find it there."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ldro_jax.runtime import leaves
from ldro_jax.weighting import base as weighting_base


class WeightedState(NamedTuple):
    """State of :func:`ldro_jax.transform.weighted`: float32 unless the parameters are float64.

    Attributes:
      count: number of steps taken, int32.
      weights: the task weights of the last step, ``[N]``; uniform before the first.
      losses: the last finite loss of each task, ``[N]``; zero before the first.
      expected_losses: the losses after the step as the weighting expected them when it had chosen
        the weights, ``[N]``; the largest is the value of Lookahead-DRO's game. The losses as they
        are if it doesn't look ahead, or asks for products of the interaction. Zero, as in
        ``losses``, for a task not ``seen``.
      seen: the tasks that have had a finite loss, bool ``[N]``.
      measured: the tasks whose interactions have been measured, bool ``[N]``; none where the
        weighting asks for products of them, which its own state holds.
      interaction: the last interaction matrix ``A_ij = ⟨∇ℓ_i, ∇ℓ_j⟩``, raw, ``[N, N]``; zeros
        before the first, and where there are only products of it.
      noise: variance of each task's minibatch gradient, the sum over the parameters, when the
        interaction was measured last, ``[N]``; zeros unless the strategy measures it ("split").
      descent: sum over all steps of ``A w``, how much each loss falls to first order with a
        learning rate of 1 along the weighted gradient, ``[N]``; zeros without a matrix.
      nonfinite: how often the loss of each task was not finite, int32 ``[N]``.
      negative: how often the loss of each task was below zero though the weighting needs positive
        losses, int32 ``[N]``; the weights stayed in these steps.
      nonfinite_streak: number of steps in a row, up to the last one, in which one was not, or the
        weighting's weights weren't, int32.
      unmeasured: how often the interactions of each task could not be measured when they were due,
        int32 ``[N]``: its gradient was not finite, or its norm so large or small that the square
        over- or underflows (above 1e19 or below 1e-19 in float32). What could not be measured keeps
        its last value.
      unsolved: in how many steps the weighting gave no weights, int32: its solver ended without a
        solution, and they were the best that it had; or they weren't finite, and stayed as they
        were.
      weighting: the weighting's own state.
    """

    count: jax.Array
    weights: jax.Array
    losses: jax.Array
    expected_losses: jax.Array
    seen: jax.Array
    measured: jax.Array
    interaction: jax.Array
    noise: jax.Array
    descent: jax.Array
    nonfinite: jax.Array
    negative: jax.Array
    nonfinite_streak: jax.Array
    unmeasured: jax.Array
    unsolved: jax.Array
    weighting: Any


def initial(weighting: weighting_base.Weighting, num_tasks: int, dtype: Any) -> WeightedState:
    """The state before the first step, with losses, weights and interactions of a dtype."""
    return WeightedState(
        count=jnp.zeros([], jnp.int32),
        weights=jnp.full((num_tasks,), 1 / num_tasks, dtype),
        losses=jnp.zeros((num_tasks,), dtype),
        expected_losses=jnp.zeros((num_tasks,), dtype),
        seen=jnp.zeros((num_tasks,), bool),
        measured=jnp.zeros((num_tasks,), bool),
        interaction=jnp.zeros((num_tasks, num_tasks), dtype),
        noise=jnp.zeros((num_tasks,), dtype),
        descent=jnp.zeros((num_tasks,), dtype),
        nonfinite=jnp.zeros((num_tasks,), jnp.int32),
        negative=jnp.zeros((num_tasks,), jnp.int32),
        nonfinite_streak=jnp.zeros([], jnp.int32),
        unmeasured=jnp.zeros((num_tasks,), jnp.int32),
        unsolved=jnp.zeros([], jnp.int32),
        # A buffer of its own for each field, so that a step can be given them all.
        weighting=jax.tree.map(jnp.copy, weighting.init(num_tasks, dtype)),
    )


# What every state of a weighting has had in every version.
_FIELDS = {"count", "weights", "losses", "interaction"}
_HOW_TO_RESTORE = (
    "Restore it into the state of the same optimizer, target = tx.init(params): with "
    "orbax.checkpoint.args.StandardRestore(target), flax.serialization.from_state_dict(target, "
    "restored) or from_bytes(target, data)."
)


def check(state: Any, weighting: weighting_base.Weighting) -> None:
    """Raises ``ValueError``, saying how to restore a state, unless this is what ``init`` made."""
    if isinstance(state, WeightedState):
        num_tasks, dtype = state.weights.size, state.weights.dtype
        expected = jax.eval_shape(lambda: weighting.init(num_tasks, dtype))
        if jax.tree.structure(state.weighting) != jax.tree.structure(expected):
            raise ValueError(
                "update was given the state of another weighting, or of this one with another way "
                "to measure the interaction: with interaction='products' it keeps other things. "
                "Begin with tx.init(params)."
            )
    else:
        raise ValueError(
            "update needs the WeightedState that init makes, as its second argument, but it is a "
            f"{type(state).__name__}. Was it restored without its types? {_HOW_TO_RESTORE}"
        )


def check_types(opt_state: Any, fields: set[str]) -> None:
    """Raises ``ValueError`` for a state that was restored as plain dicts.

    Args:
      opt_state: the state of an optimizer, in which something wasn't found.
      fields: of what was looked for.
    """

    def is_plain(node):
        return isinstance(node, Mapping) and fields <= set(node)

    if any(map(is_plain, jax.tree.leaves(opt_state, is_leaf=is_plain))):
        raise ValueError(
            "The optimizer state was restored without its types: it has a plain dict of "
            f"{', '.join(sorted(fields))}. {_HOW_TO_RESTORE}"
        )


def unsolved(state: WeightedState, inner: Any, lost: jax.Array) -> jax.Array:
    """In how many steps the weighting gave no weights, int32, with this step.

    Args:
      state: before the step.
      inner: the weighting's state after it, with those of wrapped weightings in it.
      lost: whether its weights weren't finite, bool.
    """
    return state.unsolved + _more("unsolved", state, inner) + lost.astype(jnp.int32)


def unmeasured(state: WeightedState, inner: Any, lost: jax.Array) -> jax.Array:
    """How often the interactions of each task could not be measured, int32 ``[N]``, with this step.

    Args:
      state: before the step.
      inner: the weighting's state after it.
      lost: for which tasks they couldn't be now, bool ``[N]``, besides those that it counts itself.
    """
    return state.unmeasured + _more("unmeasured", state, inner) + lost.astype(jnp.int32)


def _more(name: str, state: WeightedState, inner: Any) -> jax.Array:
    """By how much the counts of a name in the state of a weighting have grown."""

    def counted(weighting_state):
        paths = jax.tree_util.tree_leaves_with_path(weighting_state)
        counts = [x for path, x in paths if getattr(path[-1:] and path[-1], "name", "") == name]
        return sum(counts, start=jnp.zeros([], jnp.int32))

    return counted(inner) - counted(state.weighting)


def find_state(opt_state: Any) -> WeightedState:
    """The state of :func:`ldro_jax.transform.weighted`, wherever it sits in an optimizer's state.

    Args:
      opt_state: the state of a chain or wrapper that holds one, or of a ``flax.nnx.Optimizer``;
        where that holds variables, arrays come back.

    Raises:
      ValueError: if there is none, or more than one, or it was restored without its types.
    """
    states = leaves.of_type(opt_state, WeightedState)
    if not states:
        check_types(opt_state, _FIELDS)
    if len(states) != 1:
        raise ValueError(
            f"Expected one WeightedState in the optimizer state, but found {len(states)}. Was the "
            "optimizer built with ldro.transform() or another transformation of this library?"
        )
    if not _is_variable(states[0].weights):
        return states[0]
    return jax.tree.map(
        lambda x: x.get_value() if _is_variable(x) else x, states[0], is_leaf=_is_variable
    )


def _is_variable(leaf) -> bool:
    # Of Flax NNX, which isn't needed otherwise.
    return hasattr(leaf, "get_value")

"""What the interaction matrix says about a training: conflicts, similarity, noise."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ldro_jax.transform import state as state_lib
from ldro_jax.weighting import gram

# What is recorded at every evaluation, in this order.
NAMES = ("conflicts", "similarity", "noise", "effective_tasks")


def diagnose(opt_state: Any) -> Mapping[str, jax.Array]:
    """Numbers that tell how the tasks get along, from the last step's statistics.

    Returns:
      Scalars by name. All but the last are NaN where the interaction was not measured.

      * ``conflicts``: the share of pairs of tasks of which a step for one raises the other's loss.
      * ``similarity``: the mean cosine between the gradients of two tasks.
      * ``noise``: how much of the squared gradient of a minibatch is noise, mean over the tasks,
        where the strategy measures it ("split"); NaN elsewhere.
      * ``effective_tasks``: as many tasks of even weight as have the entropy of the weights.

    Raises:
      ValueError: if the optimizer's state holds no weighting, or more than one.
    """
    return numbers(state_lib.find_state(opt_state))


def numbers(state: state_lib.WeightedState) -> Mapping[str, jax.Array]:
    """The numbers of :func:`diagnose` from the state of the task weighting itself."""
    return _numbers(state.weights, state.interaction, state.noise, state.measured)


# One call instead of twenty: the trainer makes one for each run and evaluation.
@jax.jit
def _numbers(weights, matrix, noise, measured):
    pairs = ~jnp.eye(matrix.shape[0], dtype=bool) & measured[:, None] & measured[None, :]
    squares = jnp.maximum(jnp.diagonal(matrix), 0)
    noise = jnp.maximum(noise, 0)
    unknown = jnp.array(jnp.nan, matrix.dtype)
    is_measured = (matrix != 0).any() & pairs.any()

    def mean_of_pairs(values):
        mean = jnp.sum(jnp.where(pairs, values, 0)) / jnp.maximum(
            jnp.sum(pairs, dtype=values.dtype), 1
        )
        return jnp.where(is_measured, mean, unknown)

    sizes = jnp.abs(weights)
    share = sizes * gram.inverse_or_zero(jnp.sum(sizes))
    return {
        "conflicts": mean_of_pairs((matrix < 0).astype(matrix.dtype)),
        "similarity": mean_of_pairs(gram.cosines(matrix)),
        "noise": jnp.where(
            (noise > 0).any(),
            jnp.mean(noise * gram.inverse_or_zero(squares + noise), where=measured),
            unknown,
        ),
        "effective_tasks": jnp.exp(jnp.sum(jax.scipy.special.entr(share))),
    }

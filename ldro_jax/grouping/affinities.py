r"""Affinities: what training a task j does to a task i, measured while all are trained together.

In all of them the affected task is in the row: ``Z[i, j]`` is what a step for task j does to the
loss of task i. They come from the interaction that is measured in every k-th step, as means over
these steps:

* *first order*, ``A_ij / ℓ_i``: by which share loss i falls in a small step for j, divided by the
  step size. It is the limit of TAG's affinity for small steps, and ETAP's score. With
  ``interaction.lookahead(step_size)`` in the place of A it is TAG's own, from the losses after the
  step. In the geometry of the optimizer A is ``G P Gᵀ``, and the step is the optimizer's.
* *cosine*, ``A_ij / √(A_ii A_jj)``, of the gradients.

References:
  Fifty et al., *Efficiently Identifying Task Groupings for Multi-Task Learning*, NeurIPS 2021.
  Ayman et al., *ETAP: Ensemble Task Affinity Predictor*, 2026.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ldro_jax.interaction.lookahead import losses_after
from ldro_jax.runtime import checks, leaves
from ldro_jax.weighting import base, registry

# The affinities that are tracked, in the order of their axis.
KINDS = ("first order", "cosine")

# Steps between two measurements, for a method that measures none itself.
_INTERVAL = 100


class AffinityState(NamedTuple):
    """State of :func:`tracked`.

    Attributes:
      means: of the :data:`KINDS`, over the steps in which they were measured, ``[2, N, N]``.
      counts: in how many steps each was, int32 ``[2, N, N]``.
      inner: state of the weighting.
    """

    means: jax.Array
    counts: jax.Array
    inner: Any


def tracked(weighting: base.Weighting) -> base.Weighting:
    """A weighting that keeps the means of the affinities, and weighs as before.

    :func:`affinity` finds them in the state of the optimizer. They are measured as often as the
    interaction is: in every 100th step unless the method uses it or
    ``interaction_interval`` says so. With ``lagged`` each matrix is set against the losses of the
    step after it. A task of which a loss isn't positive has no first order in that step.

    Args:
      weighting: what to wrap, such as ``weighting.average()``.

    Raises:
      ValueError: if it isn't a weighting, or asks for products of the interaction.
    """
    base.check_weighting(weighting)
    if weighting.uses_products:
        raise ValueError("tracked needs the interaction matrix, and the weighting uses products.")

    def init(num_tasks, dtype=jnp.float32):
        shape = (len(KINDS), num_tasks, num_tasks)
        inner = weighting.init(num_tasks, dtype)
        return AffinityState(jnp.zeros(shape, dtype), jnp.zeros(shape, jnp.int32), inner)

    def update(statistics, state):
        weights, inner = weighting.update(statistics, state.inner)
        matrix, losses = statistics.interaction, statistics.losses
        fresh = base.known_tasks(statistics)
        if statistics.fresh is not None:
            fresh &= statistics.fresh

        def including():
            lengths = jnp.sqrt(jnp.maximum(jnp.diagonal(matrix), 0))
            # Divided twice: the product of two squares may underflow.
            cosines = matrix / lengths[:, None] / lengths[None, :]
            new = jnp.stack([matrix / losses[:, None], cosines])
            # A quotient by zero isn't finite.
            usable = jnp.isfinite(new).at[0].min((losses > 0)[:, None])
            counted = usable & (fresh[:, None] & fresh[None, :])[None]
            counts = state.counts + counted.astype(jnp.int32)
            change = (new - state.means) / jnp.maximum(counts, 1).astype(new.dtype)
            return state.means + jnp.where(counted, change, 0), counts

        # Most steps measure nothing.
        means, counts = jax.lax.cond(fresh.any(), including, lambda: (state.means, state.counts))
        return weights, AffinityState(means, counts, inner)

    # Named as what it wraps, in errors.
    update.__qualname__ = getattr(weighting.update, "__qualname__", "update")
    interval = weighting.default_interval if weighting.uses_interaction else _INTERVAL
    return weighting._replace(
        init=init,
        update=update,
        uses_interaction=True,
        default_interval=interval,
        by_products=None,
    )


def tracking(method: registry.Named) -> Callable[..., base.Weighting]:
    """The same for a method by its name or from its factory, with the same hyperparameters."""
    make = registry.factory(method)

    @functools.wraps(make)
    def make_tracked(**hyperparameters):
        return tracked(make(**hyperparameters))

    return make_tracked


def find_state(state: Any) -> AffinityState | None:
    """The state of :func:`tracked` in that of an optimizer; ``None`` if there is none."""
    return next(iter(leaves.of_type(state, AffinityState)), None)


def affinity(opt_state: Any, kind: str = "first order") -> np.ndarray:
    """The mean affinity over the steps so far, from the state of an optimizer.

    Args:
      opt_state: of an optimizer with a :func:`tracked` weighting.
      kind: one of :data:`KINDS`.

    Returns:
      ``[N, N]``, the affected task in the row; NaN for a pair that was never measured.

    Raises:
      ValueError: if there is no such state or kind.
    """
    checks.one_of("kind", kind, KINDS)
    state = find_state(opt_state)
    if state is None:
        raise ValueError(
            "opt_state has no affinities. Build the optimizer with "
            "transform.weighted(grouping.tracked(weighting.average()), num_tasks)."
        )
    return means_of(state)[KINDS.index(kind)]


def means_of(state: AffinityState) -> np.ndarray:
    """The means of all :data:`KINDS`, ``[2, N, N]``; NaN for a pair that was never measured."""
    means, counts = np.asarray(state.means), np.asarray(state.counts)
    return np.where(counts > 0, means, np.nan)


def lookahead(
    losses_fn: Callable[[Any], jax.Array], params: Any, step: Callable[[Any], Any]
) -> jax.Array:
    """TAG's affinity at one point: ``Z[i, j] = 1 − ℓ_i(after a step for j) / ℓ_i``.

    What is in the step is yours to say: with momentum and weight decay it is
    ``lambda g: optax.apply_updates(params, tx.update(g, opt_state, params)[0])``, and where
    ``params`` are those that tasks share, it moves these alone.

    Args:
      losses_fn: ``params -> losses [N]``, positive.
      params: where the steps begin.
      step: from the gradient of a task's loss to the parameters after the step.

    Returns:
      ``[N, N]``, the affected task in the row. Divide it by the learning rate to average over
      steps with different ones, as TAG does.
    """
    losses, after = losses_after(losses_fn, params, step)
    return 1 - after / losses[:, None]

"""One training step on rows of any tasks, as a pure function."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ldro_jax import measuring, transform
from ldro_jax.measuring import Batch, LossesOf, Plan
from ldro_jax.measuring import trained as trained_lib
from ldro_jax.transform import averaging

MakeOptimizer = Callable[[Mapping[str, Any]], optax.GradientTransformationExtraArgs]


# Neither a number that rows are drawn by, nor a task's.
_RANDOM = 2**31 - 1


class TrainState(NamedTuple):
    """All that training carries from one step to the next.

    Attributes:
      step: number of steps taken, int32.
      params: the model's parameters.
      opt_state: the optimizer's state, with the task weights in it.
    """

    step: jax.Array
    params: Any
    opt_state: Any

    @property
    def evaluated(self) -> Any:
        """The parameters to evaluate with; see :func:`ldro_jax.ldro.evaluated`."""
        return averaging.evaluated(self.params, self.opt_state)


def train_step(
    losses: LossesOf,
    make_tx: MakeOptimizer,
    plan: Plan,
    *,
    geometry: Callable[[Any], Any] | None = None,
    row_excess: Callable[[Any, Any, Any], jax.Array] | None = None,
    trained: Any = None,
) -> Callable[[Mapping[str, Any], TrainState, Batch], tuple[TrainState, jax.Array]]:
    """Makes the function that takes one step, to be jitted.

    What is trained on is the weighted sum of the tasks' mean losses, however rows are drawn: see
    :func:`ldro_jax.measuring.measure.measure`. The losses that the weights are chosen from are the
    means over the rows in the batch.

    Args:
      losses: what the model says of some rows; see :class:`~ldro_jax.measuring.RowLosses`. Its
        auxiliary output replaces parameters, such as running statistics: a tree like these, with
        ``None`` for those that it leaves to the optimizer.
      make_tx: from rates to an optimizer with a weighting in its chain.
      plan: how to measure losses, gradient and interaction.
      geometry: ``optimizer state -> preconditioner`` that the interaction is measured with, if any.
      row_excess: ``(params, reference, rows [R, ...]) -> excess``, by how much each row is worse
        than a reference, if the weighting asks for it.
      trained: which parameters the optimizer moves, a tree of bools; ``None`` if all. The others
        are not differentiated.

    Returns:
      ``(rates, state, batch) -> (state, losses [N])``; NaN for a task that had no row so far.
    """

    def step(rates, state, batch):
        params = state.params
        preconditioner = None if geometry is None else geometry(state.opt_state)

        def losses_of(params, rows, *keys):
            found = losses(params, rows, *keys)
            if row_excess is None:
                return found
            return found._replace(excess=row_excess(params, batch.reference, rows))

        if batch.key is not None:
            batch = batch._replace(key=jax.random.fold_in(batch.key, state.step))
        if trained is not None:
            params = trained_lib.hide(params, trained)
            preconditioner = trained_lib.hide(preconditioner, trained)
            losses_of = trained_lib.of_part(losses_of, state.params)
        measured = measuring.measure(plan, losses_of, params, batch, preconditioner)
        updates, opt_state = make_tx(rates).update(
            measured.gradients, state.opt_state, state.params, **measured.statistics
        )
        params = optax.apply_updates(state.params, updates)
        found = transform.find_state(opt_state)
        if jax.tree.leaves(measured.auxiliary):
            # A step whose losses aren't finite trains nothing, and may have spoilt these.
            is_bad, moved = ~jnp.isfinite(measured.losses).all(), _of_parts(measured.auxiliary)
            moved = trained_lib.merge(moved, params)
            params = jax.tree.map(lambda new, old: jnp.where(is_bad, old, new), moved, params)
        known = jnp.where(found.seen, found.losses, jnp.nan)
        return TrainState(state.step + 1, params, opt_state), known

    return step


def run_key(seed: jax.typing.ArrayLike) -> jax.Array:
    """What a run draws its rows with; not the key that its parameters come from."""
    return jax.random.fold_in(jax.random.key(seed), 1)


def random_key(key: jax.Array) -> jax.Array:
    """What a run draws at random with in its training passes, from its :func:`run_key`."""
    return jax.random.fold_in(key, _RANDOM)


def _of_parts(stacked: Any) -> Any:
    """What is kept of what each microbatch would leave behind, arrays ``[microbatch, ...]``.

    A running mean that each of them has moved by the same part is then moved by their mean.
    """

    def kept(x):
        return x.mean(axis=0) if jnp.issubdtype(x.dtype, jnp.inexact) else x[-1]

    return jax.tree.map(kept, stacked)

"""Statistics → weights → gradient, as one Optax gradient transformation.

:func:`weighted` joins a :class:`~ldro_jax.weighting.Weighting` and an interaction strategy behind
Optax's contract. In every step it measures the losses of the tasks (one forward pass), refreshes
the interaction matrix if that is due, chooses the weights, and pulls *these* weights back through
the same forward pass (one backward pass): the update is ``Σ_i w_i ∇ℓ_i``, ready for any optimizer.
"""

import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ldro_jax import interaction as interaction_lib
from ldro_jax.interaction import base as interaction_base
from ldro_jax.measuring import refresh
from ldro_jax.measuring import trained as trained_lib
from ldro_jax.runtime import checks, leaves
from ldro_jax.transform import forms, optax_wrappers, reads
from ldro_jax.transform import state as state_lib
from ldro_jax.transform.state import WeightedState, find_state
from ldro_jax.weighting import base as weighting_base
from ldro_jax.weighting import wrappers

__all__ = ["Weighted", "WeightedState", "find_state", "weighted"]


class Weighted(optax.GradientTransformationExtraArgs):
    """What :func:`weighted` makes: a transformation that says how it weighs, for trainers.

    Attributes:
      weighting: the method, with smoothing, total and floor.
      interval: k, the number of steps between two measurements of the interaction; ``None`` if the
        method doesn't use it.
      lagged: whether the weights use the matrix of the step before.
    """

    weighting: weighting_base.Weighting
    interval: int | jax.Array | None
    lagged: bool

    @property
    def every_step(self) -> bool:
        """Whether the interaction is measured in every step."""
        return isinstance(self.interval, int) and self.interval == 1


def weighted(
    weighting: weighting_base.Weighting,
    num_tasks: int,
    *,
    interaction: str | interaction_base.Interaction = "auto",
    interaction_interval: int | None = None,
    lagged: bool = False,
    smoothing: float = 0.0,
    total: float | None = None,
    floor: float = 0.0,
    trainable: Any = None,
) -> Weighted:
    """Trains on the weighted loss ``Σ_i w_i ℓ_i``, with weights chosen anew in every step.

    ``update`` takes the statistics of the tasks in one of four forms, all as keyword arguments:

    ===================  =======================================================================
    tasks                ``loss_fn(params, task_batch) -> scalar`` and ``batch``, every leaf of
                         which is ``[task, example, ...]``; optionally ``interaction_batch``, other
                         examples to measure the interaction on.
    any layout           ``losses_fn(params) -> [N]`` and optionally ``interaction_fn(params) ->
                         [N, N]``, by default the Gram matrix of the Jacobian of ``losses_fn``.
    forward done         ``losses [N]``, ``pullback(weights [N]) -> gradient`` (from ``jax.vjp``)
                         and, if the weighting uses it, ``interaction_fn() -> [N, N]``; with
                         ``lagged`` the pullback may give both, as an ``interaction.Pulled``.
    stacked gradients    ``losses [N]``, and as ``updates`` the task gradients ``[N, ...]``; with
                         "split" also those of the halves, ``[2N]`` and ``[2N, ...]``, those of a
                         task side by side.
    ===================  =======================================================================

    With ``preconditioner``, a pytree like the parameters, the interaction is measured in the
    geometry of the optimizer; see :func:`ldro_jax.ldro.preconditioner`. A weighting that asks for
    it is told the ``excess``, ``[N]``: by how much each task is worse than a reference.

    In the first three ``updates`` is the gradient of whatever belongs to no task (an L2 or a
    load-balancing term), which is added to the result, or ``None``. In all of them ``present``,
    bool ``[N]``, may name the tasks that have examples in this batch: an absent one keeps its last
    loss and adds no gradient. It keeps its last interactions as well, unless those come from an
    ``interaction_batch`` or ``interaction_fn`` that has examples of it: one whose squared length
    is exactly zero there had none. Losses must be means over the examples or tokens of
    their task, in floating point, and that of an absent task any finite number. Where the loss of
    one task looks at the rows of others (batch normalisation with an ``axis_name``), ``losses_fn``
    is the form: ``vmap`` of ``grad`` doesn't give the gradients of the tasks then. A ``pullback``
    may return the gradient in a tuple, as that of ``jax.vjp`` does.

    A step in which a loss is not finite trains nothing: its update is zero, the weights stay, and
    ``nonfinite`` counts the event. One in which the weighting's weights are not finite trains with
    those of the step before, and ``unsolved`` counts it. So does one in which a loss is below zero
    if the weighting needs positive losses, and ``negative`` counts it. Interactions that are not
    finite keep their last values, and ``unmeasured`` counts the tasks.

    Args:
      weighting: how to choose the weights.
      num_tasks: N, a Python integer.
      interaction: how to measure the interaction in the form "tasks": a name from
        :data:`ldro_jax.interaction.STRATEGIES`, "split", or an
        :class:`~ldro_jax.interaction.Interaction`; "auto" suits the weighting and the model.
      interaction_interval: k, the interaction is measured in every k-th step, from the first; by
        default as often as the weighting says (:attr:`Weighting.default_interval`). Ignored by
        weightings that don't use it. With 1 and a strategy that holds all gradients, the training
        gradient comes from the same pass.
      lagged: with an interval of 1, let the weights use the matrix of the step before. The N
        gradients of a parameter, or of a layer that is scanned, can then be freed one by one, which
        saves most of the memory.
      smoothing: decay of the running means of losses and interactions that the weighting sees, in
        [0, 1); see :func:`ldro_jax.weighting.smoothed`.
      total: what the weights' absolute values are made to sum to; by default what the method says.
      floor: share of the weight that is spread evenly over all tasks, in [0, 1].
      trainable: the parameters that are trained, where others are frozen: a tree of bools like the
        parameters (or a prefix of one), or a function from the parameters to it. Frozen ones count
        in no interaction, cost no gradient in the forms with ``loss_fn`` and ``losses_fn``, and
        have updates of zero. Without it, what an optimizer that comes after the weighting leaves
        as it is (``optax.set_to_zero``) counts like the rest; see
        :func:`ldro_jax.ldro.moved_by`. An ``interaction_fn`` without arguments has to leave it
        out itself.

    Returns:
      An ``optax.GradientTransformationExtraArgs`` with a :class:`WeightedState`. Other extra
      arguments are accepted and ignored.

    Raises:
      TypeError: if ``num_tasks`` is not a Python integer.
      ValueError: if an argument is out of range, or no strategy has that name. ``init`` and
        ``update`` raise it inside an Optax wrapper that would not pass on what the weighting needs,
        or if the parameters are complex, and ``update`` if the arguments are in none of the four
        forms or a shape or dtype is not as expected.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from ldro_jax import transform, weighting
      >>> points = jnp.array([[0.0], [4.0]])  # [task, example]
      >>> loss_fn = lambda params, x: jnp.mean((x - params) ** 2)
      >>> tx = optax.chain(transform.weighted(weighting.group_dro(0.1), 2), optax.sgd(0.1))
      >>> params = jnp.array(1.0)
      >>> state = tx.init(params)
      >>> updates, state = tx.update(None, state, params, loss_fn=loss_fn, batch=points)
      >>> params = optax.apply_updates(params, updates)
      >>> [round(float(w), 3) for w in transform.find_state(state).weights]
      [0.31, 0.69]
    """
    weighting_base.check_weighting(weighting)
    if interaction_interval is None:
        interaction_interval = weighting.default_interval
    interaction = weighting.interaction_for(interaction)
    _check_num_tasks(num_tasks)
    num_tasks = operator.index(num_tasks)
    if not isinstance(interaction_interval, jax.Array):
        interaction_interval = checks.integer("interaction_interval", interaction_interval)
    checks.flag("lagged", lagged)
    weighting = weighting_base.checked(weighting)
    weighting = wrappers.wrapped(weighting, smoothing=smoothing, total=total, floor=floor)
    strategy = interaction_lib.get(interaction)
    every_step = isinstance(interaction_interval, int) and interaction_interval == 1
    if lagged and not every_step:
        raise ValueError(
            f"lagged needs interaction_interval=1, but the interval is {interaction_interval}."
        )
    fused = weighting.uses_interaction and every_step

    def init_fn(params):
        optax_wrappers.check(params)
        leaves.check_arrays("params", params)
        if trainable is not None:
            params = trained_lib.hide(params, trained_lib.mask(trainable, params))
        leaves.check_trained("params", params)
        dtype = interaction_base.statistics_dtype(params)
        reads.check(weighting, num_tasks, dtype)
        return state_lib.initial(weighting, num_tasks, dtype)

    def update_fn(
        updates,
        state,
        params=None,
        *,
        loss_fn=None,
        batch=None,
        interaction_batch=None,
        losses_fn=None,
        losses=None,
        pullback=None,
        interaction_fn=None,
        preconditioner=None,
        excess=None,
        present=None,
        **extra_args,
    ):
        del extra_args
        optax_wrappers.check_update(updates, params)
        state_lib.check(state)
        leaves.check_arrays("params", params)
        # What flax.nnx.Optimizer makes of None.
        updates = updates if jax.tree.leaves(updates) else None
        arguments = {
            "loss_fn": loss_fn,
            "batch": batch,
            "interaction_batch": interaction_batch,
            "losses_fn": losses_fn,
            "losses": losses,
            "pullback": pullback,
            "interaction_fn": interaction_fn,
            "preconditioner": preconditioner,
        }
        everything, trained = params, None
        if trainable is not None:
            trained = trained_lib.mask(trainable, params)
            arguments, updates = trained_lib.restricted(arguments, updates, params, trained)
            params = trained_lib.hide(params, trained)
        leaves.check_trained("params", params)
        step = forms.read(
            arguments,
            updates,
            params,
            num_tasks,
            strategy,
            dtype=state.weights.dtype,
            fused=fused,
            lagged=fused and lagged,
        )
        present = jnp.ones((num_tasks,), bool) if present is None else jnp.asarray(present, bool)
        weighting_base.check_per_task("present", present, num_tasks)
        # An absent task counts as well: in the pullback, zero times a loss that is not finite is
        # NaN.
        bad = ~jnp.isfinite(step.losses)
        good = ~bad.any()
        current = jnp.where(present & ~bad, step.losses.astype(state.losses.dtype), state.losses)
        seen = state.seen | (present & ~bad)

        last = interaction_base.Measured(state.interaction, state.noise)
        measured, unmeasured = last, jnp.zeros((num_tasks,), bool)
        ever_measured = state.measured
        from_batch = interaction_batch is None and interaction_fn is None
        due = None if every_step else state.count % interaction_interval == 0

        def measure(interaction):
            found, lost, taken = refresh.measure(
                interaction,
                last,
                present,
                due,
                from_batch=from_batch,
                needs_noise=weighting.uses_noise,
            )
            return found, lost, state.measured | taken

        if weighting.uses_interaction and not lagged:
            measured, unmeasured, ever_measured = measure(step.interaction)
        measured_ones = seen & ever_measured if weighting.uses_interaction else seen
        started = measured_ones.any()
        known = jnp.where(started, measured_ones, seen | ~seen.any())
        statistics = weighting_base.Statistics(
            state.count,
            current,
            measured.matrix,
            noise=measured.noise if weighting.uses_noise else None,
            excess=_excess(weighting, excess, present, current),
            known=known,
        )
        proposal = weighting.update(statistics, state.weighting)
        proposal = (_with_newcomers(proposal[0], seen & ~known), proposal[1])
        negative = jnp.zeros_like(present)
        if weighting.needs_positive_losses:
            negative = present & (current < 0)
        # The weights themselves overflow when a rate times a loss does.
        finite = jnp.isfinite(proposal[0]).all()
        usable = good & finite & ~negative.any()
        weights, inner = jax.tree.map(
            functools.partial(jnp.where, usable), proposal, (state.weights, state.weighting)
        )
        # What is weighed before anything is known leaves no trace.
        inner = jax.tree.map(functools.partial(jnp.where, started), inner, state.weighting)

        expected = current
        if weighting.expected_losses is not None:
            expected = weighting.expected_losses(statistics, weights)

        pulled = step.pullback(jnp.where(present, weights, 0))
        gradient = pulled.gradient if isinstance(pulled, interaction_base.Pulled) else pulled
        if trained is not None:
            gradient = trained_lib.hide(gradient, trained)
        if isinstance(pulled, interaction_base.Pulled) and not lagged:
            raise ValueError(
                "pullback returned the interaction with the gradient, after the weights were "
                "chosen. That needs lagged=True and interaction_interval=1."
            )
        if weighting.uses_interaction and lagged:
            from_pull = isinstance(pulled, interaction_base.Pulled)
            found = (lambda: pulled.matrix) if from_pull else step.interaction
            measured, unmeasured, ever_measured = measure(found)
        leaves.check_arrays("gradient", gradient)
        leaves.check_trained("gradient", gradient)
        if weighting.uses_interaction and from_batch:
            squares = jnp.diagonal(measured.matrix) + measured.noise
            lost = refresh.all_underflow(gradient, squares, present, due)
            lost &= good & ~unmeasured.any()
            unmeasured |= lost & present
            measured, ever_measured = jax.tree.map(
                functools.partial(jnp.where, lost),
                (last, state.measured),
                (measured, ever_measured),
            )
        if params is not None:
            gradient = leaves.like(f"The gradient {forms.OF_PARAMETERS}", gradient, params)
        if updates is not None and not step.is_stacked:
            updates = leaves.like(
                f"updates, the gradient of no task, {forms.OF_PARAMETERS}", updates, gradient
            )
            gradient = jax.tree.map(lambda g, u: g + u.astype(g.dtype), gradient, updates)
        # A loss that is not finite makes the whole pullback so, whatever its weight.
        gradient = jax.tree.map(lambda g: jnp.where(good, g, 0), gradient)
        if trained is not None:
            gradient = trained_lib.merge(gradient, jax.tree.map(jnp.zeros_like, everything))

        return gradient, WeightedState(
            count=jnp.asarray(optax.safe_increment(state.count)),
            weights=weights,
            losses=current,
            expected_losses=jnp.where(usable, expected, state.expected_losses),
            seen=seen,
            measured=ever_measured,
            interaction=measured.matrix,
            noise=measured.noise,
            descent=_descended(state.descent, measured.matrix, weights, good),
            nonfinite=state.nonfinite + bad.astype(jnp.int32),
            negative=state.negative + negative.astype(jnp.int32),
            nonfinite_streak=jnp.where(good & finite, 0, state.nonfinite_streak + 1),
            unmeasured=state.unmeasured + unmeasured.astype(jnp.int32),
            unsolved=state_lib.unsolved(state, inner, good & ~finite),
            weighting=inner,
        )

    made = Weighted(init_fn, update_fn)
    made.weighting = weighting
    made.interval = interaction_interval if weighting.uses_interaction else None
    made.lagged = fused and lagged
    return made


def _check_num_tasks(num_tasks) -> None:
    try:
        # An array would be traced inside update, where the number of tasks must be known.
        if isinstance(num_tasks, (bool, jax.Array)) or operator.index(num_tasks) < 1:
            raise TypeError
    except TypeError:
        raise TypeError(
            f"num_tasks must be a positive Python integer, but it is {num_tasks!r}. In "
            "optax.inject_hyperparams, name it in static_args: "
            "static_args=('num_tasks', 'interaction_interval')."
        ) from None


def _excess(weighting, excess, present, losses):
    """What the weighting is told of it; an absent task has none."""
    if not weighting.uses_excess:
        return None
    if excess is None:
        raise ValueError(
            "This weighting compares the examples with a reference. Pass excess, [N], the mean "
            "over the examples of each task of how much worse the model is than the reference."
        )
    weighting_base.check_per_task("excess", jnp.asarray(excess), losses.size)
    return jnp.where(present & jnp.isfinite(excess), jnp.asarray(excess, losses.dtype), 0)


def _with_newcomers(weights, newcomers):
    """Tasks that came before their interactions were measured get the mean weight of the others."""
    sizes = jnp.where(newcomers, 0, jnp.abs(weights))
    weighed = (sizes > 0).sum(dtype=weights.dtype)
    mean = jnp.sum(sizes) / jnp.maximum(weighed, 1)
    # All together weigh what the others did.
    share = weighed / jnp.maximum(weighed + newcomers.sum(dtype=weights.dtype), 1)
    return jnp.where(newcomers.any(), share * jnp.where(newcomers, mean, weights), weights)


def _descended(descent, matrix, weights, good):
    fall = jnp.sum(matrix * weights[None, :], axis=1)
    return descent + jnp.where(good & jnp.isfinite(fall), fall, 0)

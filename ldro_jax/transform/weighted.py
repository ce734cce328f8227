"""Statistics → weights → gradient, as one Optax gradient transformation.

:func:`weighted` joins a :class:`~ldro_jax.weighting.Weighting` and an interaction strategy behind
Optax's contract. In every step it measures the losses of the tasks (one forward pass), refreshes
the interaction matrix if that is due, chooses the weights, and pulls *these* weights back through
the same forward pass (one backward pass): the update is ``Σ_i w_i ∇ℓ_i``, ready for any optimizer.
"""

import dataclasses
import functools
import operator
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from ldro_jax import interaction as interaction_lib
from ldro_jax.interaction import base as interaction_base
from ldro_jax.interaction.products import of_matrix
from ldro_jax.measuring import Plan, refresh
from ldro_jax.measuring import shared as shared_lib
from ldro_jax.measuring import trained as trained_lib
from ldro_jax.runtime import checks, leaves
from ldro_jax.transform import forms, optax_wrappers, reads
from ldro_jax.transform import state as state_lib
from ldro_jax.transform.state import WeightedState, find_state
from ldro_jax.weighting import base as weighting_base
from ldro_jax.weighting import products, wrappers

__all__ = ["Weighted", "WeightedState", "find_state", "weighted"]


class Weighted(optax.GradientTransformationExtraArgs):
    """What :func:`weighted` makes: a transformation that says how it weighs, for trainers.

    Attributes:
      weighting: the method, with smoothing, signal power, total and floor.
      plan: how it measures losses, gradient and interaction.
    """

    weighting: weighting_base.Weighting
    plan: Plan

    @property
    def interval(self) -> int | jax.Array | None:
        """k, the number of steps between two measurements; ``None`` if it makes none."""
        return self.plan.interval


def weighted(
    weighting: weighting_base.Weighting,
    num_tasks: int,
    *,
    interaction: str | interaction_base.Interaction = "auto",
    interaction_interval: int | None = None,
    lagged: bool = False,
    smoothing: float = 0.0,
    signal_power: optax.ScalarOrSchedule | None = None,
    total: float | None = None,
    floor: float = 0.0,
    trainable: Any = None,
    shared: Any = None,
) -> Weighted:
    """Trains on the weighted loss ``Σ_i w_i ℓ_i``, with weights chosen anew in every step.

    ``update`` takes the statistics of the tasks in one of four forms, all as keyword arguments:

    ===================  =======================================================================
    tasks                ``loss_fn(params, task_batch) -> scalar`` and ``batch``, every leaf of
                         which is ``[task, example, ...]``; optionally ``interaction_batch``, other
                         examples to measure the interaction on.
    any layout           ``losses_fn(params) -> [N]`` and optionally ``interaction_fn(params) ->
                         [N, N]``, by default the Gram matrix of the Jacobian of ``losses_fn``;
                         with ``features_fn(params) -> z`` it is ``losses_fn(params, z)``. It may
                         return :class:`~ldro_jax.ldro.Rows`, whose tasks it finds itself.
    forward done         ``losses [N]``, ``pullback(weights [N]) -> gradient`` (from ``jax.vjp``)
                         and, if the weighting uses it, ``interaction_fn() -> [N, N]``; with
                         ``lagged`` the pullback may give both, as an ``interaction.Pulled``.
    stacked gradients    ``losses [N]``, and as ``updates`` the task gradients ``[N, ...]``; with
                         "split" also those of the halves, ``[2N]`` and ``[2N, ...]``, those of a
                         task side by side.
    ===================  =======================================================================

    Losses must be means over the examples or tokens of their task, in floating point, and that of
    an absent task any finite number. Where the loss of one task looks at the rows of others (batch
    normalisation with an ``axis_name``), ``losses_fn`` is the form: ``vmap`` of ``grad`` doesn't
    give the gradients of the tasks then. A ``pullback`` may return the gradient in a tuple, as that
    of ``jax.vjp`` does. In the first three forms ``updates`` is the gradient of whatever belongs to
    no task (an L2 or a load-balancing term), which is added to the result, or ``None``.

    With any form may come ``present``, bool ``[N]``, the tasks that have examples in this batch: an
    absent one keeps its last loss and adds no gradient. It keeps its last interactions as well,
    unless those come from an ``interaction_batch`` or ``interaction_fn`` that has examples of it:
    one whose squared length is exactly zero there had none. ``excess``, ``[N]``, says by how much
    each task is worse than a reference, for weightings that compare with one.

    With ``loss_fn``, ``losses_fn`` or stacked gradients, and without an ``interaction_fn``, may
    come ``preconditioner``, like the parameters: it measures the interaction in the geometry of the
    optimizer; see :func:`ldro_jax.ldro.preconditioner`.

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
        "products" gives the weighting products of A instead, if it can do with these: see
        :func:`ldro_jax.interaction.products`. In the form "any layout", "features" measures it at
        z; see :func:`ldro_jax.interaction.features`.
      interaction_interval: k, the interaction is measured in every k-th step, from the first; by
        default as often as the weighting says, if it uses it. With 1 and a strategy that holds all
        gradients, the training gradient comes from the same pass.
      lagged: with an interval of 1, let the weights use the matrix of the step before. The N
        gradients of a parameter, or of a layer that is scanned, can then be freed one by one, which
        saves most of the memory.
      smoothing: decay of the running means of losses and interactions that the weighting sees, in
        [0, 1); see :func:`ldro_jax.weighting.smoothed`.
      signal_power: p, shows the weighting ``ℓ·s^p`` in the place of the losses ℓ, with s the share
        of each task's squared gradient that is no noise; by default the losses as they are. The
        interaction is then measured by "split" by default, and every 20 steps if the weighting
        doesn't use it itself; see :func:`ldro_jax.weighting.by_signal`.
      total: what the weights' absolute values are made to sum to; by default what the method says.
      floor: share of the weight that is spread evenly over all tasks, in [0, 1].
      trainable: the parameters that are trained, where others are frozen: a tree of bools like the
        parameters (or a prefix of one), or a function from the parameters to it, such as one with
        :func:`ldro_jax.ldro.moved_by`. Frozen ones count in no interaction, which an
        ``interaction_fn`` without arguments has to see to itself; they cost no gradient in the
        forms with ``loss_fn`` and ``losses_fn``, and have updates of zero. Without it, what a later
        optimizer leaves as it is (``optax.set_to_zero``) counts like the rest.
      shared: the parameters that the interaction counts: a tree of bools or a function, like
        ``trainable``, or ``True`` for all. A head of one task adds to the diagonal alone, as if the
        task helped itself more. By default it counts those that the losses of several tasks depend
        on, where they come from a ``losses_fn``, and all in the other forms, in which the function
        is the same for all tasks. It can't change what an ``interaction_fn`` measures. A joint
        head, one array for the outputs of all tasks, is one parameter and counts.

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
    options = {"smoothing": smoothing, "signal_power": signal_power, "total": total, "floor": floor}
    weighting = wrappers.wrapped(weighting_base.checked(weighting), **options)
    weighting, strategy = _with_strategy(weighting, interaction)
    plan = _plan(weighting, num_tasks, strategy, interaction_interval, lagged)

    def mask(params):
        return None if trainable is None else trained_lib.mask(trainable, params)

    def init_fn(params):
        optax_wrappers.check(params)
        leaves.check_arrays("params", params)
        if trainable is not None:
            params = trained_lib.hide(params, mask(params))
        leaves.check_trained("params", params)
        dtype = interaction_base.statistics_dtype(params)
        reads.check(weighting, plan.num_tasks, dtype)
        if wrappers.has_signal(signal_power):
            reads.check_losses(weighting, plan.num_tasks, dtype)
        return state_lib.initial(weighting, plan.num_tasks, dtype)

    def update_fn(updates, state, params=None, **extra_args):
        optax_wrappers.check_update(updates, params)
        state_lib.check(state, weighting)
        leaves.check_arrays("params", params)
        trained = mask(params)
        counting = plan
        if shared is not None and params is not None:
            counting = dataclasses.replace(plan, shared=shared_lib.mask(shared, params, trained))
        step = forms.read(extra_args, updates, params, counting, state.weights.dtype, trained)
        losses = _Losses.of(step, state)
        matrix = last = refresh.Matrix.of(state)
        due = plan.due(state.count)

        measured_if_due = functools.partial(
            refresh.if_due,
            last=last,
            present=step.present,
            due=due,
            from_batch=step.from_batch,
            needs_noise=weighting.uses_noise,
        )
        if weighting.uses_interaction and not plan.lagged:
            matrix = measured_if_due(step.interaction)
        asking = None
        if weighting.uses_products:
            asking = _asking(step, plan, state.count, due)
        chosen = _choose(weighting, state, step, losses, matrix, asking)
        gradient, pulled = _pulled(step, chosen.weights, trained, plan)
        if weighting.uses_interaction and plan.lagged:
            matrix = measured_if_due(step.interaction if pulled is None else lambda: pulled)
        leaves.check_arrays("gradient", gradient)
        leaves.check_trained("gradient", gradient)
        if weighting.uses_interaction and step.from_batch:
            own = shared_lib.counted(gradient, step.shared)
            matrix = refresh.unless_underflow(matrix, last, own, step.present, due, losses.good)
        gradient = _finished(gradient, step, losses.good)
        if trained is not None:
            gradient = trained_lib.merge(gradient, jax.tree.map(jnp.zeros_like, params))
        return gradient, _next(state, losses, matrix, chosen)

    made = Weighted(init_fn, update_fn)
    made.weighting, made.plan = weighting, plan
    return made


def _with_strategy(
    weighting: weighting_base.Weighting, interaction: str | interaction_base.Interaction
) -> tuple[weighting_base.Weighting, interaction_base.Interaction]:
    """The weighting in the form that fits how its interaction is measured, and how that is."""
    strategy = interaction_lib.get(weighting.interaction_for(interaction))
    if strategy.gives_products and weighting.uses_interaction:
        if weighting.by_products is None:
            raise ValueError(
                "interaction='products' needs a weighting that can do with products of the "
                "interaction matrix, and this one needs all of it, as signal_power does. "
                "docs/methods.md says which can."
            )
        weighting = weighting.by_products
    if weighting.uses_products and not strategy.gives_products:
        raise ValueError(
            "The weighting asks for products of the interaction matrix, which needs "
            f"interaction='products' or 'auto', but it is {interaction!r}."
        )
    return weighting, strategy


def _plan(weighting, num_tasks, strategy, interval, lagged) -> Plan:
    """How to measure, from the arguments of :func:`weighted` and what the method likes."""
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
    interval = weighting.default_interval if interval is None else interval
    if not isinstance(interval, jax.Array):
        interval = checks.integer("interaction_interval", interval)
    checks.flag("lagged", lagged)
    plan = Plan(operator.index(num_tasks), strategy, interval, lagged)
    if lagged and strategy.gives_products:
        raise ValueError(
            "lagged=True lets the weights use the matrix of the step before, but "
            "interaction='products' measures none."
        )
    if lagged and not plan.every_step:
        raise ValueError(f"lagged needs interaction_interval=1, but the interval is {interval}.")
    measures = weighting.uses_interaction or weighting.uses_products
    return plan if measures else dataclasses.replace(plan, interval=None)


def _asking(step: forms.Step, plan: Plan, count: jax.Array, due: Any) -> products.Asking:
    """How a weighting asks for products in this step."""

    def given():
        found = refresh.asked(step.interaction, plan.num_tasks)()
        if isinstance(found, interaction_lib.Products):
            return found
        matrix = found.matrix if isinstance(found, interaction_base.Measured) else found
        return of_matrix(matrix)

    return products.Asking(
        lambda v: given().times(v),
        lambda key: given().squares(key),
        step.present,
        True if due is None else due,
        count // cast(int, plan.interval),
        plan.strategy.in_turn,
    )


class _Losses(NamedTuple):
    """The losses of a step as the weighting sees them, ``[N]``.

    Those of tasks that are absent, or that are not finite, are of an earlier step. Which tasks have
    had one so far is ``seen``, which are not finite is ``bad``, and whether none is, ``good``.
    """

    current: jax.Array
    seen: jax.Array
    bad: jax.Array
    good: jax.Array

    @classmethod
    def of(cls, step: forms.Step, state: WeightedState) -> "_Losses":
        # An absent task's as well: in the pullback, zero times a loss that isn't finite is NaN.
        bad = ~jnp.isfinite(step.losses)
        new = step.present & ~bad
        current = jnp.where(new, step.losses.astype(state.losses.dtype), state.losses)
        return cls(current, state.seen | new, bad, ~bad.any())


class _Chosen(NamedTuple):
    """The weights of a step.

    With the weighting's own state, the losses that it expects, which losses were below zero though
    it needs positive ones, and whether the weights that it proposed were finite.
    """

    weights: jax.Array
    inner: Any
    expected: jax.Array
    negative: jax.Array
    finite: jax.Array


def _choose(weighting, state, step, losses, matrix, asking) -> _Chosen:
    """The weights of this step, or those of the last one where they can't be known."""
    measured = losses.seen & matrix.ever if weighting.uses_interaction else losses.seen
    started = measured.any()
    known = jnp.where(started, measured, losses.seen | ~losses.seen.any())
    statistics = weighting_base.Statistics(
        state.count,
        losses.current,
        matrix.values.matrix,
        noise=matrix.values.noise if weighting.uses_noise else None,
        excess=_excess(weighting, step.excess, step.present, losses.current),
        known=known,
        fresh=matrix.fresh if weighting.uses_interaction else None,
        products=asking,
    )
    weights, inner = weighting.update(statistics, state.weighting)
    weights = weighting_base.with_newcomers(weights, losses.seen & ~known)
    negative = jnp.zeros_like(step.present)
    if weighting.needs_positive_losses:
        negative = step.present & (losses.current < 0)
    # The weights themselves overflow when a rate times a loss does.
    finite = jnp.isfinite(weights).all()
    usable = losses.good & finite & ~negative.any()

    def only_if(condition, new, old):
        return jax.tree.map(functools.partial(jnp.where, condition), new, old)

    weights, inner = only_if(usable, (weights, inner), (state.weights, state.weighting))
    # What is weighed before anything is known leaves no trace.
    inner = only_if(started, inner, state.weighting)
    expected = losses.current
    if weighting.expected_losses is not None:
        expected = weighting.expected_losses(statistics, weights)
    expected = jnp.where(usable, expected, state.expected_losses)
    return _Chosen(weights, inner, expected, negative, finite)


def _pulled(step, weights, trained, plan) -> tuple[Any, jax.Array | None]:
    """The gradient of the weighted loss, and the interaction if it comes from the same pass."""
    gradient, matrix = step.pullback(jnp.where(step.present, weights, 0)), None
    if isinstance(gradient, interaction_base.Pulled):
        gradient, matrix = gradient
        if not plan.lagged:
            raise ValueError(
                "pullback returned the interaction with the gradient, after the weights were "
                "chosen. That needs lagged=True and interaction_interval=1."
            )
    return (gradient if trained is None else trained_lib.hide(gradient, trained)), matrix


def _finished(gradient, step, good):
    """With the gradient of no task; zero in a step with a loss that is not finite."""
    if step.params is not None:
        gradient = leaves.like(f"The gradient {forms.OF_PARAMETERS}", gradient, step.params)
    if step.updates is not None:
        updates = leaves.like(
            f"updates, the gradient of no task, {forms.OF_PARAMETERS}", step.updates, gradient
        )
        gradient = jax.tree.map(lambda g, u: g + u.astype(g.dtype), gradient, updates)
    # A loss that is not finite makes the whole gradient so, whatever its weight.
    return jax.tree.map(lambda g: jnp.where(good, g, 0), gradient)


def _next(state, losses, matrix, chosen) -> WeightedState:
    good, interaction = losses.good, matrix.values.matrix
    fall = jnp.sum(interaction * chosen.weights[None, :], axis=1)
    return WeightedState(
        count=jnp.asarray(optax.safe_increment(state.count)),
        weights=chosen.weights,
        losses=losses.current,
        expected_losses=chosen.expected,
        seen=losses.seen,
        measured=matrix.ever,
        interaction=interaction,
        noise=matrix.values.noise,
        descent=state.descent + jnp.where(good & jnp.isfinite(fall), fall, 0),
        nonfinite=state.nonfinite + losses.bad.astype(jnp.int32),
        negative=state.negative + chosen.negative.astype(jnp.int32),
        nonfinite_streak=jnp.where(good & chosen.finite, 0, state.nonfinite_streak + 1),
        unmeasured=state_lib.unmeasured(state, chosen.inner, matrix.unmeasured),
        unsolved=state_lib.unsolved(state, chosen.inner, good & ~chosen.finite),
        weighting=chosen.inner,
    )


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

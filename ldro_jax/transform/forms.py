"""The forms in which task statistics reach a transformation, and what each of them must look like.

They are listed at :func:`ldro_jax.transform.weighted`. Each becomes a :class:`Step`; a shape that
is not as expected is an error, never a silent broadcast.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ldro_jax import interaction as interaction_lib
from ldro_jax import measuring
from ldro_jax.interaction import base as interaction_base
from ldro_jax.interaction import geometry
from ldro_jax.interaction.features import NEEDED
from ldro_jax.interaction.products import of_vector
from ldro_jax.measuring import means
from ldro_jax.measuring import shared as shared_lib
from ldro_jax.measuring import trained as trained_lib
from ldro_jax.measuring.measure import check_floating, differentiated
from ldro_jax.runtime import checks, leaves
from ldro_jax.weighting import base as weighting_base

OF_PARAMETERS = "must have the structure and shapes of the parameters"


class Step(NamedTuple):
    """One step's measurements, whatever form the statistics came in.

    Attributes:
      losses: ``[N]``, floating point.
      pullback: ``weights [N] -> gradient``, or with the interaction, :class:`Pulled`; doesn't round
        the weights.
      interaction: ``() -> [N, N]``, or with the noise, or products of it; ``None`` if there is no
        way to measure it.
      present: the tasks that have examples in this batch, bool ``[N]``.
      excess: as it was given.
      from_batch: whether the interaction is measured on that batch.
      params: those that the gradient is of, without frozen ones; ``None`` if they weren't given.
      updates: the gradient of no task, like them; ``None`` if there is none.
      shared: which parameters the interaction counts, a tree of bools like them; ``None`` if all.
    """

    losses: jax.Array
    pullback: Callable[[jax.Array], Any]
    interaction: Callable[[], Any] | None
    present: Any = None
    excess: Any = None
    from_batch: bool = True
    params: Any = None
    updates: Any = None
    shared: Any = None


class Arguments(NamedTuple):
    """The keyword arguments of ``update`` that carry statistics, ``None`` where not given."""

    loss_fn: Any = None
    batch: Any = None
    interaction_batch: Any = None
    losses_fn: Any = None
    features_fn: Any = None
    losses: Any = None
    pullback: Any = None
    interaction_fn: Any = None
    preconditioner: Any = None
    excess: Any = None
    present: Any = None


@dataclasses.dataclass(frozen=True)
class FirstPass:
    """A ``losses_fn`` of ``update`` with what it gives at the parameters of ``update``.

    They needn't be found again then: a compiler doesn't always see that two passes are the same.

    Attributes:
      losses_fn: ``params -> losses [N] or Rows``.
      losses: ``[N]``, in a dtype as wide as JAX's floating-point numbers.
      pullback: ``weights [N] -> gradient``, with the names and shapes of the parameters; more don't
        matter.
      present: as in :class:`Step`.
    """

    losses_fn: Callable[[Any], Any]
    losses: jax.Array
    pullback: Callable[[jax.Array], Any]
    present: Any = None

    def __call__(self, params: Any) -> Any:
        """What the function gives."""
        return self.losses_fn(params)


def first_pass(
    losses_fn: Callable[[Any], tuple[Any, Any]], params: Any, num_tasks: int, dtype: Any = None
) -> tuple[FirstPass, Any]:
    """One pass of a function that gives losses and something else; both.

    Args:
      losses_fn: ``params -> (losses [N] or Rows, something else)``.
      params: where to differentiate.
      num_tasks: N.
      dtype: that of the weights; by default it may be any.

    Raises:
      ValueError: if what it gives aren't losses.
    """

    def of_all(params):
        found, aux = losses_fn(params)
        losses, present = of_tasks(found, num_tasks)
        return losses, (present, aux)

    dtype = dtype or jnp.zeros(()).dtype
    losses, pullback, (present, aux) = differentiated(of_all, params, dtype, has_aux=True)
    return FirstPass(lambda params: losses_fn(params)[0], losses, pullback, present), aux


def of_tasks(found: Any, num_tasks: int) -> tuple[jax.Array, Any]:
    """The losses ``[N]`` that a ``losses_fn`` gave, in whatever form, and the tasks present."""
    losses, present = means.of_tasks(found, num_tasks)
    return _array("losses_fn must return", losses, "it returns"), present


def read(
    extra_args: Mapping[str, Any],
    updates: Any,
    params: Any,
    plan: measuring.Plan,
    dtype: Any,
    trained: Any = None,
) -> Step:
    """Reads the measurements of one step from the arguments of ``update``.

    Args:
      extra_args: its keyword arguments, with others among them that are none of ours.
      updates: the gradient of no task; or the stacked gradients, in the form that has them.
      params: the parameters, or ``None``.
      plan: how to measure.
      dtype: of the weights.
      trained: which parameters are trained, a tree of bools; ``None`` if all.

    Raises:
      ValueError: if the arguments are in none of the forms, a shape is not as expected, or the
        losses aren't floating-point numbers.
    """
    given = Arguments(**{k: x for k, x in extra_args.items() if k in Arguments._fields})
    known = given.losses_fn if isinstance(given.losses_fn, FirstPass) else None
    # What flax.nnx.Optimizer makes of None.
    updates = updates if jax.tree.leaves(updates) else None
    if trained is not None:
        given, updates = _restricted(given, updates, params, trained)
        params = trained_lib.hide(params, trained)
    leaves.check_trained("params", params)
    form = _form(given)
    _check(given)
    if form == "stacked" and plan.strategy.of_features and plan.interval is not None:
        raise ValueError(NEEDED)
    if params is None and form != "forward":
        raise ValueError("update needs params, as its third argument.")
    if given.preconditioner is not None:
        like = leaves.like(f"preconditioner {OF_PARAMETERS}", given.preconditioner, params)
        given = given._replace(preconditioner=like)
    if form == "tasks":
        step = _from_tasks(given, params, plan, dtype)
    elif form == "layout":
        step = _from_losses_fn(given, params, plan, dtype, known)
    elif form == "forward":
        step = _from_pullback(given, params, dtype)
    else:
        step, updates = _from_stacked(updates, given, params, plan), None
    num_tasks = plan.num_tasks
    present = step.present if given.present is None else given.present
    if jnp.shape(step.losses) != (num_tasks,):
        raise ValueError(
            f"There must be one loss for each of the {num_tasks} tasks, shape ({num_tasks},), but "
            f"the losses have shape {jnp.shape(step.losses)}."
        )
    present = jnp.ones((num_tasks,), bool) if present is None else jnp.asarray(present, bool)
    weighting_base.check_per_task("present", present, num_tasks)
    return step._replace(
        losses=interaction_base.replicated(step.losses),
        present=present,
        excess=given.excess,
        from_batch=given.interaction_batch is None and given.interaction_fn is None,
        params=params,
        updates=updates,
        shared=plan.shared if step.shared is None else step.shared,
    )


def _restricted(given: Arguments, updates, params, trained) -> tuple[Arguments, Any]:
    """What ``update`` was given, for the trained parameters alone."""
    if params is None:
        raise ValueError("With trainable, update needs params, as its third argument.")
    own = {
        "loss_fn": trained_lib.of_part(given.loss_fn, params),
        "losses_fn": trained_lib.of_part(given.losses_fn, params),
        "features_fn": trained_lib.of_part(given.features_fn, params),
        "preconditioner": trained_lib.hide(given.preconditioner, trained),
    }
    if given.losses_fn is not None:
        own["interaction_fn"] = trained_lib.of_part(given.interaction_fn, params)
    return given._replace(**own), trained_lib.hide(updates, trained)


def _check(given: Arguments) -> None:
    for name, example in _FUNCTIONS.items():
        if (function := getattr(given, name)) is not None:
            checks.function(name, function, example=example)
    measures_itself = given.interaction_fn is not None or given.pullback is not None
    if given.preconditioner is not None and measures_itself:
        raise ValueError(
            "interaction_fn measures as it likes, so preconditioner can't come with it or with "
            "pullback. Use interaction.preconditioned(strategy, preconditioner) inside of it."
        )


def _without_tuple(pullback: Any, params: Any) -> Callable:
    """A pullback that returns the gradient alone, where that of ``jax.vjp`` puts it in a tuple.

    The parameters may be such a tuple themselves, so that without them it can't be told.
    """
    if params is None:
        return pullback

    def pull(weights):
        gradient = pullback(weights)
        return gradient[0] if _depth(gradient) > _depth(params) else gradient

    return pull


def _depth(tree: Any) -> int:
    """How many tuples of one are around a tree."""
    return 1 + _depth(tree[0]) if type(tree) is tuple and len(tree) == 1 else 0


_FUNCTIONS = {
    "loss_fn": "(params, task_batch) -> scalar",
    "losses_fn": "params -> losses [N], or ldro.Rows",
    "features_fn": "params -> features",
    "pullback": "weights [N] -> gradient",
    "interaction_fn": "() -> [N, N]",
}

# What each form of the statistics needs, and what may come with it.
_FORMS = {
    "tasks": ({"loss_fn", "batch"}, {"interaction_batch", "preconditioner"}),
    "layout": ({"losses_fn"}, {"features_fn", "interaction_fn", "preconditioner"}),
    "forward": ({"losses", "pullback"}, {"interaction_fn"}),
    "stacked": ({"losses"}, {"preconditioner"}),
}


# What may come with every form.
_WITH_ALL = {"excess", "present"}


def _form(arguments: Arguments) -> str:
    """Which of the four forms the statistics came in."""
    given = {name for name, value in arguments._asdict().items() if value is not None} - _WITH_ALL
    for form, (needed, optional) in _FORMS.items():
        if needed <= given <= needed | optional:
            return form
    raise ValueError(
        "update needs the task statistics in one of these forms: loss_fn and batch (and "
        "interaction_batch); losses_fn (and features_fn, interaction_fn); losses and pullback (and "
        "interaction_fn); or losses, with the stacked task gradients as updates. It was given: "
        f"{', '.join(sorted(given)) or 'none of these (does an Optax wrapper keep them back?)'}."
    )


def _from_tasks(given: Arguments, params, plan, dtype) -> Step:
    _check_batch("batch", given.batch, plan.num_tasks)
    _check_scalar_loss(given.loss_fn, params, given.batch)
    if given.interaction_batch is not None:
        _check_batch("interaction_batch", given.interaction_batch, plan.num_tasks)
    batch = measuring.Grouped(given.batch, given.interaction_batch, dtype)
    measured = measuring.measure(plan, given.loss_fn, params, batch, given.preconditioner)
    if measured.gradients is not None:
        return _stacked_step(measured.losses, measured.gradients, plan, given.preconditioner)
    assert measured.pullback is not None
    return Step(measured.losses, measured.pullback, measured.interaction)


def _from_losses_fn(given: Arguments, params, plan, dtype, first: FirstPass | None) -> Step:
    interaction_fn = given.interaction_fn
    gram = functools.partial(interaction_lib.jacobian_gram, interval=plan.interval)

    def returned(params):
        own = () if given.features_fn is None else (given.features_fn(params),)
        return given.losses_fn(params, *own)

    def losses_fn(params):
        return of_tasks(returned(params), plan.num_tasks)[0]

    if first is None:
        first, _ = first_pass(lambda p: (returned(p), ()), params, plan.num_tasks, dtype)
    shared, present = plan.shared, first.present
    if interaction_fn is None and plan.strategy.of_features:
        if given.features_fn is None or given.preconditioner is not None:
            raise ValueError(f"{NEEDED} It takes no preconditioner.")
        features = given.features_fn(params)
        of_features = lambda z: of_tasks(given.losses_fn(params, z), plan.num_tasks)[0]  # noqa: E731
        interaction_fn = lambda _: gram(of_features, features)  # noqa: E731
    elif interaction_fn is None:
        if shared is None and plan.interval is not None:
            shared = shared_lib.found(losses_fn, params)
        measure = gram
        if plan.strategy.gives_products:
            measure = functools.partial(of_vector, plan.strategy)
        elif plan.strategy.parts > 1 and present is not None:
            measure = functools.partial(means.of_parts, gram, plan.strategy, plan.num_tasks)
            losses_fn = returned
        counted = shared_lib.of_counted(losses_fn, params, shared)
        if given.preconditioner is not None:
            own = shared_lib.counted(given.preconditioner, shared)
            counted = geometry.in_units(*counted, own)
        interaction_fn = lambda _: measure(*counted)  # noqa: E731

    def pullback(weights):
        gradient = first.pullback(weights)
        return leaves.like(f"The gradient {OF_PARAMETERS}", gradient, params, may_have_more=True)

    interaction = functools.partial(interaction_fn, params)
    return Step(first.losses, pullback, interaction, present=present, shared=shared)


def _unwrapped(value: Any) -> str:
    """What to do with an array of a library such as Haliax."""
    return " Return its `.array`." if hasattr(value, "array") else ""


def _from_pullback(given: Arguments, params, dtype) -> Step:
    losses = _array("losses must be", given.losses, "they are")
    pullback = _without_tuple(given.pullback, params)
    check_floating(losses)
    if np.promote_types(losses.dtype, dtype) != losses.dtype:
        raise ValueError(
            f"The weights are {dtype}, and a pullback takes them in the dtype of its losses, "
            f"{losses.dtype}, which would round them. Return losses.astype(jnp.{dtype}) from the "
            "function that jax.vjp differentiates."
        )
    where = interaction_base.explicit_mesh(losses) and jax.typeof(losses).sharding

    def pull(weights):
        weights = weights.astype(losses.dtype)
        return pullback(jax.sharding.reshard(weights, where) if where else weights)

    return Step(losses, pull, given.interaction_fn)


def _from_stacked(gradients, given: Arguments, params, plan) -> Step:
    losses = _array("losses must be", given.losses, "they are")
    stacked = _parts(losses, plan) * plan.num_tasks
    expected = jax.tree.map(
        lambda p: jax.ShapeDtypeStruct((stacked, *jnp.shape(p)), jnp.result_type(p)), params
    )
    gradients = leaves.like(
        "With losses and no pullback, updates must be the gradients of the tasks, each leaf "
        f"[{stacked}, ...] with the shape of its parameter",
        gradients,
        expected,
    )
    check_floating(losses)
    return _stacked_step(losses, gradients, plan, given.preconditioner)


def _stacked_step(losses, gradients, plan, preconditioner) -> Step:
    parts, from_gram = _parts(losses, plan), None
    if parts > 1:
        losses = losses.reshape(plan.num_tasks, parts).mean(axis=1)
        from_gram = plan.strategy.from_gram

    def pullback(weights):
        weights = jnp.repeat(weights / parts, parts)
        return jax.tree.map(functools.partial(interaction_base.combined, weights), gradients)

    def matrix():
        own, units = (shared_lib.counted(x, plan.shared) for x in (gradients, preconditioner))
        gram = interaction_base.gram(geometry.scaled(own, units))
        return gram if from_gram is None else from_gram(gram)

    return Step(losses, pullback, matrix)


def _parts(losses, plan) -> int:
    parts = plan.strategy.parts
    return parts if losses.shape == (parts * plan.num_tasks,) else 1


def _array(expected: str, losses: Any, given: str) -> jax.Array:
    try:
        return jnp.asarray(losses)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{expected} one array with a number for each task, [N], but {given} a "
            f"{type(losses).__name__}.{_unwrapped(losses)}"
        ) from error


def _check_batch(name: str, batch: Any, num_tasks: int) -> None:
    expected = f"[{num_tasks} tasks, examples, ...]"
    for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
        where = name + jax.tree_util.keystr(path)
        # A key of JAX's has a dtype that NumPy doesn't know.
        kind = getattr(getattr(leaf, "dtype", None), "kind", None)
        if np.ma.isMaskedArray(leaf) or (kind and kind in "OUSMm"):
            raise ValueError(
                f"{where} must hold numbers that JAX knows, but it is {checks.shown(leaf)}."
            )
        if jnp.ndim(leaf) < 1 or leaf.shape[0] != num_tasks:
            raise ValueError(
                f"{where} must have a leading task axis, {expected}, but its shape is "
                f"{jnp.shape(leaf)}."
            )
        if 0 in leaf.shape:
            raise ValueError(
                f"{where} holds no examples: its shape is {leaf.shape}, expected {expected}. A "
                "task that has none in this batch is marked in `present` and padded."
            )
    if not jax.tree.leaves(batch):
        raise ValueError(f"{name} holds no arrays; expected leaves {expected}.")


_WITH_MORE = " A loss with auxiliary outputs fits the form with losses and pullback."


def _check_scalar_loss(loss_fn, params, batch) -> None:
    losses = jax.eval_shape(jax.vmap(loss_fn, in_axes=(None, 0)), params, batch)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), losses)
    if getattr(shapes, "shape", None) != ():
        raise ValueError(
            "loss_fn must return one number, the mean loss of one task, but it returns "
            f"{shapes}.{_unwrapped(losses) or _WITH_MORE}"
        )
    check_floating(shapes)

"""The forms in which task statistics reach a transformation, and what each of them must look like.

They are listed at :func:`ldro_jax.transform.weighted`. Each becomes a :class:`Step`; a shape that
is not as expected is an error, never a silent broadcast.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ldro_jax import interaction as interaction_lib
from ldro_jax.interaction import base as interaction_base
from ldro_jax.interaction import geometry
from ldro_jax.runtime import checks, leaves

OF_PARAMETERS = "must have the structure and shapes of the parameters"


class Step(NamedTuple):
    """One step's measurements, whatever form the statistics came in.

    Attributes:
      losses: ``[N]``, floating point.
      pullback: ``weights [N] -> gradient``, or with the interaction, :class:`Pulled`; doesn't round
        the weights.
      interaction: ``() -> [N, N]``, or with the noise; ``None`` if there is no way to measure it.
      is_stacked: whether ``updates`` were the gradients of the tasks, and so are used up.
    """

    losses: jax.Array
    pullback: Callable[[jax.Array], Any]
    interaction: Callable[[], jax.Array | interaction_base.Measured] | None
    is_stacked: bool = False


def read(
    arguments: dict[str, Any],
    updates: Any,
    params: Any,
    num_tasks: int,
    strategy: interaction_base.Interaction,
    *,
    dtype: Any,
    fused: bool,
    lagged: bool,
) -> Step:
    """Reads the measurements of one step from the arguments of ``update``.

    Args:
      arguments: the keyword arguments that carry statistics, ``None`` where not given.
      updates: the stacked gradients, in the form that has them.
      params: the parameters, or ``None``.
      num_tasks: N.
      strategy: how to measure the interaction.
      dtype: of the weights.
      fused: whether the interaction is wanted in every step, so that the task gradients may serve
        for the training gradient as well.
      lagged: whether the weights don't need the interaction of this step.

    Returns:
      The :class:`Step`.

    Raises:
      ValueError: if the arguments are in none of the forms, a shape is not as expected, or the
        losses aren't floating-point numbers.
    """
    form = _form(arguments)
    for name, example in _FUNCTIONS.items():
        if arguments[name] is not None:
            checks.function(name, arguments[name], example=example)
    losses = arguments["losses"]
    if losses is not None:
        losses = _array("losses must be", losses, "they are")
    preconditioner = arguments["preconditioner"]
    if preconditioner is not None:
        if arguments["interaction_fn"] is not None or arguments["pullback"] is not None:
            raise ValueError(
                "interaction_fn measures as it likes, so preconditioner can't come with it or with "
                "pullback. Use interaction.preconditioned(strategy, preconditioner) inside of it."
            )
        preconditioner = leaves.like(f"preconditioner {OF_PARAMETERS}", preconditioner, params)
    if params is None and form != "forward":
        raise ValueError("update needs params, as its third argument.")
    if form == "tasks":
        step = _from_tasks(
            strategy,
            preconditioner,
            arguments["loss_fn"],
            params,
            arguments["batch"],
            arguments["interaction_batch"],
            num_tasks,
            dtype,
            fused=fused,
            lagged=lagged,
        )
    elif form == "layout":
        step = _from_losses_fn(
            arguments["losses_fn"], params, arguments["interaction_fn"], preconditioner, dtype
        )
    elif form == "forward":
        pullback = _without_tuple(arguments["pullback"], params)
        step = _from_pullback(losses, pullback, arguments["interaction_fn"], dtype)
    else:
        step = _from_stacked(updates, losses, params, strategy, preconditioner, num_tasks)
    if jnp.shape(step.losses) != (num_tasks,):
        raise ValueError(
            f"There must be one loss for each of the {num_tasks} tasks, shape ({num_tasks},), but "
            f"the losses have shape {jnp.shape(step.losses)}."
        )
    losses = interaction_base.replicated(step.losses)
    return step._replace(losses=losses, is_stacked=form == "stacked")


def _without_tuple(pullback: Any, params: Any) -> Callable:
    """A pullback that returns the gradient alone, where that of ``jax.vjp`` puts it in a tuple.

    The parameters may be such a tuple themselves, so that without them it can't be told.
    """
    if params is None:
        return pullback

    def pull(weights):
        found = pullback(weights)
        return found[0] if _depth(found) > _depth(params) else found

    return pull


def _depth(tree: Any) -> int:
    """How many tuples of one are around a tree."""
    return 1 + _depth(tree[0]) if type(tree) is tuple and len(tree) == 1 else 0


_FUNCTIONS = {
    "loss_fn": "(params, task_batch) -> scalar",
    "losses_fn": "params -> losses [N]",
    "pullback": "weights [N] -> gradient",
    "interaction_fn": "() -> [N, N]",
}

# What each form of the statistics needs, and what may come with it.
_FORMS = {
    "tasks": ({"loss_fn", "batch"}, {"interaction_batch", "preconditioner"}),
    "layout": ({"losses_fn"}, {"interaction_fn", "preconditioner"}),
    "forward": ({"losses", "pullback"}, {"interaction_fn"}),
    "stacked": ({"losses"}, {"preconditioner"}),
}


def _form(arguments: dict[str, Any]) -> str:
    """Which of the four forms the statistics came in."""
    given = {name for name, value in arguments.items() if value is not None}
    for form, (needed, optional) in _FORMS.items():
        if needed <= given <= needed | optional:
            return form
    raise ValueError(
        "update needs the task statistics in one of these forms: loss_fn and batch (and "
        "interaction_batch); losses_fn (and interaction_fn); losses and pullback (and "
        "interaction_fn); or losses, with the stacked task gradients as updates. It was given: "
        f"{', '.join(sorted(given)) or 'none of these (does an Optax wrapper keep them back?)'}."
    )


def _from_tasks(
    strategy,
    preconditioner,
    loss_fn,
    params,
    batch,
    interaction_batch,
    num_tasks,
    dtype,
    *,
    fused,
    lagged,
) -> Step:
    _check_batch("batch", batch, num_tasks)
    _check_scalar_loss(loss_fn, params, batch)
    if interaction_batch is not None:
        _check_batch("interaction_batch", interaction_batch, num_tasks)
    elif lagged and strategy.pullback is not None and preconditioner is None:
        losses, pullback = strategy.pullback(loss_fn, params, batch)
        return Step(losses, pullback, None)
    elif fused and strategy.gradients is not None:
        losses, gradients = strategy.gradients(loss_fn, params, batch)
        return _stacked_step(losses, gradients, strategy, preconditioner, num_tasks)
    else:
        interaction_batch = batch
    strategy = interaction_lib.preconditioned(strategy, preconditioner)
    return _differentiated(
        lambda p: jax.vmap(loss_fn, in_axes=(None, 0))(p, batch),
        params,
        lambda: strategy.matrix(loss_fn, params, interaction_batch),
        dtype,
    )


def _from_losses_fn(given, params, interaction_fn, preconditioner, dtype) -> Step:
    def losses_fn(params):
        return _array("losses_fn must return", given(params), "it returns")

    if interaction_fn is None:
        interaction_fn = functools.partial(interaction_lib.jacobian_gram, losses_fn)
        if preconditioner is not None:
            moved, zero = geometry.in_units(losses_fn, params, preconditioner)
            interaction_fn = lambda _: interaction_lib.jacobian_gram(moved, zero)  # noqa: E731
    return _differentiated(losses_fn, params, functools.partial(interaction_fn, params), dtype)


def _differentiated(losses_fn, params, interaction, dtype) -> Step:
    def at_least_dtype(params):
        losses = interaction_base.replicated(losses_fn(params))
        _check_floating(losses)
        # The pullback then takes the weights as they are; a loss in half precision still
        # differentiates in half precision what it computes in it.
        return losses.astype(np.promote_types(losses.dtype, dtype))

    losses, pullback = jax.vjp(at_least_dtype, params)
    return Step(losses, lambda weights: pullback(weights.astype(losses.dtype))[0], interaction)


def _unwrapped(found: Any) -> str:
    """What to do with an array of a library such as Haliax."""
    return " Return its `.array`." if hasattr(found, "array") else ""


def _from_pullback(losses, pullback, interaction, dtype) -> Step:
    _check_floating(losses)
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

    return Step(losses, pull, interaction)


def _from_stacked(gradients, losses, params, strategy, preconditioner, num_tasks) -> Step:
    stacked = _parts(losses, strategy, num_tasks) * num_tasks
    expected = jax.tree.map(
        lambda p: jax.ShapeDtypeStruct((stacked, *jnp.shape(p)), jnp.result_type(p)), params
    )
    gradients = leaves.like(
        "With losses and no pullback, updates must be the gradients of the tasks, each leaf "
        f"[{stacked}, ...] with the shape of its parameter",
        gradients,
        expected,
    )
    _check_floating(losses)
    return _stacked_step(losses, gradients, strategy, preconditioner, num_tasks)


def _stacked_step(losses, gradients, strategy, preconditioner, num_tasks) -> Step:
    parts, products = _parts(losses, strategy, num_tasks), interaction_base.gram
    if parts > 1:
        losses, products = losses.reshape(num_tasks, parts).mean(axis=1), strategy.products

    def pullback(weights):
        weights = jnp.repeat(weights / parts, parts)
        return jax.tree.map(functools.partial(interaction_base.combined, weights), gradients)

    return Step(losses, pullback, lambda: products(geometry.scaled(gradients, preconditioner)))


def _parts(losses, strategy, num_tasks) -> int:
    return strategy.parts if losses.shape == (strategy.parts * num_tasks,) else 1


def _array(expected: str, losses: Any, found: str) -> jax.Array:
    try:
        return jnp.asarray(losses)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{expected} one array with a number for each task, [N], but {found} a "
            f"{type(losses).__name__}.{_unwrapped(losses)}"
        ) from error


def _check_floating(losses) -> None:
    if not jnp.issubdtype(losses.dtype, jnp.floating):
        raise ValueError(
            "The losses must be real floating-point numbers, or no gradient flows through them, "
            f"but their dtype is {losses.dtype}. Compute them in float32."
        )


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
    found = jax.eval_shape(jax.vmap(loss_fn, in_axes=(None, 0)), params, batch)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), found)
    if getattr(shapes, "shape", None) != ():
        raise ValueError(
            "loss_fn must return one number, the mean loss of one task, but it returns "
            f"{shapes}.{_unwrapped(found) or _WITH_MORE}"
        )
    _check_floating(shapes)

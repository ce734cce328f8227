"""The forms in which task statistics reach a transformation, and what each of them must look like.

They are listed at :func:`ldro_jax.transform.weighted`. Each becomes a :class:`Step`; a shape that
is not as expected is an error, never a silent broadcast.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ldro_jax import interaction as interaction_lib
from ldro_jax.interaction import base as interaction_base


class Step(NamedTuple):
    """One step's measurements, whatever form the statistics came in.

    Attributes:
      losses: ``[N]``.
      pullback: ``weights [N] -> gradient``.
      interaction: ``() -> [N, N]``, or ``None`` if there is no way to measure it.
      is_stacked: whether ``updates`` were the gradients of the tasks, and so are used up.
    """

    losses: jax.Array
    pullback: Callable[[jax.Array], Any]
    interaction: Callable[[], jax.Array] | None
    is_stacked: bool = False


def read(
    arguments: dict[str, Any],
    updates: Any,
    params: Any,
    num_tasks: int,
    strategy: interaction_base.Interaction,
    *,
    fused: bool,
) -> Step:
    """Reads the measurements of one step from the arguments of ``update``.

    Args:
      arguments: the keyword arguments that carry statistics, ``None`` where not given.
      updates: the stacked gradients, in the form that has them.
      params: the parameters, or ``None``.
      num_tasks: N.
      strategy: how to measure the interaction.
      fused: whether the interaction is wanted in every step, so that the task gradients may serve
        for the training gradient as well.

    Returns:
      The :class:`Step`.

    Raises:
      ValueError: if the arguments are in none of the forms, or a shape is not as expected.
    """
    form = _form(arguments)
    if params is None and form in ("tasks", "layout"):
        raise ValueError("update needs params, as its third argument.")
    if form == "tasks":
        step = _from_tasks(
            strategy,
            arguments["loss_fn"],
            params,
            arguments["batch"],
            arguments["interaction_batch"],
            num_tasks,
            fused=fused,
        )
    elif form == "layout":
        step = _from_losses_fn(arguments["losses_fn"], params, arguments["interaction_fn"])
    elif form == "forward":
        step = Step(arguments["losses"], arguments["pullback"], arguments["interaction_fn"])
    else:
        step = _from_stacked(updates, arguments["losses"], num_tasks)
    if jnp.shape(step.losses) != (num_tasks,):
        raise ValueError(
            f"There must be one loss for each of the {num_tasks} tasks, shape ({num_tasks},), but "
            f"the losses have shape {jnp.shape(step.losses)}."
        )
    return step._replace(is_stacked=form == "stacked")


def check_like(what: str, tree: Any, params: Any) -> None:
    """Raises ``ValueError`` unless a tree has the structure and shapes of the parameters.

    Args:
      what: how to call it in the error.
      tree: the tree to check.
      params: the parameters, or something like them.

    Raises:
      ValueError: if it has not.
    """
    # Not the trees themselves: a container may have no equality, or one of its own.
    same = jax.tree.structure(tree) == jax.tree.structure(params) and all(
        jnp.shape(x) == jnp.shape(p)
        for x, p in zip(jax.tree.leaves(tree), jax.tree.leaves(params), strict=True)
    )
    if not same:
        raise ValueError(
            f"{what} must have the structure and shapes of the parameters, "
            f"{jax.tree.map(jnp.shape, params)}, but has {jax.tree.map(jnp.shape, tree)}."
        )


# What each form of the statistics needs, and what may come with it.
_FORMS = {
    "tasks": ({"loss_fn", "batch"}, {"interaction_batch"}),
    "layout": ({"losses_fn"}, {"interaction_fn"}),
    "forward": ({"losses", "pullback"}, {"interaction_fn"}),
    "stacked": ({"losses"}, set()),
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
        f"{', '.join(sorted(given)) or 'none of these arguments'}."
    )


def _from_tasks(strategy, loss_fn, params, batch, interaction_batch, num_tasks, *, fused) -> Step:
    _check_batch("batch", batch, num_tasks)
    _check_scalar_loss(loss_fn, params, batch)
    if interaction_batch is not None:
        _check_batch("interaction_batch", interaction_batch, num_tasks)
    elif fused and strategy.gradients is not None:
        return _stacked_step(*strategy.gradients(loss_fn, params, batch))
    else:
        interaction_batch = batch
    losses, pullback = jax.vjp(lambda p: jax.vmap(loss_fn, in_axes=(None, 0))(p, batch), params)
    return Step(
        losses,
        lambda weights: pullback(weights)[0],
        lambda: strategy.matrix(loss_fn, params, interaction_batch),
    )


def _from_losses_fn(losses_fn, params, interaction_fn) -> Step:
    losses, pullback = jax.vjp(losses_fn, params)
    if interaction_fn is None:
        interaction_fn = functools.partial(interaction_lib.jacobian_gram, losses_fn)
    return Step(
        losses, lambda weights: pullback(weights)[0], functools.partial(interaction_fn, params)
    )


def _from_stacked(gradients, losses, num_tasks) -> Step:
    leaves = jax.tree.leaves(gradients)
    if not leaves or any(g.ndim == 0 or g.shape[0] != num_tasks for g in leaves):
        raise ValueError(
            "With losses and no pullback, updates must be the gradients of the tasks, each leaf "
            f"[{num_tasks}, ...], but their shapes are {[g.shape for g in leaves]}."
        )
    return _stacked_step(losses, gradients)


def _stacked_step(losses, gradients) -> Step:
    def pullback(weights):
        return jax.tree.map(
            lambda g: jnp.tensordot(
                weights.astype(g.dtype), g, axes=1, precision=jax.lax.Precision.HIGHEST
            ),
            gradients,
        )

    return Step(losses, pullback, lambda: interaction_base.gram(gradients))


def _check_batch(name: str, batch: Any, num_tasks: int) -> None:
    expected = f"[{num_tasks} tasks, examples, ...]"
    for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
        where = name + jax.tree_util.keystr(path)
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


def _check_scalar_loss(loss_fn, params, batch) -> None:
    shapes = jax.eval_shape(lambda p, x: loss_fn(p, interaction_base.task(x, 0)), params, batch)
    if getattr(shapes, "shape", None) != ():
        raise ValueError(
            "loss_fn must return one number, the mean loss of one task, but it returns "
            f"{shapes}. A loss with auxiliary outputs fits the form with losses and pullback."
        )

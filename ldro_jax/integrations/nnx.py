"""A training step of Flax NNX: the model's parameters, running statistics and random counts."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ldro_jax.runtime import checks
from ldro_jax.transform import find_state, forms
from ldro_jax.transform.tap import move_on, values


def update(
    optimizer: nnx.Optimizer,
    model: nnx.Module,
    losses_fn: Callable[..., Any],
    *args: Any,
    has_aux: bool = False,
    **kwargs: Any,
) -> Any:
    """One step, in the place of ``nnx.value_and_grad`` and ``optimizer.update``.

    What is trained is what the optimizer was built for, its ``wrt``: with ``nnx.LoRAParam`` the
    weighting sees the gradients of these alone. Running statistics and the counts of random streams
    move on once, as in a plain step, and all that the weighting measures sees the model as it was
    before. Call it in ``nnx.jit``, where the compiler computes the forward pass that gives them
    once.

    Args:
      optimizer: of a chain with a task weighting.
      model: is changed, as is the optimizer.
      losses_fn: ``(model, *args, **kwargs) -> losses [N]``, or :class:`~ldro_jax.ldro.Rows`.
      *args: for it, such as a batch, or ``nnx.Rngs``, which move on once as well.
      has_aux: whether it returns a pair of that and something else.
      **kwargs: for it.

    Returns:
      The losses of the tasks, ``[N]``, an absent one's of the last step that had it; with
      ``has_aux`` a pair of these and the something else.

    Raises:
      ValueError: if the optimizer has no task weighting, and as ``update`` of
        :func:`ldro_jax.transform.weighted` does.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from flax import nnx
      >>> from ldro_jax import ldro
      >>> from ldro_jax.integrations import nnx as ldro_nnx
      >>> model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
      >>> tx = optax.chain(ldro.transform(2), optax.sgd(0.1))
      >>> optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
      >>> def task_losses(model, batch):
      ...     return ldro.Rows((model(batch["x"])[:, 0] - batch["y"]) ** 2, batch["task"])
      >>> step = nnx.jit(lambda *given: ldro_nnx.update(given[0], given[1], task_losses, given[2]))
      >>> batch = {"x": jnp.eye(2), "y": jnp.array([1.0, 2.0]), "task": jnp.array([0, 1])}
      >>> step(optimizer, model, batch).shape
      (2,)
    """
    checks.instance(
        "optimizer", optimizer, nnx.Optimizer, "nnx.Optimizer(model, tx, wrt=nnx.Param)"
    )
    checks.function("losses_fn", losses_fn, example="(model, batch) -> losses [N]")
    checks.flag("has_aux", has_aux)
    # Before anything is traced: an optimizer alone would say something else.
    find_state(optimizer.opt_state)
    graph, params, rest = nnx.split(model, optimizer.wrt, ...)

    def copied(tree):
        # Variables belong to the trace that they are made in.
        return jax.tree.map(lambda x: x, tree)

    before = copied((args, kwargs))

    def of(params):
        moved, (args, kwargs) = nnx.merge(graph, params, copied(rest)), copied(before)
        found = losses_fn(moved, *args, **kwargs)
        given, aux = found if has_aux else (found, None)
        after = nnx.state(moved, nnx.Not(optimizer.wrt))
        return given, (aux, after, values((args, kwargs)))

    known = jnp.asarray(find_state(optimizer.opt_state).losses)
    first, (aux, after, streams) = forms.first_pass(of, params, known.size)
    optimizer.update(model, None, losses_fn=first)
    nnx.update(model, after)
    move_on((args, kwargs), streams)
    # What the state has of a loss that isn't finite is that of an earlier step.
    losses = first.losses.astype(known.dtype)
    losses = losses if first.present is None else jnp.where(first.present, losses, known)
    return (losses, aux) if has_aux else losses

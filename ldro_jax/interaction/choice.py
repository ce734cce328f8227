"""Choosing a strategy by name, or from the shapes of a problem."""

from typing import Any

import jax

from ldro_jax import checks
from ldro_jax.interaction import base
from ldro_jax.interaction.columns import columns
from ldro_jax.interaction.jacrev import jacrev
from ldro_jax.interaction.scan import scan
from ldro_jax.interaction.tiled import tiled
from ldro_jax.interaction.vmap import vmap

STRATEGIES = {"columns": columns, "jacrev": jacrev, "scan": scan, "tiled": tiled, "vmap": vmap}

# How much more memory than the gradients of the model a strategy chosen automatically may take, as
# a multiple of the model and in bytes, whichever is more.
_MODELS = 8
_BYTES = 2**30


def get(strategy: str | base.Interaction) -> base.Interaction:
    """Returns a strategy by its name, or as it was given.

    Args:
      strategy: a key of ``STRATEGIES``, ``"auto"``, or an
        :class:`~ldro_jax.interaction.base.Interaction`.

    Returns:
      The :class:`~ldro_jax.interaction.base.Interaction`.

    Raises:
      ValueError: if there is no strategy of that name.
    """
    if isinstance(strategy, base.Interaction):
        return strategy
    if strategy == "auto":
        return auto()
    names = ["auto", *STRATEGIES]
    expected = f"an Interaction or one of {', '.join(names)}"
    checks.require(strategy in names, "interaction", expected, strategy)
    return STRATEGIES[strategy]()


def auto() -> base.Interaction:
    """Chooses a strategy with :func:`choose` when it is traced.

    Returns:
      The :class:`~ldro_jax.interaction.base.Interaction`.
    """

    def matrix(loss_fn, params, batch):
        return get(choose(loss_fn, params, batch)).matrix(loss_fn, params, batch)

    def gradients(loss_fn, params, batch):
        # All N gradients are wanted here, so memory can't decide; only the speed of convolutions
        # does.
        name = "scan" if _slow_under_vmap(loss_fn, params, batch) else "vmap"
        gradients_of = STRATEGIES[name]().gradients
        assert gradients_of is not None
        return gradients_of(loss_fn, params, batch)

    return base.Interaction(matrix, gradients)


def choose(loss_fn: base.LossFn, params: Any, batch: Any) -> str:
    """Name of the strategy that suits a problem.

    ``vmap``, unless the N gradients of the largest parameter would take too much memory (a stacked
    layer axis can hide a whole model in one leaf): then ``tiled``. On CPU, ``scan`` for a loss with
    convolutions if its N gradients fit, because XLA:CPU is slow at their batched weight gradients.

    Args:
      loss_fn: ``(params, task_batch) -> scalar``.
      params: arrays or their shapes.
      batch: arrays or their shapes, ``[task, example, ...]``.

    Returns:
      A key of ``STRATEGIES``.
    """
    num_tasks = base.num_tasks(batch)
    sizes = [leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params)]
    limit = max(_MODELS * sum(sizes), _BYTES)
    if num_tasks * sum(sizes) <= limit and _slow_under_vmap(loss_fn, params, batch):
        return "scan"
    return "vmap" if num_tasks * max(sizes) <= limit else "tiled"


def _slow_under_vmap(loss_fn: base.LossFn, params: Any, batch: Any) -> bool:
    if jax.default_backend() != "cpu":
        return False
    first = jax.eval_shape(lambda x: base.task(x, 0), batch)
    jaxpr = jax.make_jaxpr(loss_fn)(jax.tree.map(_shape, params), first)
    # The text names the primitives of nested jaxprs as well.
    return "conv_general_dilated" in str(jaxpr)


def _shape(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)

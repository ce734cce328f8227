"""Choosing a strategy by name, or from the shapes of a problem."""

import contextlib
import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ldro_jax.interaction import base, slices
from ldro_jax.interaction.columns import columns
from ldro_jax.interaction.features import features
from ldro_jax.interaction.jacrev import jacrev
from ldro_jax.interaction.layerwise import held, layerwise
from ldro_jax.interaction.offload import offload
from ldro_jax.interaction.products import products
from ldro_jax.interaction.scan import scan
from ldro_jax.interaction.tiled import tiled
from ldro_jax.interaction.vmap import vmap
from ldro_jax.runtime import checks, equations
from ldro_jax.runtime import leaves as leaves_lib

# The ways to measure the whole matrix, by name; "auto" chooses among some of them.
STRATEGIES: dict[str, Callable[..., base.Interaction]] = {
    "columns": columns,
    "jacrev": jacrev,
    "layerwise": layerwise,
    "offload": offload,
    "scan": scan,
    "tiled": tiled,
    "vmap": vmap,
}


def get(strategy: str | base.Interaction) -> base.Interaction:
    """Returns a strategy by its name, or as it was given.

    Args:
      strategy: a key of ``STRATEGIES``, ``"auto"``, ``"split"``, ``"features"`` or ``"products"``;
        or an :class:`~ldro_jax.interaction.base.Interaction`.

    Raises:
      ValueError: if there is no strategy of that name.
    """
    if isinstance(strategy, base.Interaction):
        return strategy
    names = ["auto", *STRATEGIES, *[name for name in _OTHERS if name != "auto"]]
    expected = f"an Interaction or one of {', '.join(names)}"
    checks.require(strategy in names, "interaction", expected, strategy)
    return (STRATEGIES | _OTHERS)[strategy]()


@leaves_lib.needs_arrays
def auto(shardings: Any = None) -> base.Interaction:
    """Chooses a strategy with :func:`choose` when it is traced.

    Args:
      shardings: of the parameters, a pytree of ``NamedSharding``, if they are spread over a mesh.
        Gradients are then taken one task after another, or with ``lagged`` layer by layer, and
        split over the mesh axis ``data`` as well.
    """

    def constrain(gradient):
        split = jax.tree.map(base.over_data, gradient, shardings)
        return jax.lax.with_sharding_constraint(gradient, split)

    by_layers = layerwise(shardings)
    one_by_one = scan(constrain=None if shardings is None else constrain)

    def matrix(loss_fn, params, batch):
        # On a mesh the rows of a task are filled up so that every device has one, and of all tasks
        # at once that takes more memory than their gradients one after another.
        chosen = one_by_one if shardings else get(choose(loss_fn, params, batch))
        return chosen.matrix(loss_fn, params, batch)

    def gradients(loss_fn, params, batch, **options):
        # All N gradients are wanted here, so memory can't decide; only the mesh and the speed of
        # convolutions do.
        apart = shardings is not None or _slow_under_vmap(loss_fn, params, batch)
        gradients_of = (one_by_one if apart else vmap()).gradients
        assert gradients_of is not None
        return gradients_of(loss_fn, params, batch, **options)

    def pullback(loss_fn, params, batch, *, has_aux=False, shared=None):
        loss = (lambda *both: loss_fn(*both)[0]) if has_aux else loss_fn
        apart = shardings is not None and _held(loss, params, batch, layers=True) is None
        if not apart and not _slow_under_vmap(loss, params, batch):
            # Layers that aren't scanned are used up leaf by leaf.
            assert by_layers.pullback is not None
            with contextlib.suppress(equations.UnknownFormError):
                return by_layers.pullback(loss_fn, params, batch, has_aux=has_aux, shared=shared)
        losses, stacked = gradients(loss_fn, params, batch, has_aux=has_aux)
        return losses, functools.partial(_pulled, stacked, base.flags(params, shared))

    return base.Interaction(matrix, gradients, pullback=pullback)


def _pulled(stacked: Any, counted: list[bool], weights: jax.Array) -> base.Pulled:
    gradient = jax.tree.map(functools.partial(base.combined, weights), stacked)
    own = itertools.compress(jax.tree.leaves(stacked), counted)
    return base.Pulled(gradient, base.gram(list(own)))


def split(strategy: str | base.Interaction = "auto", *, fused: bool = False) -> base.Interaction:
    """Takes the diagonal from the product of two halves of each task's examples.

    The squared length of a minibatch's gradient is that of the true one and its variance, which can
    be many times as much: lookahead then sees tasks that only help themselves. Two halves have
    noise of their own, so that the mean of their inner product over minibatches is the true squared
    length. An entry of the diagonal can be negative; methods take that for a gradient of zero.
    Entries between tasks have no such bias and stay as they are. What the diagonal loses is an
    estimate of the variance of each task's gradient, which comes with the matrix.

    It takes up to twice the memory for gradients and about one and a half times the time, and needs
    an even number of examples of each task. In a batch each leaf is ``[task, example, ...]``, or
    ``[task]`` where there is one value for all examples of a task, which both halves get. So a key
    of each task must be of ``jax.random.key``, an array ``[task]``: the numbers of a
    ``jax.random.PRNGKey``, ``[task, 2]``, would be cut in half, and so would features
    ``[task, feature]``. Leaves that don't agree on the number of examples are refused; two numbers
    beside two examples can't be told apart.

    Args:
      strategy: how to measure the interaction of the 2N halves.
      fused: with an ``interaction_interval`` of 1, take the training gradient from the same pass,
        as the mean of those of the halves. Only for losses that are plain means over the examples:
        of two masked halves the mean isn't that of the whole. The trainer sees to it by itself.

    Raises:
      ValueError: if the strategy measures no matrix of the parameters' gradients, or ``fused`` is
        asked of one that never holds them all.
    """
    inner = get(strategy)
    if inner.gives_products or inner.of_features:
        raise ValueError("split needs a strategy that measures the matrix, such as 'auto'.")
    checks.flag("fused", fused)
    if fused and inner.gradients is None:
        raise ValueError(
            "fused needs a strategy that holds the gradients of all tasks, such as 'vmap'."
        )

    def matrix(loss_fn, params, batch):
        return _crossed(inner.matrix(loss_fn, params, _in_halves(batch)))

    def gradients(loss_fn, params, batch, **options):
        assert inner.gradients is not None
        return inner.gradients(loss_fn, params, _in_halves(batch), **options)

    return base.Interaction(
        matrix,
        gradients if fused else None,
        multiple=2,
        parts=2,
        from_gram=_crossed,
    )


def _crossed(halves: Any) -> base.Measured:
    """The matrix of tasks from that of their halves, ``[2N, 2N]``."""
    blocks = halves.reshape(halves.shape[0] // 2, 2, halves.shape[1] // 2, 2)
    full = blocks.mean(axis=(1, 3))
    # Each half with the other.
    crossed = (blocks[:, 0, :, 1] + blocks[:, 1, :, 0]) / 2
    matrix = jnp.where(jnp.eye(full.shape[0], dtype=bool), crossed, full)
    return base.Measured(matrix, jnp.diagonal(full - crossed))


def _in_halves(batch: Any) -> Any:
    leaves = jax.tree_util.tree_leaves_with_path(batch)
    counts = {
        jax.tree_util.keystr(path): leaf.shape[1] for path, leaf in leaves if jnp.ndim(leaf) > 1
    }
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"batch{name} {count}" for name, count in counts.items())
        raise ValueError(
            "interaction='split' halves the examples of each task, the second axis of every leaf, "
            f"but these aren't as many in all of them: {listed}. What is one value for a task must "
            "be an array [task], such as a key of jax.random.key (not of PRNGKey)."
        )
    return jax.tree.map(_halves, batch)


def _halves(leaf: jax.Array) -> jax.Array:
    """``[N, examples, ...]`` as ``[2N, examples / 2, ...]``, every other example."""
    if leaf.ndim == 1:  # one number for each task
        return jnp.repeat(leaf, 2)
    num_tasks, examples = leaf.shape[:2]
    if examples % 2:
        raise ValueError(
            "interaction='split' needs an even number of examples of each task, to halve them, but "
            f"there are {examples}."
        )
    if base.explicit_mesh(leaf) is not None:
        # Halves of so few rows can't always be split over the devices.
        leaf = base.replicated(leaf)
    # Rows that only fill up a batch come last, and each half must have real ones.
    pairs = leaf.reshape(num_tasks, examples // 2, 2, *leaf.shape[2:])
    return pairs.swapaxes(1, 2).reshape(2 * num_tasks, examples // 2, *leaf.shape[2:])


def choose(loss_fn: base.LossFn, params: Any, batch: Any) -> str:
    """Name of the strategy that suits a problem, a key of ``STRATEGIES``.

    ``layerwise`` if layers are scanned, or dense and large; otherwise ``vmap``. ``tiled`` if the N
    gradients that they hold at a time would take too much memory. On CPU, ``scan`` for a loss with
    convolutions if its N gradients fit, because XLA:CPU is slow at their batched weight gradients.
    Where a newer JAX traces programs in a form that isn't known, there are no layers.

    Args:
      loss_fn: ``(params, task_batch) -> scalar``.
      params: arrays or their shapes.
      batch: arrays or their shapes, ``[task, example, ...]``.
    """
    leaves_lib.check_arrays("params", params)
    num_tasks = base.num_tasks(batch)
    sizes = [leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params)]
    limit = base.limit(params)
    if num_tasks * sum(sizes) <= limit and _slow_under_vmap(loss_fn, params, batch):
        return "scan"
    # The gradients of small parameters aren't worth slicing.
    is_large = max(leaf.size for leaf in jax.tree.leaves(params)) > slices.size()
    in_parts = _held(loss_fn, params, batch, layers=not is_large)
    if (num_tasks * max(sizes) if in_parts is None else in_parts) > limit:
        return "tiled"
    return "vmap" if in_parts is None else "layerwise"


def _held(loss_fn: base.LossFn, params: Any, batch: Any, *, layers: bool) -> int | None:
    """What :func:`.layerwise.held` says; ``None`` as well where the program can't be read."""
    if layers and not _has("scan", loss_fn, params, batch):
        return None
    with contextlib.suppress(equations.UnknownFormError):
        return held(loss_fn, params, batch, layers=layers)
    return None


def _slow_under_vmap(loss_fn: base.LossFn, params: Any, batch: Any) -> bool:
    """Whether one task after another is faster, by the convolutions in their gradients.

    XLA:CPU is slow at the batched gradients of kernels, but in a loop at all convolutions that
    aren't in the layout of a forward pass, and far more so.
    """
    if jax.default_backend() != "cpu" or not _has("conv_general_dilated", loss_fn, params, batch):
        return False
    of_task = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), batch)
    gradient = jax.make_jaxpr(jax.grad(loss_fn))(params, of_task)
    return not any(equations.batch_axes_of_convolutions(gradient))


def _has(name: str, loss_fn: base.LossFn, params: Any, batch: Any) -> bool:
    jaxpr = jax.make_jaxpr(jax.vmap(loss_fn, in_axes=(None, 0)))(params, batch)
    return equations.mentions(jaxpr, name)


# Those that choose or wrap one of STRATEGIES, or measure no matrix.
_OTHERS = {"auto": auto, "split": split, "features": features, "products": products}

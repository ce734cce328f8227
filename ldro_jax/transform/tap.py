"""A weighting inside a trainer that calls ``update(gradient, state, params)`` and nothing more.

Such a trainer differentiates one scalar loss and hands its gradient over. A weighting needs the
losses of all tasks as a function of the parameters. Both are called while the trainer's step is
traced, one after the other, so the loss can leave that function where the weighting finds it.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jax.custom_derivatives import SymbolicZero

from ldro_jax.runtime import checks, leaves
from ldro_jax.transform import forms
from ldro_jax.transform.weighted import Weighted

_ORDER = (
    "The step of a trainer must differentiate tap.loss and then call update, in one trace: the "
    "loss can't be in a scan, a jax.checkpoint or a function that is compiled by itself. To "
    "accumulate gradients, chain optax.MultiSteps after the weighting."
)


class _Call(NamedTuple):
    """A call of the loss that was differentiated.

    Attributes:
      losses_fn: what the losses function gives, with its pullback to what was differentiated.
      params: those that it was called with, and what else a module holds.
      moved: those of them that were differentiated.
      traces: the programs that its arrays are of, one or none.
      depends: whether its other arguments depend on the parameters.
    """

    losses_fn: Any
    params: Any
    moved: Any
    traces: set[Any]
    depends: bool


class Tap:
    """Hands the losses of the tasks from a trainer's loss to a weighting; see :func:`tap`.

    Attributes:
      loss: for the trainer, the mean of the losses of the tasks that are present: a function with
        the arguments of ``losses_fn``, that gives a scalar, and with ``has_aux`` a pair of it and
        what ``losses_fn`` gives besides.
    """

    def __init__(
        self,
        losses_fn: Callable[..., Any],
        num_tasks: int,
        has_aux: bool = False,
        gradient: bool = True,
    ):
        checks.function("losses_fn", losses_fn, example="(params, batch) -> losses [N]")
        checks.integer("num_tasks", num_tasks)
        checks.flag("has_aux", has_aux)
        checks.flag("gradient", gradient)
        self._losses_fn, self._num_tasks, self._has_aux = losses_fn, num_tasks, has_aux
        self._gradient = gradient
        self._calls: list[_Call] = []

        # Flax NNX, among others, looks up its arguments.
        @functools.wraps(losses_fn)
        def loss(params, *args, **kwargs):
            return self._loss(params, args, kwargs)

        self.loss = loss

    def _loss(self, params: Any, args: Any, kwargs: Any) -> Any:
        state, with_params = _taken_apart(params)
        arrays, with_arrays = _arrays((args, kwargs))
        rest = []

        def of(state, arrays, params=None):
            # A module may change in the call, and so may those and random streams in its arguments.
            module, given = with_params(state, params), with_arrays(arrays)
            (args, kwargs), before = given, values(given)
            found = self._losses_fn(module, *args, **kwargs)
            losses, aux = found if self._has_aux else (found, None)
            pairs = zip(before, values(given), strict=True)
            moved = [None if _same(old, new) else new for old, new in pairs]
            flat, together = _arrays((aux, _changed(module, state), moved))
            rest.append(together)
            return losses, flat

        @jax.custom_jvp
        def loss(state, arrays):
            found, flat = of(state, arrays)
            losses, present = forms.of_tasks(found, self._num_tasks)
            return _mean(losses, present), flat

        @functools.partial(loss.defjvp, symbolic_zeros=True)
        def _(primals, tangents):
            state, arrays = primals
            here, structure = jax.tree.flatten(state)
            moves, others = (jax.tree.leaves(x, is_leaf=_is_zero) for x in tangents)
            own = [None if _is_zero(t) else x for x, t in zip(here, moves, strict=True)]

            def passed(own):
                whole = [x if y is None else y for x, y in zip(here, own, strict=True)]
                return of(structure.unflatten(whole), arrays)

            # The trainer's loss and the weighting's are of one pass, and so are their gradients.
            first, flat = forms.first_pass(passed, own, self._num_tasks)
            mean, count = _mean(first.losses, first.present), _count(first.losses, first.present)
            tangent = jnp.zeros_like(mean)
            if self._gradient:
                gradient = first.pullback(jnp.ones_like(first.losses) / count)
                for x, t in zip(gradient, moves, strict=True):
                    tangent += 0 if x is None else (x * t).sum().astype(mean.dtype)
            known = dataclasses.replace(
                first,
                losses_fn=lambda params: of(state, arrays, params)[0],
                pullback=lambda weights: structure.unflatten(first.pullback(weights)),
            )
            depends, traces = not all(map(_is_zero, others)), _traces((state, arrays))
            self._calls.append(_Call(known, state, structure.unflatten(own), traces, depends))
            # Two tell that there was more than one, and what never gets to an update piles up.
            del self._calls[:-2]
            return (mean, flat), (tangent, [_no_tangent(x) for x in flat])

        mean, flat = loss(state, arrays)
        aux, changed, moved = rest[-1](flat)
        _change(params, changed)
        move_on((args, kwargs), moved)
        return (mean, aux) if self._has_aux else mean

    def __call__(self, weighting: Weighted) -> optax.GradientTransformationExtraArgs:
        """The weighting for the trainer's optimizer: ``optax.chain(tap(weighting), optimizer)``.

        Its ``update`` doesn't use the gradient that it is given.

        Raises:
          ValueError: if it is given anything else, or has another number of tasks.
        """
        if not isinstance(weighting, Weighted):
            raise ValueError(
                "tap takes the weighting alone, as ldro.transform or transform.weighted makes it, "
                f"but it was given {checks.shown(weighting)}. Chain the optimizer after it: "
                "optax.chain(tap(ldro.transform(...)), optax.adam(...))."
            )
        if weighting.plan.num_tasks != self._num_tasks:
            raise ValueError(
                f"The tap has {self._num_tasks} tasks, but the weighting has "
                f"{weighting.plan.num_tasks}."
            )

        def update_fn(updates, state, params=None, **extra_args):
            _check_axes()
            calls, self._calls[:] = list(self._calls), []
            none = jax.tree.map(lambda _: None, updates)
            call = _one(calls, params)
            return weighting.update(none, state, params, losses_fn=call.losses_fn, **extra_args)

        return optax.GradientTransformationExtraArgs(weighting.init, update_fn)


def tap(
    losses_fn: Callable[..., Any], num_tasks: int, *, has_aux: bool = False, gradient: bool = True
) -> Tap:
    """Weighs the tasks inside a trainer that differentiates a loss of its own accord.

    The trainer gets ``tap.loss`` as its loss and ``tap(weighting)`` in front of its optimizer, and
    stays as it is otherwise::

        tap = ldro.tap(task_losses, num_tasks=5)
        optimizer = optax.chain(tap(ldro.transform(num_tasks=5)), optax.adam(1e-3))
        trainer = Trainer(model, optimizer).with_loss_fn(tap.loss)

    While a step is traced, ``tap.loss`` notes the function from parameters to task losses, and the
    weighting takes it as the ``losses_fn`` of its ``update``, see
    :func:`ldro_jax.transform.weighted`. The gradient that the trainer computed isn't used, and the
    compiler leaves it out unless the trainer does something else with it, such as logging its
    length; then it costs a backward pass, or with ``gradient=False`` nothing. ``tap.loss`` may also
    be called where nothing is differentiated, as in an evaluation. What belongs to no task, such as
    an L2 term, is added to the loss of each. The losses and their gradient are those at the
    parameters of ``tap.loss``, and A is measured at those of ``update``: give both the same.

    Args:
      losses_fn: ``(params, ...) -> losses [N]``, or :class:`~ldro_jax.ldro.Rows` where the rows of
        a batch belong to tasks. In the place of parameters may come a Flax NNX module.
      num_tasks: N.
      has_aux: whether it returns a pair of that and something else, for the trainer.
      gradient: whether the trainer gets the gradient of the mean loss. Otherwise it gets zeros,
        which cost nothing, whatever it does with them.

    Returns:
      The :class:`Tap`.

    Raises:
      ValueError: by ``update``, if ``tap.loss`` wasn't differentiated before it in the same trace,
        or more than once, or with parameters of other names, shapes or dtypes than those of
        ``update``; and in ``jax.pmap``, or ``jax.shard_map`` with ``check_vma=False``.

    Example:
      >>> import jax, optax
      >>> import jax.numpy as jnp
      >>> from ldro_jax import ldro
      >>> def task_losses(params, batch):
      ...     return ldro.Rows((batch["x"] @ params - batch["y"]) ** 2, batch["task"])
      >>> tap = ldro.tap(task_losses, num_tasks=2)
      >>> weighting = ldro.transform(num_tasks=2, lookahead_lr=0.1, weight_lr=0.1)
      >>> tx = optax.chain(tap(weighting), optax.sgd(0.1))
      >>> @jax.jit
      ... def step(params, opt_state, batch):  # a trainer's own
      ...     grads = jax.grad(tap.loss)(params, batch)
      ...     updates, opt_state = tx.update(grads, opt_state, params)
      ...     return optax.apply_updates(params, updates), opt_state
      >>> batch = {"x": jnp.eye(2), "y": jnp.array([1.0, 2.0]), "task": jnp.array([0, 1])}
      >>> params, opt_state = step(jnp.zeros(2), tx.init(jnp.zeros(2)), batch)
      >>> [round(float(w), 2) for w in ldro.weights(opt_state)]
      [0.49, 0.51]
    """
    return Tap(losses_fn, num_tasks, has_aux, gradient)


def _count(losses: jax.Array, present: Any) -> Any:
    return losses.size if present is None else jnp.maximum(present.sum(), 1).astype(losses.dtype)


def _mean(losses: jax.Array, present: Any) -> jax.Array:
    """Of the tasks that are present; the loss of an absent one is zero."""
    losses = losses.astype(jnp.promote_types(losses.dtype, jnp.zeros(()).dtype))
    return losses.sum() / _count(losses, present)


def _is_zero(x: Any) -> bool:
    return isinstance(x, SymbolicZero)


def _no_tangent(x: jax.Array) -> SymbolicZero:
    return SymbolicZero(jax.typeof(x).to_tangent_aval())


def _traces(tree: Any) -> set[Any]:
    """The programs being traced that the arrays of a tree are of; none for plain arrays."""
    tracers = [x for x in jax.tree.leaves(tree) if isinstance(x, Tracer)]
    return {x._trace for x in tracers}


def _around(traces: set[Any]) -> set[Any]:
    """These and the programs that they are traced in."""
    found = set()
    for trace in traces:
        while trace is not None:
            found.add(trace)
            trace = getattr(trace, "parent_trace", None)
    return found


def _check_axes() -> None:
    """Raises ``ValueError`` where each device differentiates the loss of its own rows."""
    plain = jax.typeof(jnp.zeros((), jnp.int32))
    for axis in getattr(jax.sharding.get_abstract_mesh(), "manual_axes", ()):
        # With check_vma, JAX sums the gradient over the devices itself, or refuses the program.
        if jax.typeof(jax.lax.axis_index(axis)) == plain:
            raise ValueError(
                "In jax.pmap, or jax.shard_map with check_vma=False, each device would weigh by "
                "its own rows, and the gradient that the trainer averages isn't used. Compile the "
                "step with jax.jit and shard the batch, or give jax.shard_map check_vma=True and "
                "average the losses of the devices in losses_fn."
            )


def _module(params: Any) -> Any:
    """Flax NNX, if the parameters are a module of it."""
    nnx = sys.modules.get("flax.nnx")
    return nnx if nnx is not None and isinstance(params, nnx.Module) else None


def _taken_apart(params: Any) -> tuple[Any, Callable[[Any, Any], Any]]:
    """The arrays of parameters or a module, and ``(these, others or None) -> the same``."""
    nnx = _module(params)
    if nnx is None:
        return params, lambda state, params: state if params is None else params
    graph, state = nnx.split(params)

    def with_params(state, params):
        # Variables belong to the trace that they are made in.
        module = nnx.merge(graph, jax.tree.map(lambda x: x, state))
        if params is not None:
            nnx.update(module, params)
        return module

    return jax.tree.map(lambda x: x, state), with_params


def _changed(module: Any, state: Any) -> Any:
    """The variables of a module that a call changed or made, of which ``state`` was the state."""
    nnx = _module(module)
    if nnx is None:
        return None
    before = dict(nnx.to_flat_state(state))

    def is_new(path, variable):
        # One may have the value that another had.
        return not _same(jax.tree.leaves(before.get(path)), jax.tree.leaves(variable))

    return nnx.state(module, is_new)


def _change(params: Any, changed: Any) -> None:
    nnx = _module(params)
    if nnx is not None:
        nnx.update(params, changed)


def _variables(tree: Any) -> list[Any]:
    """Those of Flax NNX in a tree, as of modules or random streams among arguments."""
    nnx = sys.modules.get("flax.nnx")
    if nnx is None:
        return []
    found = jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, nnx.Variable))
    return [x for x in found if isinstance(x, nnx.Variable)]


def values(tree: Any) -> list[list[Any]]:
    """What the variables of Flax NNX in a tree hold."""
    return [jax.tree.leaves(x) for x in _variables(tree)]


def move_on(tree: Any, to: list[list[Any] | None]) -> None:
    """Gives the variables in a tree other values, where there are any."""
    for variable, new in zip(_variables(tree), to, strict=True):
        if new is not None:
            variable.copy_from(jax.tree.unflatten(jax.tree.structure(variable), new))


def _same(old: list[Any], new: list[Any]) -> bool:
    return len(old) == len(new) and all(x is y for x, y in zip(old, new, strict=True))


def _arrays(tree: Any) -> tuple[list[Any], Callable[[list[Any]], Any]]:
    """The arrays in a tree, and what puts others in their places."""
    flat, structure = jax.tree.flatten(tree)
    where = [i for i, x in enumerate(flat) if isinstance(x, jax.Array)]

    def with_arrays(arrays):
        given = dict(zip(where, arrays, strict=True))
        return structure.unflatten([given.get(i, x) for i, x in enumerate(flat)])

    return [flat[i] for i in where], with_arrays


def _one(calls: list[_Call], params: Any) -> _Call:
    """The call that belongs to this step."""
    # A program may use arrays of those around it, and some that exist already. Other parameters
    # than those being traced are of an earlier step.
    own = _traces(params)
    here = [call for call in calls if own <= call.traces <= _around(own)]
    if len(here) != 1:
        times = f"{len(here)} times" if here else "in another trace alone" if calls else "not"
        raise ValueError(
            f"Before update, tap.loss must be differentiated once, but it was {times}. {_ORDER}"
        )
    (call,) = here
    if call.depends:
        raise ValueError(
            "Apart from the parameters, nothing that tap.loss is given may depend on them. Compute "
            "what does in losses_fn."
        )
    what = "tap.loss must be called with the parameters of update"
    # A module has more than what is trained.
    noted = leaves.like(what, call.params, params, may_have_more=True)
    for (path, leaf), other in zip(
        jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(noted), strict=True
    ):
        if leaf.dtype != other.dtype:
            raise ValueError(
                f"{what}, but its leaf {jax.tree_util.keystr(path)} was {other.dtype} instead of "
                f"{leaf.dtype}. What the trainer casts before the loss must be cast in losses_fn."
            )
    if not _has(call.moved, params):
        return call._replace(losses_fn=call.losses_fn.losses_fn)
    return call


def _has(tree: Any, params: Any) -> bool:
    """Whether a tree has all leaves of the parameters, by their names."""
    try:
        leaves.like("", tree, params, may_have_more=True)
    except ValueError:
        return False
    return True

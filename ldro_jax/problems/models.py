"""Models of Flax Linen, Flax NNX or plain functions, as pure functions.

A model is called in two ways. A training pass may draw random numbers, as dropout does, and replace
running statistics, as batch normalisation does. An evaluation gives the same outputs for the same
parameters and inputs, and changes nothing. A Linen model is told by an argument of its call or a
field, ``train``, ``training``, ``is_training``, ``deterministic`` or ``use_running_average``; of an
NNX module, ``eval()`` switches all layers to evaluation, and it trains as it was made: layers that
need ``train()`` first, such as attention with dropout, get it where the module is made. A field or
a layer that is set to evaluation stays so. What else a model has, such as constants, is part of it.

Running statistics are kept beside the parameters in one tree, ``{"params": …, "batch_stats": …}``
of a Linen model and its collections, ``{"params": …, "state": …}`` of an NNX module. Without them
the tree is that of the parameters alone.
"""

import abc
import contextlib
import functools
import inspect
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import errors, nnx
from flax import linen as nn
from typing_extensions import override

from ldro_jax.runtime import checks
from ldro_jax.runtime import errors as said

# What tells a Linen model in which way it is called, and its value in a training pass.
_SWITCHES = {
    "train": True,
    "training": True,
    "is_training": True,
    "deterministic": False,
    "use_running_average": False,
}

# The collection of what Linen's `self.perturb` adds.
_PERTURBED = "perturbations"


class Functions(NamedTuple):
    """A model. ``name`` is that of a table, where several tables have inputs of their own.

    Attributes:
      init: ``(key, inputs [B, ...]) -> params``, or of several tables, from a dictionary by name.
      apply: ``(params, inputs [B, ...], *name) -> outputs``, in an evaluation.
      train: ``(params, inputs [B, ...], key or None, *name) -> (outputs, new)``, in a training
        pass, with the parameters that it replaces, in a tree like these with ``None`` for the
        others, or ``()`` if there are none. ``None`` if it is the same as in an evaluation.
      replaced: those parameters, ``params -> a tree of bools``; ``None`` if there are none.
      draws: whether a training pass needs a key.
      features: ``(inputs [B, ...], *name) -> zeros``, like what the model names with Linen's
        ``self.perturb``; ``None`` if it names nothing. ``apply`` and ``train`` then take
        ``perturbations``, which are added to it.
    """

    init: Callable[[jax.Array, Any], Any]
    apply: Callable[..., Any]
    train: Callable[..., tuple[Any, Any]] | None = None
    replaced: Callable[[Any], Any] | None = None
    draws: bool = False
    features: Callable[..., Any] | None = None


class NoModelError(ValueError):
    """Something isn't a model."""


class UnsupportedError(ValueError):
    """An evaluation of a model isn't a function of its parameters and inputs alone."""


def as_functions(model: Any, inputs: Any, *, tables: bool = False) -> Functions:
    """A model as pure functions.

    Args:
      model: a ``flax.linen.Module``; a function ``(rngs) -> flax.nnx.Module``, such as a class of
        modules; a pair of functions ``(init, apply)``; or :class:`Functions`. It is called as
        ``model(inputs)``, and with several tables as ``model(inputs, name of the table)``.
      inputs: shapes or arrays of some inputs, ``[B, ...]``, a pytree.
      tables: whether they are a dictionary of the inputs of several tables, by name.

    Raises:
      NoModelError: a ``ValueError``, if it is something else.
      UnsupportedError: a ``ValueError``, if an evaluation needs random numbers or changes anything.
    """
    if isinstance(model, Functions):
        return model
    if isinstance(model, tuple) and len(model) == 2 and all(map(callable, model)):
        return Functions(*model)
    if isinstance(model, nn.Module):
        return _functions(_Linen(model, tables), inputs)
    if callable(model) and not isinstance(model, nnx.Module):
        return _functions(_Nnx(model, tables), inputs)
    raise NoModelError(
        "model must be a flax.linen.Module, a function of rngs that makes a flax.nnx.Module (such "
        "as lambda rngs: MyModule(rngs=rngs)), or a pair of functions (init(key, inputs) -> "
        f"params, apply(params, inputs) -> outputs), but it is {checks.shown(model)}."
    )


@contextlib.contextmanager
def trying(inputs: Any) -> Iterator[None]:
    """What a model says of inputs that it isn't made for, as one line.

    Args:
      inputs: arrays or shapes, ``[B, ...]``.

    Raises:
      ValueError: naming the shapes.
    """
    try:
        yield
    except (UnsupportedError, NoModelError):
        raise
    except Exception as error:  # whatever a model says
        shapes = jax.tree.map(lambda x: tuple(x.shape[1:]), inputs)
        raise ValueError(
            f"model must take inputs of the shape {shapes}, but it doesn't "
            f"({said.first_line(error)})."
        ) from error


class _Call(NamedTuple):
    """Outputs of a call, and the variables other than parameters before and after it."""

    outputs: Any
    before: dict[str, Any]
    after: dict[str, Any]


class _Library(abc.ABC):
    """A model as its library has it: parameters, and other variables in collections."""

    def __init__(self, model: Any, tables: bool) -> None:
        self.model, self._tables = model, tables

    def calls(self, inputs: Any) -> list[tuple[Any, tuple[str, ...]]]:
        """The inputs of each call that makes the model, and the name of their table, if any."""
        if self._tables:
            return [(x, (name,)) for name, x in inputs.items()]
        return [(inputs, ())]

    @property
    @abc.abstractmethod
    def has_switch(self) -> bool:
        """Whether a training pass may be something else than an evaluation."""

    @abc.abstractmethod
    def make(self, key: jax.Array, inputs: Any) -> tuple[Any, dict[str, Any]]:
        """New parameters and other variables, for inputs ``[B, ...]`` or a dictionary of tables."""

    @abc.abstractmethod
    def call(
        self, made: jax.Array, others: dict[str, Any], params: Any, inputs: Any, *name: str, **way
    ) -> _Call:
        """Calls the model as it is made with the key ``made``, with ``others`` in their places.

        ``way`` is ``train`` and, in a training pass, a ``key``.
        """


class _Linen(_Library):
    def __init__(self, model: nn.Module, tables: bool) -> None:
        super().__init__(model, tables)
        self._others: set[str] = set()
        taken = inspect.signature(type(model).__call__).parameters
        self._arguments = {name: on for name, on in _SWITCHES.items() if name in taken}
        # A field that is set to evaluation stays so.
        self._fields = {
            name: on
            for name, on in _SWITCHES.items()
            if name not in taken and getattr(model, name, ...) in (None, on)
        }

    @property
    @override
    def has_switch(self) -> bool:
        return bool(self._arguments or self._fields)

    def _set(self, train: bool) -> tuple[nn.Module, dict[str, bool]]:
        fields: dict[str, Any]
        fields, arguments = (
            {name: on == train for name, on in switches.items()}
            for switches in (self._fields, self._arguments)
        )
        return self.model.clone(**fields) if fields else self.model, arguments

    @override
    def make(self, key, inputs):
        model, arguments = self._set(train=False)

        def call(module, inputs):
            for x, name in self.calls(inputs):
                module(x, *name, **arguments)

        variables = dict(nn.init(call, model)(key, inputs))
        params = variables.pop("params", {})
        # Once there were others, there may be for other inputs.
        self._others |= set(variables)
        return params, variables

    @override
    def call(self, made, others, params, inputs, *name, train, key=None):
        model, arguments = self._set(train)
        # Making the model is as long to trace as calling it.
        if not self._others <= set(others):
            others = {**self.make(made, {name[0]: inputs} if name else inputs)[1], **others}
        try:
            # What is sown is for those who look at it, and nothing reads it later.
            outputs, after = model.apply(
                {"params": params, **others},
                *(inputs, *name),
                rngs=None if key is None else {"params": key},
                mutable=nn.DenyList(["intermediates"]),
                **cast(Any, arguments),
            )
        except errors.InvalidRngError as error:
            needed = str(error).split(" (http")[0]
            raise _unsupported(self.model, f"needs random numbers in a call: {needed}") from error
        return _Call(outputs, others, {name: x for name, x in after.items() if name != "params"})


class _Nnx(_Library):
    @property
    @override
    def has_switch(self) -> bool:
        graphs = []

        def look(key):
            module = self._made(key)
            graphs.append(nnx.split(module)[0])
            module.eval()
            graphs.append(nnx.split(module)[0])

        jax.eval_shape(look, jax.random.key(0))
        return graphs[0] != graphs[1]

    def _made(self, key: jax.Array) -> nnx.Module:
        module = self.model(nnx.Rngs(key))
        if not isinstance(module, nnx.Module):
            raise NoModelError(
                "model must be a function of rngs that makes a flax.nnx.Module, but it made "
                f"{type(module).__name__}."
            )
        return module

    @override
    def make(self, key, inputs):
        del inputs
        _, params, _, others = nnx.split(self._made(key), nnx.Param, nnx.RngState, ...)
        return nnx.to_pure_dict(params), {"state": nnx.to_pure_dict(others)}

    @override
    def call(self, made, others, params, inputs, *name, train, key=None):
        module = self._made(made)
        if not train:
            module.eval()
        graph, own, rngs, rest = nnx.split(module, nnx.Param, nnx.RngState, ...)
        nnx.replace_by_pure_dict(own, params)
        if others:
            nnx.replace_by_pure_dict(rest, others["state"])
        before = {"state": nnx.to_pure_dict(rest)}
        module = nnx.merge(graph, own, rngs if key is None else _begun_anew(rngs, key), rest)
        outputs = module(inputs, *name)
        kept = nnx.Not(nnx.Any(nnx.Param, nnx.Intermediate, nnx.RngState))
        return _Call(outputs, before, {"state": nnx.to_pure_dict(nnx.state(module, kept))})


def _begun_anew(rngs: Any, key: jax.Array) -> Any:
    """The streams of random numbers of a module, begun anew from a key."""
    numbers = iter(range(len(jax.tree.leaves(rngs))))

    def begun(x):
        fresh = jax.random.fold_in(key, next(numbers))
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            # Stacked layers have a stacked key.
            fresh = jax.random.split(fresh, x.shape) if x.shape else fresh
            return jax.random.wrap_key_data(jax.random.key_data(fresh), impl=jax.random.key_impl(x))
        return jnp.zeros_like(x)

    return jax.tree.map(begun, rngs)


def _functions(model: _Library, inputs: Any) -> Functions:
    """The functions of a model, looked at with inputs of some shapes."""
    made = jax.random.key(0)
    looks = [_look(model, inputs, x, name) for x, name in model.calls(inputs)]
    kept = set().union(*(look.changed for look in looks))

    def init(key, inputs):
        params, others = model.make(key, inputs)
        return {"params": params, **{name: others[name] for name in kept}} if kept else params

    def call(params, x, name, perturbations=None, **way):
        own, state = params, {}
        if kept:
            own, state = params["params"], {name: params[name] for name in kept}
        if perturbations is not None:
            state[_PERTURBED] = perturbations
        # Traced alone: the parameters that are made here are not used.
        outputs, _, after = model.call(made, state, own, x, *name, **way)
        if not kept:
            return outputs, ()
        frozen = jax.tree.map(lambda _: None, own)
        return outputs, {"params": frozen, **{name: after[name] for name in kept}}

    def apply(params, x, *name, **perturbed):
        return call(params, x, name, train=False, **perturbed)[0]

    def features(x, *name):
        _, others = jax.eval_shape(model.make, made, {name[0]: x} if name else x)
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), others[_PERTURBED])

    has_features = _PERTURBED in jax.eval_shape(model.make, made, inputs)[1]
    named = features if has_features else None
    if not model.has_switch:
        return Functions(init, apply, features=named)

    def train(params, x, key, *name, **perturbed):
        return call(params, x, name, train=True, key=key, **perturbed)

    def replaced(params):
        return {
            name: jax.tree.map(lambda _, is_kept=name in kept: is_kept, part)
            for name, part in params.items()
        }

    draws = any(look.draws for look in looks)
    return Functions(init, apply, train, replaced if kept else None, draws, named)


class _Look(NamedTuple):
    """Whether a training pass draws random numbers, and the collections that it changes."""

    draws: bool
    changed: set[str]


def _look(model: _Library, all_inputs: Any, inputs: Any, name: tuple[str, ...]) -> _Look:
    """Checks an evaluation of a model, and finds out about a training pass."""
    key = jax.random.key(0)
    params, others = jax.eval_shape(model.make, key, all_inputs)

    def evaluated(made, params, inputs):
        return model.call(made, {}, params, inputs, *name, train=False)

    is_drawn, assigned = _traced(evaluated, params, inputs, outputs_only=True)
    # A call that is jitted or rematerialised assigns all variables, changed or not.
    if assigned:

        def made_and_called(key, x):
            params, _ = model.make(key, {name[0]: x} if name else x)
            return evaluated(key, params, x)

        if moved := _moved(made_and_called, inputs):
            raise _unsupported(model.model, f"changes {', '.join(moved)} in a call")
    if is_drawn:
        raise _unsupported(
            model.model,
            "draws random numbers in a call, or keeps some that it drew when it was made",
        )
    if not model.has_switch:
        return _Look(False, set())

    def trained(key, params, others, inputs):
        return model.call(jax.random.key(0), others, params, inputs, *name, train=True, key=key)

    draws, changed = _traced(trained, params, others, inputs)
    if new := sorted(changed - set(others)):
        raise _unsupported(
            model.model,
            f"makes {', '.join(new)} in a training pass, which isn't there when it is made",
        )
    return _Look(draws, changed)


def _traced(
    call: Callable[..., _Call], *shapes: Any, outputs_only: bool = False
) -> tuple[bool, set[str]]:
    """Whether what a call of a key and more gives depends on the key, and what it assigns to."""
    assigned: set[str] = set()

    def once(key, *given):
        found = call(key, *given)
        for name, after in found.after.items():
            before = jax.tree.leaves(found.before.get(name))
            # While tracing, what is assigned is another object, even if it has the same value.
            pairs = itertools.zip_longest(before, jax.tree.leaves(after))
            if any(old is not new for old, new in pairs):
                assigned.add(name)
        return found.outputs if outputs_only else found

    keys = jax.random.split(jax.random.key(0))
    try:
        jax.eval_shape(jax.vmap(once, (0, *(None for _ in shapes)), None), keys, *shapes)
    except ValueError as error:
        # What vmap says of an output that isn't the same for both, where one is asked for.
        if "out_axes" not in str(error):
            raise
        return True, assigned
    return False, assigned


def _moved(call: Callable[[jax.Array, Any], _Call], inputs: Any) -> list[str]:
    """Names of the variables that a call changes, for made-up inputs of these shapes."""

    def drawn(key, x):
        is_float = jnp.issubdtype(x.dtype, jnp.floating)
        return jax.random.normal(key, x.shape, x.dtype) if is_float else jnp.ones(x.shape, x.dtype)

    def values(array):
        is_key = jnp.issubdtype(array.dtype, jax.dtypes.prng_key)
        return jax.random.key_data(array) if is_key else array

    @jax.jit
    def called():
        key = jax.random.key(0)
        _, *around = call(key, jax.tree.map(functools.partial(drawn, key), inputs))
        return jax.tree.map(values, around)

    # The check may itself be traced.
    with jax.ensure_compile_time_eval():
        before, after = (
            {
                jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(x).tobytes()
                for path, x in jax.tree_util.tree_leaves_with_path(variables)
            }
            for variables in called()
        )
    return [name for name, value in after.items() if before.get(name) != value]


def _unsupported(model: Any, what: str) -> UnsupportedError:
    name = getattr(model, "__name__", type(model).__name__)
    return UnsupportedError(
        "model must give the same outputs for the same parameters and inputs in an evaluation, and "
        f"change nothing, but {name} {what}. Let it know when it is trained: a Linen module by an "
        "argument train of its call (deterministic=not train, use_running_average=not train), an "
        "NNX module by layers that eval() switches."
    )

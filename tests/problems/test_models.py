"""Models: what an evaluation and a training pass compute, and what is refused.

A model that is taken computes what it computes outside; one whose evaluation needs or changes
something else is refused before anything is trained.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from ldro_jax import problems
from ldro_jax.problems import models

INPUTS = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
KEY = jax.random.key(1)


def in_nnx(make):
    """A module of a linear layer and what is made with its rngs."""

    class Network(nnx.Module):
        def __init__(self, rngs):
            self.linear, self.layer = nnx.Linear(4, 4, rngs=rngs), make(rngs)

        def __call__(self, inputs):
            return self.layer(self.linear(inputs))

    return Network


class Counted(nnx.Module):
    """Draws what it doesn't use, as recurrent layers do."""

    def __init__(self, rngs):
        self.rngs = rngs

    def __call__(self, x):
        self.rngs.params()
        return x


class Noise(nnx.Module):
    """Adds noise of a stream if it is on, and else just holds it."""

    def __init__(self, rngs, on):
        self.rngs, self.on = rngs, on

    def __call__(self, x):
        return x + jax.random.normal(self.rngs.noise(), x.shape) if self.on else x


class Kept(nnx.Module):
    """Multiplies with a variable that isn't a parameter."""

    def __init__(self, values):
        self.values = nnx.BatchStat(values)

    def __call__(self, x):
        return x * self.values[...][None]


class Watched(nnx.Module):
    def __call__(self, x):
        self.seen = nnx.Intermediate(x)
        return x


class Jitted(nnx.Module):
    """Calls a module by a transformation of NNX, which assigns all that it is given."""

    def __init__(self, module, transformation):
        self.module, self.transformation = module, transformation

    def __call__(self, x):
        return self.transformation(lambda module, x: module(x))(self.module, x)


class Remade(nn.Module):
    """Batch normalisation in a function that is rematerialised."""

    fixed: bool

    @nn.compact
    def __call__(self, x):
        return nn.remat(nn.BatchNorm)(use_running_average=self.fixed)(nn.Dense(4)(x))


class InLinen(nn.Module):
    layer: nn.Module

    @nn.compact
    def __call__(self, x):
        return self.layer(nn.Dense(4)(x))


class Sown(nn.Module):
    """A part of the loss for those who look there, or just something to watch."""

    collection: str

    @nn.compact
    def __call__(self, x):
        self.sow(self.collection, "size", jnp.mean(x**2))
        return nn.Dense(2)(x)


class Fixed(nn.Module):
    """Features that aren't trained, random or not."""

    random: bool

    @nn.compact
    def __call__(self, x):
        def values():
            key = self.make_rng("params")
            return jax.random.normal(key, (4,)) if self.random else jnp.arange(4.0)

        return nn.Dense(2)(x * self.variable("fixed", "values", values).value[None])


NNX_TAKEN = {
    "dropout that is off": in_nnx(lambda rngs: nnx.Dropout(0.5, deterministic=True, rngs=rngs)),
    "dropout of nothing": in_nnx(lambda rngs: nnx.Dropout(0.0, rngs=rngs)),
    "fixed statistics": in_nnx(lambda rngs: nnx.BatchNorm(4, use_running_average=True, rngs=rngs)),
    "rngs that are held": in_nnx(lambda rngs: Noise(rngs, False)),
    "a count that nothing uses": in_nnx(lambda rngs: Counted(rngs)),
    "constants": in_nnx(lambda rngs: Kept(jnp.arange(4.0))),
    "intermediates": in_nnx(lambda rngs: Watched()),
    "jit": in_nnx(
        lambda rngs: Jitted(nnx.BatchNorm(4, use_running_average=True, rngs=rngs), nnx.jit)
    ),
    "remat": in_nnx(lambda rngs: Jitted(nnx.Dropout(0.0, rngs=rngs), nnx.remat)),
    "a function": lambda rngs: nnx.Sequential(nnx.Linear(4, 2, rngs=rngs), nnx.relu),
}
LINEN_TAKEN = {
    "dropout that is off": InLinen(nn.Dropout(0.5, deterministic=True)),
    "dropout of nothing": InLinen(nn.Dropout(0.0, deterministic=False)),
    "fixed statistics": InLinen(nn.BatchNorm(use_running_average=True)),
    "constants": Fixed(False),
    "intermediates": Sown("intermediates"),
    "remat": Remade(True),
    "a layer": nn.Dense(2),
}
REFUSED = {
    "nnx noise": (in_nnx(lambda rngs: Noise(rngs, True)), "draws random numbers in a call"),
    "nnx random constants": (
        in_nnx(lambda rngs: Kept(jax.random.normal(rngs.params(), (4,)))),
        "keeps some that it drew when it was made",
    ),
    "not nnx": (lambda rngs: 3, "model must be a function of rngs that makes a flax.nnx.Module"),
    "linen dropout": (
        InLinen(nn.Dropout(0.5, deterministic=False)),
        'needs random numbers in a call: layer needs PRNG for "dropout". Let it know',
    ),
    "linen statistics": (
        InLinen(nn.BatchNorm(use_running_average=False)),
        r"InLinen changes batch_stats\.layer\.mean, batch_stats\.layer\.var in a call",
    ),
    "linen random constants": (Fixed(True), "keeps some that it drew when it was made"),
    "linen statistics in remat": (Remade(False), r"Remade changes batch_stats\S*mean, batch_stats"),
    "a loss that is sown": (Sown("losses"), r"Sown changes losses\.size\S* in a call"),
}


def taken():
    for name, model in NNX_TAKEN.items():
        yield pytest.param(model, lambda m=model: m(nnx.Rngs(KEY))(INPUTS), id=f"nnx {name}")
    for name, model in LINEN_TAKEN.items():
        yield pytest.param(
            model, lambda m=model: m.apply(m.init(KEY, INPUTS), INPUTS), id=f"linen {name}"
        )


@pytest.mark.parametrize("model, outside", list(taken()))
def test_a_model_computes_what_it_computes_outside(model, outside):
    functions = models.as_functions(model, INPUTS)
    params = functions.init(KEY, INPUTS)
    np.testing.assert_allclose(functions.apply(params, INPUTS), outside(), rtol=1e-6, atol=1e-6)
    # As the trainer uses it: traced, with the gradient, and without init before.
    again = models.as_functions(model, INPUTS)
    gradient = jax.eval_shape(jax.grad(lambda p: jnp.sum(again.apply(p, INPUTS))), params)
    assert jax.tree.structure(gradient) == jax.tree.structure(params)


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_needs_or_changes_something_else_is_refused(name):
    model, message = REFUSED[name]
    rows = {"task": (INPUTS, INPUTS)}
    accuracy = problems.Metric("accuracy", True)
    with pytest.raises(ValueError, match=message):
        problems.from_arrays(
            rows,
            model=model,
            loss=problems.cross_entropy,
            metrics={accuracy: problems.accuracy},
            validation=rows,
            test=rows,
        )
    with pytest.raises(ValueError, match=message):
        models.as_functions(model, INPUTS)


def test_something_else_is_no_model():
    with pytest.raises(ValueError, match="model must be a flax.linen.Module"):
        models.as_functions(3, INPUTS)


def test_functions_are_taken_as_they_are():
    init, apply = (lambda key, inputs: 0), (lambda params, inputs: inputs)
    assert models.as_functions((init, apply), INPUTS) == models.Functions(init, apply)


class Switched(nn.Module):
    """Batch normalisation and dropout, told in one of the ways that Flax's users tell it."""

    by: str
    norm: bool = True
    rate: float = 0.5

    @nn.compact
    def __call__(self, x, **way):
        train = way[self.by] == (self.by not in ("deterministic", "use_running_average"))
        x = nn.Dense(4)(x)
        if self.norm:
            x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        return nn.Dropout(self.rate, deterministic=not train)(x)


def told_by(name):
    """A class whose call has an argument of a name."""
    body = f"def __call__(self, x, {name}):\n    return Switched.__call__(self, x, {name}={name})"
    made = {"Switched": Switched}
    exec(body, made)
    return type("Told", (Switched,), {"__call__": nn.compact(made["__call__"])})


class ByField(nn.Module):
    """Told by a field of the module."""

    deterministic: bool | None = None

    @nn.compact
    def __call__(self, x):
        return nn.Dropout(0.5, deterministic=self.deterministic)(nn.Dense(4)(x))


@pytest.mark.parametrize("name", ["train", "deterministic", "use_running_average"])
def test_a_linen_model_is_told_when_it_is_trained(name):
    model, on = told_by(name)(name), name == "train"
    functions = models.as_functions(model, INPUTS)
    params = functions.init(KEY, INPUTS)
    assert set(params) == {"params", "batch_stats"} and functions.draws
    evaluated = model.apply(params, INPUTS, **{name: not on})
    np.testing.assert_allclose(functions.apply(params, INPUTS), evaluated, rtol=1e-6)
    key = jax.random.key(3)
    expected, new = model.apply(
        params, INPUTS, mutable=["batch_stats"], rngs={"params": key}, **{name: on}
    )
    outputs, left = functions.train(params, INPUTS, key)
    np.testing.assert_allclose(outputs, expected, rtol=1e-6)
    jax.tree.map(np.testing.assert_allclose, left["batch_stats"], new["batch_stats"])
    assert not jax.tree.leaves(left["params"])
    replaced = functions.replaced(params)
    assert all(jax.tree.leaves(replaced["batch_stats"]))
    assert not any(jax.tree.leaves(replaced["params"]))


def test_a_pass_with_all_statistics_calls_the_model_once():
    calls = []

    class Counted(Switched):
        @nn.compact
        def __call__(self, x, train):
            calls.append(x)
            return Switched.__call__(self, x, train=train)

    functions = models.as_functions(Counted("train"), INPUTS)
    params = functions.init(KEY, INPUTS)
    calls.clear()
    jax.eval_shape(functions.train, params, INPUTS, KEY)
    assert len(calls) == 1


def test_a_linen_model_is_told_by_a_field():
    functions = models.as_functions(ByField(), INPUTS)
    params, key = functions.init(KEY, INPUTS), jax.random.key(3)
    assert functions.draws and functions.replaced is None and "params" not in params
    expected = ByField(deterministic=False).apply({"params": params}, INPUTS, rngs={"params": key})
    outputs, left = functions.train(params, INPUTS, key)
    np.testing.assert_allclose(outputs, expected, rtol=1e-6)
    assert left == ()
    # What is set to evaluation stays so.
    assert models.as_functions(ByField(deterministic=True), INPUTS).train is None


NNX_SWITCHED = {
    "dropout": (in_nnx(lambda rngs: nnx.Dropout(0.5, rngs=rngs)), True, False),
    "statistics": (in_nnx(lambda rngs: nnx.BatchNorm(4, momentum=0.9, rngs=rngs)), False, True),
    "statistics in jit": (
        in_nnx(lambda rngs: Jitted(nnx.BatchNorm(4, momentum=0.9, rngs=rngs), nnx.jit)),
        False,
        True,
    ),
}


@pytest.mark.parametrize("name", NNX_SWITCHED)
def test_an_nnx_module_is_switched_by_eval(name):
    model, draws, has_state = NNX_SWITCHED[name]
    functions = models.as_functions(model, INPUTS)
    params, key = functions.init(KEY, INPUTS), jax.random.key(3)
    assert (functions.draws, functions.replaced is not None) == (draws, has_state)
    module = model(nnx.Rngs(KEY))
    module.eval()
    np.testing.assert_allclose(functions.apply(params, INPUTS), module(INPUTS), rtol=1e-6)
    outputs, left = functions.train(params, INPUTS, key)
    module.train()
    if has_state:
        np.testing.assert_allclose(outputs, module(INPUTS), rtol=1e-6)
        state = nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), left["state"], state)
    else:
        # As many are dropped as should be, others with another key, and the same with the same.
        again, other = (functions.train(params, INPUTS, k)[0] for k in (key, jax.random.key(4)))
        np.testing.assert_array_equal(outputs, again)
        assert (outputs == 0).any() and not np.array_equal(outputs, other) and left == ()

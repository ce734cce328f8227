"""Models: what is a function of its parameters and inputs alone, and what is refused.

A model that is taken computes what it computes outside; one whose call needs or changes something
else is refused before anything is trained.
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
    "nnx dropout": (
        in_nnx(lambda rngs: nnx.Dropout(0.5, rngs=rngs)),
        "draws random numbers in a call",
    ),
    "nnx statistics": (
        in_nnx(lambda rngs: nnx.BatchNorm(4, rngs=rngs)),
        r"Network changes layer\.mean, layer\.var in a call",
    ),
    "nnx noise": (in_nnx(lambda rngs: Noise(rngs, True)), "draws random numbers in a call"),
    "nnx statistics in jit": (
        in_nnx(lambda rngs: Jitted(nnx.BatchNorm(4, rngs=rngs), nnx.jit)),
        r"changes layer\.module\.mean, layer\.module\.var in a call",
    ),
    "nnx random constants": (
        in_nnx(lambda rngs: Kept(jax.random.normal(rngs.params(), (4,)))),
        "keeps some that it drew when it was made",
    ),
    "not nnx": (lambda rngs: 3, "model must be a function of rngs that makes a flax.nnx.Module"),
    "linen dropout": (
        InLinen(nn.Dropout(0.5, deterministic=False)),
        'needs random numbers in a call: layer needs PRNG for "dropout". The trainer',
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

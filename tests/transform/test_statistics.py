"""A forward pass with something besides losses: the same step, and what it gave besides."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from helpers import problems

from ldro_jax import ldro

TX = ldro.transform(5, lookahead_lr=0.1, weight_lr=0.5, interaction_interval=1)
# Float32, in another order.
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def both(problem):
    """The function of each form, and what it is called with besides."""
    return {
        "tasks": (problem.loss_fn, (problem.batch,)),
        "layout": (problem.losses, ()),
    }


@pytest.mark.parametrize("form", ["tasks", "layout"])
def test_a_step_is_the_same_with_and_without_something_besides(form):
    problem = problems.mlp()
    function, more = both(problem)[form]

    def with_aux(params, *given):
        loss = function(params, *given)
        return loss, {"twice": 2 * loss}

    @jax.jit
    def stepped(params):
        state = TX.init(params)
        keyed = {"loss_fn": function, "batch": more[0]} if more else {"losses_fn": function}
        given, aux = ldro.statistics(with_aux, params, *more, has_aux=True)
        plain = ldro.statistics(function, params, *more)
        steps = [TX.update(None, state, params, **x) for x in (keyed, given, plain)]
        return steps, aux

    (expected, *others), aux = stepped(problem.params)
    for found in others:
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **CLOSE), found, expected)
    np.testing.assert_allclose(aux["twice"], 2 * expected[1].losses, rtol=1e-6)


def test_what_does_not_fit_is_refused():
    problem = problems.mlp()
    for function, message in {
        lambda params: jnp.zeros((2, 2)): r"one loss for each task.* shape \[2, 2\]",
        lambda params: jnp.zeros(2, jnp.int32): "must be real floating-point numbers",
    }.items():
        with pytest.raises(ValueError, match=message):
            ldro.statistics(function, problem.params)
    with pytest.raises(ValueError, match="losses_fn must be a function"):
        ldro.statistics(None, problem.params)


class Network(nn.Module):
    @nn.compact
    def __call__(self, inputs, train):
        hidden = nn.BatchNorm(use_running_average=not train, momentum=0.9)(nn.Dense(4)(inputs))
        return nn.Dense(3)(nn.Dropout(0.2, deterministic=not train)(hidden))


class InNnx(nnx.Module):
    def __init__(self, rngs):
        self.first, self.last = nnx.Linear(2, 4, rngs=rngs), nnx.Linear(4, 3, rngs=rngs)
        self.norm = nnx.BatchNorm(4, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)

    def __call__(self, inputs):
        return self.last(self.dropout(self.norm(self.first(inputs))))


INPUTS = np.random.default_rng(0).normal(size=(32, 2)).astype(np.float32)
TARGETS = np.stack([INPUTS.sum(1), INPUTS[:, 0], -INPUTS[:, 1]], axis=1)
LDRO = ldro.transform(3, lookahead_lr=0.1, weight_lr=0.1, interaction_interval=5)


# The steps of docs/optax.md: one for Linen, one for NNX.
DOCS = pathlib.Path(__file__).parents[2] / "docs" / "optax.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
IN_LINEN, IN_NNX = (code for code in EXAMPLES if "ldro.statistics" in code)


def documented(code, model, tx):
    """What there is after the code, a definition of `step`, on the inputs and targets here."""
    names = {"jax": jax, "jnp": jnp, "ldro": ldro, "nnx": nnx, "optax": optax}
    names |= {"model": model, "tx": tx, "inputs": INPUTS, "targets": TARGETS}
    exec(code, names)
    return names


def test_batch_normalisation_and_dropout_in_linen():
    model, tx = Network(), optax.chain(LDRO, optax.sgd(0.1))
    variables = model.init(jax.random.key(0), INPUTS, train=False)
    params, statistics = variables["params"], variables["batch_stats"]
    step = documented(IN_LINEN, model, tx)["step"]
    opt_state, losses = tx.init(params), []
    for key in jax.random.split(jax.random.key(1), 60):
        params, statistics, opt_state = step(params, statistics, opt_state, key)
        losses.append(np.max(ldro.losses(opt_state)))
    assert losses[-1] < losses[0] / 2
    assert not np.allclose(statistics["BatchNorm_0"]["mean"], 0)


def test_batch_normalisation_and_dropout_in_nnx():
    model, tx = InNnx(nnx.Rngs(0)), optax.chain(LDRO, optax.sgd(0.1))
    code = documented(IN_NNX, model, tx)
    step, params, rest = code["step"], code["params"], code["rest"]
    opt_state, losses = tx.init(params), []
    for _ in range(60):
        params, rest, opt_state = step(params, rest, opt_state)
        losses.append(np.max(ldro.losses(opt_state)))
    nnx.update(model, params, rest)
    assert losses[-1] < losses[0] / 2
    assert not np.allclose(model.norm.mean[...], 0)

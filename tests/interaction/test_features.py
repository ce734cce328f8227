"""A at the features: products of the losses' gradients there, and nothing pulled back before."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from helpers import labelled, tiny

from ldro_jax import ldro, transform
from ldro_jax.sharding import Layout
from ldro_jax.training.batches import Batches
from ldro_jax.training.engine import Trial
from ldro_jax.training.meshed import MeshedEngine
from ldro_jax.training.method import Method
from ldro_jax.training.stacked import StackedEngine

N, ROWS = 3, 6
RNG = np.random.default_rng(0)
X, Y = (RNG.normal(size=(ROWS, n)).astype(np.float32) for n in (4, N))
PARAMS = {
    name: RNG.normal(size=shape).astype(np.float32)
    for name, shape in (("trunk", (4, 8)), ("heads", (8, N)))
}
METHOD = Method(
    "L-DRO",
    "lookahead_online",
    {"lookahead_lr": 0.5, "weight_lr": 0.5},
    interaction="features",
    interaction_interval=1,
)


def features_fn(params):
    return jnp.tanh(X @ params["trunk"])


def losses_fn(params, z):
    return jnp.mean((z @ params["heads"] - Y) ** 2, axis=0)


def by_hand(z, heads, targets):
    """Of squared errors, from their derivatives written down."""
    errors = 2 * (z @ heads - targets) / len(z)
    each = errors.T[:, :, None] * heads.T[:, None, :]
    return np.einsum("ird,jrd->ij", each, each)


def transformed(interaction="features", **options):
    return ldro.transform(
        N,
        lookahead_lr=0.1,
        weight_lr=0.5,
        interaction=interaction,
        interaction_interval=1,
        **options,
    )


@pytest.mark.parametrize("trainable", [None, {"trunk": True, "heads": False}])
def test_a_loop_of_ones_own(trainable):
    tx = transformed(trainable=trainable)
    update = jax.jit(
        lambda state, params: tx.update(
            None, state, params, losses_fn=losses_fn, features_fn=features_fn
        )
    )
    updates, state = update(tx.init(PARAMS), PARAMS)
    found = transform.find_state(state)
    expected = by_hand(np.tanh(X @ PARAMS["trunk"]), PARAMS["heads"], Y)
    np.testing.assert_allclose(found.interaction, expected, rtol=1e-5)
    gradient = jax.grad(lambda p: found.weights @ losses_fn(p, features_fn(p)))(PARAMS)
    np.testing.assert_allclose(updates["trunk"], gradient["trunk"], rtol=1e-5)


def test_with_features_named_the_exact_one_is_that_of_the_parameters():
    tx = transformed("auto")
    _, state = tx.update(
        None, tx.init(PARAMS), PARAMS, losses_fn=losses_fn, features_fn=features_fn
    )
    both = transformed("auto")
    _, other = both.update(
        None, both.init(PARAMS), PARAMS, losses_fn=lambda p: losses_fn(p, features_fn(p))
    )
    np.testing.assert_allclose(
        transform.find_state(state).interaction, transform.find_state(other).interaction, rtol=1e-5
    )


def test_nothing_before_the_features_goes_back():
    seen = []

    @jax.custom_vjp
    def watched(x):
        return x

    watched.defvjp(lambda x: (x, None), lambda _, back: (seen.append(back.ndim) or back,))
    tx = transformed()
    tx.update(
        None,
        tx.init(PARAMS),
        PARAMS,
        losses_fn=losses_fn,
        features_fn=lambda p: watched(features_fn(p)),
    )
    # Once for the training gradient.
    assert len(seen) == 1


class Network(nn.Module):
    """Statistics and a switch, as they come in the trainer."""

    named: bool = True

    @nn.compact
    def __call__(self, inputs, train):
        z = nn.relu(nn.Dense(8)(inputs))
        z = nn.BatchNorm(use_running_average=not train)(z)
        z = self.perturb("features", z) if self.named else z
        return nn.Dense(N, use_bias=False, name="heads")(z)


@pytest.mark.parametrize("rows", [None, 4])
@pytest.mark.parametrize("layout", [None, tiny.ONE, Layout(data=4, model=2)], ids=str)
def test_the_trainer_takes_what_a_linen_model_names(layout, rows):
    engine = StackedEngine if layout is None else MeshedEngine
    batches = Batches(labelled.ROWS, layout=layout, interaction_rows=rows)
    problem = labelled.problem(Network(), missing=0)
    program = engine(problem, optax.sgd(0.0), batches).program(METHOD)
    program.check()
    session = program.start([Trial(METHOD, 0)])
    params = jax.tree.map(np.array, session.state(0).params)
    assert "perturbations" not in params
    session.advance(1, lambda step: False, tiny.Progress())
    found = transform.find_state(session.state(0).opt_state).interaction
    if rows is not None:
        # On which is drawn at random.
        assert np.isfinite(found).all() and (np.diagonal(found) > 0).all()
        return
    # A batch has every row once.
    inputs, targets = labelled.arrays(missing=0)
    dense = params["params"]["Dense_0"]
    z = np.maximum(inputs @ dense["kernel"] + dense["bias"], 0)
    z = (z - z.mean(axis=0)) / np.sqrt(z.var(axis=0) + 1e-5)
    expected = by_hand(z, params["params"]["heads"]["kernel"], targets)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize(
    "given",
    [
        {"loss_fn": lambda p, x: p["trunk"].sum(), "batch": np.ones((N, 1))},
        {"losses_fn": lambda p: losses_fn(p, features_fn(p))},
    ],
    ids=["tasks", "not named"],
)
def test_forms_without_features_are_refused(given):
    tx = transformed()
    with pytest.raises(ValueError, match="interaction='features' needs one input"):
        tx.update(None, tx.init(PARAMS), PARAMS, **given)


def test_models_that_name_none_are_refused():
    engine = StackedEngine(labelled.problem(Network(named=False)), optax.sgd(0.1), Batches(8))
    with pytest.raises(ValueError, match="calls self.perturb"):
        engine.program(METHOD)

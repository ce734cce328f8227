"""Traced programs as the installed JAX writes them down, and as a later one might."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import oracles

from ldro_jax import interaction, ldro, transform, weighting
from ldro_jax.runtime import equations
from ldro_jax.transform import reads

N, LAYERS, WIDTH = 3, 5, 4


def loss_fn(params, batch):
    """Five layers ``h @ w``, and what each adds to the loss."""

    def layer(h, w):
        h = jnp.tanh(h @ w)
        return h, jnp.sum(h**2)

    h, norms = jax.lax.scan(layer, batch["x"], params["w"])
    return jnp.mean((h - batch["y"]) ** 2) + 0.01 * jnp.mean(norms)


def problem():
    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(rng.normal(size=(LAYERS, WIDTH, WIDTH)) / 2, jnp.float32)}
    x, y = jnp.asarray(rng.normal(size=(2, N, 6, WIDTH)), jnp.float32)
    return params, {"x": x, "y": y}


def scans(function, *arguments):
    program = equations.inlined(jax.make_jaxpr(function)(*arguments))
    return [e for e in program.jaxpr.eqns if e.primitive.name == "scan"]


def no_unknown(monkeypatch):
    del monkeypatch


def another_scan(monkeypatch):
    """What a scan has beside its body would be new."""
    monkeypatch.setattr(equations, "_OTHERS_OF_SCAN", set())


def another_module(monkeypatch):
    """Nothing would be where it was."""
    monkeypatch.setattr(equations, "core", types.SimpleNamespace())


UNKNOWN = [another_scan, another_module]


def test_a_scan_is_divided_as_it_was_written():
    scale, start, rows = jnp.float32(2), (jnp.ones(3), jnp.zeros((3, 4))), jnp.ones((7, 3))

    def step(carry, row):
        return (carry[0] * scale, carry[1] + row[:, None]), (row, carry[0].sum(), row[:2] * scale)

    def function(scale, start, rows):
        del scale
        return jax.lax.scan(step, start, rows, reverse=True)

    (eqn,) = scans(jax.jit(function), scale, start, rows)
    found = equations.scan(eqn)
    assert found.carried == 2
    assert len(eqn.invars) - found.constants - found.carried == 1
    assert found.options == {"length": 7, "reverse": True, "unroll": 1}
    # An input of each kind that has the shape of another kind's rows.
    (eqn,) = scans(
        lambda c, h, x: jax.lax.scan(lambda h, x: (h + c.sum() + x.sum(), x), h, x),
        jnp.ones((7, 3)),
        jnp.ones(()),
        jnp.ones((7, 7, 3)),
    )
    found = equations.scan(eqn)
    assert (found.constants, found.carried) == (1, 1)


def test_primitives_are_found_wherever_they_are():
    params, batch = problem()
    batch = jax.tree.map(lambda x: x[0], batch)
    hidden = jax.jit(jax.checkpoint(loss_fn))
    assert equations.mentions(jax.make_jaxpr(jax.grad(hidden))(params, batch), "scan")
    assert not equations.mentions(jax.make_jaxpr(jax.jit(jnp.sin))(1.0), "scan")


@pytest.mark.parametrize("form", [no_unknown, *UNKNOWN])
@pytest.mark.parametrize("options", [{"interaction_interval": 10}, {"lagged": True}])
def test_scanned_layers_are_measured_in_any_form(form, options, monkeypatch):
    form(monkeypatch)
    (params, batch), method = problem(), weighting.lookahead_online(0.1, 0.5)
    options = {"interaction_interval": 1, **options}
    tx = optax.chain(transform.weighted(method, N, **options), optax.sgd(0.1))

    @jax.jit
    def step(params, state):
        updates, state = tx.update(None, state, params, loss_fn=loss_fn, batch=batch)
        return optax.apply_updates(params, updates), state

    _, state = step(params, tx.init(params))
    found = transform.find_state(state).interaction
    expected = oracles.gram(loss_fn, params, batch)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("form", UNKNOWN)
def test_who_must_read_an_unknown_form_says_so(form, monkeypatch):
    params, batch = problem()
    assert interaction.choose(loss_fn, params, batch) == "layerwise"
    form(monkeypatch)
    assert interaction.choose(loss_fn, params, batch) == "vmap"
    with pytest.raises(NotImplementedError, match="doesn't know: .* Only interaction='layerwise'"):
        interaction.layerwise().matrix(loss_fn, params, batch)


def test_what_cannot_be_read_moves_and_is_read(monkeypatch):
    reader = weighting.stateless(lambda statistics: jnp.diagonal(statistics.interaction))
    with pytest.raises(ValueError, match="reads statistics.interaction"):
        reads.check(reader, N, jnp.float32)
    optimizer, params = optax.set_to_zero(), problem()[0]
    assert ldro.moved_by(optimizer, params) == {"w": False}
    another_module(monkeypatch)
    assert ldro.moved_by(optimizer, params) == {"w": True}
    reads.check(reader, N, jnp.float32)

"""Gram matrices of one pullback, in every way, beside a loop of ``jax.grad``."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldro_jax.interaction import pulled
from ldro_jax.runtime import equations, xla_flags

N, ROWS, WIDTH = 3, 5, 8
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, 4, ROWS)
TARGETS = RNG.normal(size=(ROWS, N)).astype(np.float32)
PARAMS = {
    name: RNG.normal(size=shape).astype(np.float32) / 2
    for name, shape in {
        "embedding": (4, WIDTH),
        "twice": (WIDTH, WIDTH),
        "wide": (WIDTH, 2, WIDTH),
        "kernel": (3, 2 * WIDTH, 4),
        "bias": (4,),
        "scanned": (2, 4 * ROWS, 4 * ROWS),
        "narrow": (4 * ROWS, 2),
        "heads": (ROWS, 2, N),
    }.items()
}


def losses(p):
    """Every kind of layer: products that are worth taking apart, and others."""
    x = jnp.tanh(p["embedding"][TOKENS] @ p["twice"]) @ p["twice"]
    x = jnp.tanh(jnp.einsum("rk,kao->roa", x, p["wide"])).reshape(1, ROWS, -1)
    x = jax.lax.conv_general_dilated(x, p["kernel"], (1,), "SAME", dimension_numbers=_LAYOUT)
    x = (x[0] + p["bias"][None]).reshape(1, -1)
    x, _ = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, p["scanned"])
    # A product with one axis for the rows of each.
    y = jnp.einsum("bk,ko,rot->brt", x, p["narrow"], p["heads"])[0]
    return jnp.mean((y - TARGETS) ** 2, axis=0)


_LAYOUT = ("NWC", "WIO", "NWC")
# By the limit of memory, and the interval.
WAYS = {"at once": (2**30, None), "one after another": (0, None), "seldom": (2**30, 75)}


def expected(losses=losses, params=None):
    params = PARAMS if params is None else params
    each = [jax.grad(lambda p, i=i: losses(p)[i])(params) for i in range(N)]
    flat = np.stack([np.concatenate([np.ravel(x) for x in jax.tree.leaves(g)]) for g in each])
    return flat @ flat.T


def measured(limit, interval, losses=losses, params=None):
    def matrix(params):
        _, pull = jax.vjp(losses, params)
        return pulled.matrix(lambda w: pull(w)[0], N, jnp.float32, limit=limit, interval=interval)

    return jax.jit(matrix)(PARAMS if params is None else params)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("slow", [False, True])
def test_equals_a_loop_of_gradients(way, slow, monkeypatch):
    # A convolution goes back by itself on CPU.
    monkeypatch.setattr(equations, "mentions", lambda program, name: slow)
    found = measured(*WAYS[way])
    np.testing.assert_allclose(found, expected(), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(found, found.T)


def parts_of(losses, params):
    _, pull = jax.vjp(losses, params)
    program = pulled._program(lambda w: pull(w)[0], jnp.eye(N))
    return [shape.shape for shape in program.shapes]


def test_fewer_rows_than_inputs_take_the_place_of_a_gradient():
    def losses(p, rows):
        y = jnp.tanh(jnp.ones((rows, WIDTH)) @ p["in"]) @ p["out"]
        return jnp.mean(y, axis=0)

    params = {"in": jnp.ones((WIDTH, 2 * WIDTH)), "out": jnp.ones((2 * WIDTH, N))}
    few, many = (parts_of(lambda p, r=rows: losses(p, r), params) for rows in (ROWS, 50))
    assert few == [(ROWS, 2 * WIDTH), (ROWS, N)]
    assert many == [(WIDTH, 2 * WIDTH), (2 * WIDTH, N)]


def test_no_array_is_as_large_as_the_gradients():
    def losses(w):
        return jnp.mean(jnp.tanh(jnp.ones((2, 64)) @ w).reshape(2, N, -1), axis=(0, 2))

    params = jnp.ones((64, 30))
    _, pull = jax.vjp(losses, params)
    program = str(
        jax.make_jaxpr(lambda: pulled.matrix(lambda w: pull(w)[0], N, jnp.float32, limit=2**30))()
    )
    assert f"[{N},2,30]" in program
    assert f"[{N},64,30]" not in program and f"[{N},30,64]" not in program


@jax.custom_vjp
def clipped(x):
    return x


# Not linear in what comes back.
clipped.defvjp(lambda x: (x, None), lambda _, back: (jnp.clip(back, -1, 1),))


def test_what_has_no_transpose_goes_back_all_at_once():
    def losses(p):
        return clipped(jnp.ones((2, 4)) @ p).sum(axis=0)

    params = jnp.ones((4, N))
    found = measured(0, None, losses, params)
    np.testing.assert_allclose(found, expected(losses, params), rtol=1e-6)


def test_nothing_goes_back_together_where_xla_would_be_wrong(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setattr(xla_flags.importlib.metadata, "version", lambda name: "0.10.2")
    assert xla_flags.miscompiles()
    monkeypatch.setenv("XLA_FLAGS", f"{xla_flags._FLAG}=")
    assert not xla_flags.miscompiles()


def test_a_program_that_cannot_be_read_is_pulled_back_task_by_task(monkeypatch):
    def unknown(closed):
        raise equations.UnknownFormError("anything")

    monkeypatch.setattr(equations, "inlined", unknown)
    np.testing.assert_allclose(measured(2**30, None), expected(), rtol=1e-4, atol=1e-6)

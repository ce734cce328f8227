"""Digests of programs: the same for the same computation, wherever it is traced, and no others."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import tiny
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ldro_jax.records import outline, traced
from ldro_jax.training import fingerprint
from ldro_jax.training.engine import Trial

X = jnp.arange(3.0)


def scaled(factor):
    def multiply(x):
        return x * factor

    return multiply


def another_name(factor):
    return lambda values: values * factor


def with_rule(factor):
    """A function whose derivative alone has a factor."""

    @jax.custom_vjp
    def double(x):
        return 2 * x

    double.defvjp(lambda x: (2 * x, None), lambda _, g: (factor * g,))
    return double


def looped(factor):
    return lambda x: jax.lax.scan(lambda c, y: (c + factor * y, c), 0.0, x)


def constrained(count):
    mesh = Mesh(np.array(jax.devices()[:count]), ("data",))
    replicated = NamedSharding(mesh, PartitionSpec())
    return lambda x: jax.lax.with_sharding_constraint(2 * x, replicated)


SAME = {
    "a closure": (scaled(2.0), scaled(2.0)),
    "other names": (scaled(2.0), another_name(2.0)),
    "names under jit": (jax.jit(scaled(2.0)), jax.jit(another_name(2.0))),
    "loops": (looped(2.0), looped(2.0)),
    "constants": (scaled(np.ones(3, np.float32)), scaled(np.ones(3, np.float32))),
    "meshes": (constrained(1), constrained(2)),
}
OTHER = {
    "a number": (scaled(2.0), scaled(2.5)),
    "a number under jit": (jax.jit(scaled(2.0)), jax.jit(scaled(2.5))),
    "a number in a loop": (looped(2.0), looped(2.5)),
    "a constant": (scaled(np.float32([1, 2, 3])), scaled(np.float32([1, 2, 4]))),
    "a derivative": (jax.vmap(jax.grad(with_rule(2.0))), jax.vmap(jax.grad(with_rule(3.0)))),
    "a function": (jnp.tanh, jnp.sin),
    "order": (lambda x: (x, 2 * x), lambda x: (2 * x, x)),
    "the tree of what comes out": (lambda x: (x, x), lambda x: [x, x]),
    "which input": (lambda x: x - x[0], lambda x: x - x[1]),
    "a branch": (
        lambda x: jax.lax.cond(x[0] > 0, jnp.sin, jnp.cos, x),
        lambda x: jax.lax.cond(x[0] > 0, jnp.cos, jnp.sin, x),
    ),
}


@pytest.mark.parametrize(("one", "other"), SAME.values(), ids=SAME)
def test_the_same_program_has_the_same_digest(one, other):
    assert traced.of(one, X) == traced.of(other, X)


@pytest.mark.parametrize(("one", "other"), OTHER.values(), ids=OTHER)
def test_another_program_has_another_digest(one, other):
    assert traced.of(one, X) != traced.of(other, X)


def test_shapes_and_dtypes_count_and_values_of_arguments_do_not():
    digest = traced.of(jnp.sin, X)
    assert traced.of(jnp.sin, X + 1) == traced.of(jnp.sin, jax.ShapeDtypeStruct((3,), X.dtype))
    assert digest != traced.of(jnp.sin, X[:2]) and digest != traced.of(
        jnp.sin, X.astype("bfloat16")
    )


def measured(factor, share=None):
    def of_numbers(values):
        return float(values[0]) * factor

    return of_numbers


def test_code_that_cannot_be_traced_is_told_apart():
    assert traced.of_code(measured(1.0)) == traced.of_code(measured(1.0))
    assert traced.of_code(measured(1.0)) != traced.of_code(measured(2.0))
    assert traced.of_code(lambda x: x + 1) != traced.of_code(lambda x: x - 1)


@pytest.mark.parametrize("value", [np.arange(3), {"a": 1}, ("x", None), 1.5])
def test_values_have_digests(value):
    assert traced.of_values(value) == traced.of_values(value)
    assert traced.of_values(value) != traced.of_values([value])


def test_an_outline_names_what_a_closure_holds():
    lines = outline.lines("optimizer", optax.adam(0.25, b1=0.5))
    assert "optimizer.update.update_fns[0].tx.update.b1 = 0.5" in lines
    assert "optimizer.update.update_fns[1].tx.update.step_size = -0.25" in lines
    loop = {}
    loop["itself"] = loop
    assert outline.lines("loop", loop) == []
    assert outline.lines("f", functools.partial(scaled, 3.0))[-1] == "f[0] = 3.0"


PROGRAM = """
import json, sys
sys.path.insert(0, "tests")
import jax
jax.config.update("jax_numpy_dtype_promotion", "strict")
from helpers import tiny
from ldro_jax.training import fingerprint
from ldro_jax.training.engine import Trial
found = [fingerprint.of(p, tiny.schedule(), [Trial(p.method, 0)]) for p in (
    tiny.stacked(tiny.METHODS[3]), tiny.meshed(tiny.METHODS[3]))]
print(len(jax.devices()), json.dumps(found))
"""


def test_a_run_is_known_by_the_same_in_another_process_on_other_devices(run_python):
    flags = "--xla_force_host_platform_device_count=2"
    said = run_python(PROGRAM, XLA_FLAGS=flags, PYTHONHASHSEED="5").split("\n")[-2]
    count, _, found = said.partition(" ")
    assert count == "2" and len(jax.devices()) == 8
    method = tiny.METHODS[3]
    ours = [
        fingerprint.of(program, tiny.schedule(), [Trial(method, 0)])
        for program in (tiny.stacked(method), tiny.meshed(method))
    ]
    assert json.loads(found) == json.loads(json.dumps(ours))
    # What tells the engines from each other is where rows come from.
    shared = [dict(one["programs"]) for one in ours]
    for programs in shared:
        del programs["training rows"]
    assert shared[0] == shared[1]

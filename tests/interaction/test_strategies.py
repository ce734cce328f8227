"""Every strategy against a loop of `jax.grad`, over models that share parameters in many ways."""

import functools
import types

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import oracles, problems
from jax.sharding import NamedSharding, PartitionSpec

from ldro_jax import interaction

STRATEGIES = {
    "auto": lambda num_tasks: interaction.get("auto"),
    "columns": lambda num_tasks: interaction.columns(),
    "jacrev": lambda num_tasks: interaction.jacrev(),
    "scan": lambda num_tasks: interaction.scan(),
    "layerwise": lambda num_tasks: interaction.layerwise(),
    "offload": lambda num_tasks: interaction.offload(),
    "tiled 1": lambda num_tasks: interaction.tiled(1),
    "tiled 3": lambda num_tasks: interaction.tiled(3),
    "tiled N": lambda num_tasks: interaction.tiled(num_tasks),
    "vmap": lambda num_tasks: interaction.vmap(),
}
PROBLEMS = ["mlp", "tied", "convolutional"]
# Relative to the largest entry of A. Two ways to compute it in float32 differ by rounding in two
# gradients and a sum over the parameters, far below 1e-5; in float64 likewise.
TOLERANCE = {"float32": 1e-5, "float64": 1e-12}


@pytest.fixture(params=STRATEGIES)
def strategy(request):
    return STRATEGIES[request.param]


def measure(strategy, problem, params=None, batch=None):
    matrix_fn = jax.jit(lambda params, batch: strategy.matrix(problem.loss_fn, params, batch))
    return matrix_fn(
        problem.params if params is None else params, problem.batch if batch is None else batch
    )


def assert_close(matrix, expected, tolerance):
    np.testing.assert_allclose(matrix, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def num_tasks(problem):
    return len(jax.tree.leaves(problem.batch)[0])


def test_every_strategy_is_here():
    assert set(interaction.STRATEGIES) <= {name.split()[0] for name in STRATEGIES}


@functools.cache
def reference(name, dtype):
    problem = getattr(problems, name)(dtype)
    return problem, oracles.gram(*problem)


@pytest.mark.parametrize("strategy_name", STRATEGIES)
@pytest.mark.parametrize("name", PROBLEMS)
def test_equals_a_loop_of_gradients(name, strategy_name, dtype):
    problem, expected = reference(name, dtype)
    matrix = measure(STRATEGIES[strategy_name](num_tasks(problem)), problem)
    assert matrix.dtype == dtype
    assert_close(matrix, expected, TOLERANCE[dtype])


@pytest.mark.heavy  # as does another in test_xla_flags.py
@pytest.mark.parametrize("strategy_name", ["jacrev", "scan", "vmap"])
def test_a_transformer(strategy_name):
    # The others on this model, which is slow to compile, are in test_xla_flags.py.
    problem, expected = reference("transformer", "float32")
    matrix = measure(STRATEGIES[strategy_name](num_tasks(problem)), problem)
    assert_close(matrix, expected, TOLERANCE["float32"])


def test_the_loop_of_gradients_is_right():
    # The reference comes from XLA:CPU as well, so check it on the largest model against a finite
    # difference; 1e-6 is its error in float64 for a step of 1e-5.
    with jax.enable_x64(True):
        problem = problems.transformer(jnp.float64)
        gradients = oracles.task_gradients(*problem)
        flat, unflatten = jax.flatten_util.ravel_pytree(problem.params)
        direction = np.random.default_rng(0).standard_normal(flat.size)
        losses_fn = jax.jit(lambda step: problem.losses(unflatten(flat + step * direction)))
        forward, backward = losses_fn(1e-5), losses_fn(-1e-5)
        np.testing.assert_allclose(
            (forward - backward) / 2e-5, gradients @ direction, rtol=1e-6, atol=1e-6
        )


def test_heads_do_not_interact(strategy):
    problem = problems.mlp()
    # Without the shared layer's gradient only the heads are left, each of one task alone.
    frozen = problem._replace(
        loss_fn=lambda heads, task: problem.loss_fn(problem.params | {"heads": heads}, task),
        params=problem.params["heads"],
    )
    matrix = np.asarray(measure(strategy(5), frozen))
    assert (np.diagonal(matrix) > 0).all()
    np.testing.assert_array_equal(matrix - np.diag(np.diagonal(matrix)), 0)


def test_bfloat16_parameters(strategy):
    problem, expected = reference("mlp", "float32")
    half = jax.tree.map(
        lambda x: x.astype(jnp.bfloat16) if x.dtype == jnp.float32 else x,
        (problem.params, problem.batch),
    )
    matrix = measure(strategy(5), problem, *half)
    assert matrix.dtype == jnp.float32
    # bfloat16 has 8 bits: each of the chained products and sums of a gradient is off by up to
    # 0.4 %, and a Gram entry holds two of them. Accumulating in bfloat16 would be off by more.
    assert_close(matrix, expected, 0.03)


def test_stored_in_bfloat16():
    # Rounding the gradients once, 2^-9 each, random over the 100 parameters.
    problem = problems.mlp()
    matrix = measure(interaction.scan(dtype=jnp.bfloat16), problem)
    assert_close(matrix, oracles.gram(*problem), 2**-8)


@pytest.fixture(scope="module")
def mesh():
    types = (jax.sharding.AxisType.Auto,) * 2
    return jax.make_mesh((4, 2), ("data", "model"), axis_types=types)


@pytest.mark.parametrize("shard_params", [False, True])
def test_sharded(strategy, mesh, shard_params):
    problem = problems.mlp()

    def place(spec):
        return lambda x: jax.device_put(x, NamedSharding(mesh, spec))

    # Examples over the data axis, as in training; the width of the model over the other.
    batch = {
        "x": place(PartitionSpec(None, "data"))(problem.batch["x"]),
        "y": place(PartitionSpec(None, "data"))(problem.batch["y"]),
        "task": place(PartitionSpec())(problem.batch["task"]),
    }
    width = "model" if shard_params else None
    params = {
        "w": place(PartitionSpec(None, width))(problem.params["w"]),
        "b": place(PartitionSpec(width))(problem.params["b"]),
        "heads": place(PartitionSpec(None, width))(problem.params["heads"]),
    }
    matrix = measure(strategy(5), problem, params, batch)
    assert_close(matrix, reference("mlp", "float32")[1], TOLERANCE["float32"])


def test_constrained_gradients_stay_sharded(mesh):
    sharding = NamedSharding(mesh, PartitionSpec(None, "model"))
    seen = []

    def constrain(gradient):
        gradient = gradient | {"w": jax.lax.with_sharding_constraint(gradient["w"], sharding)}
        seen.append(gradient)
        return gradient

    problem = problems.mlp()
    matrix = measure(interaction.scan(constrain=constrain), problem)
    assert seen
    assert_close(matrix, oracles.gram(*problem), TOLERANCE["float32"])


@pytest.mark.parametrize("name", ["auto", "scan", "vmap"])
def test_gradients(name):
    problem = problems.mlp()
    gradients_fn = interaction.get(name).gradients
    losses, gradients = jax.jit(lambda p, b: gradients_fn(problem.loss_fn, p, b))(
        problem.params, problem.batch
    )
    np.testing.assert_allclose(losses, problem.losses(problem.params), rtol=1e-6)
    flat = np.concatenate([np.reshape(g, (5, -1)) for g in jax.tree.leaves(gradients)], 1)
    # Elementwise float32 rounding, relative to the size of the gradients.
    expected = oracles.task_gradients(*problem)
    np.testing.assert_allclose(flat, expected, atol=1e-6 * np.abs(expected).max())


def test_any_layout_of_the_batch():
    problem = problems.mlp()
    matrix = jax.jit(lambda params: interaction.jacobian_gram(problem.losses, params))(
        problem.params
    )
    assert_close(matrix, oracles.gram(*problem), TOLERANCE["float32"])


def test_gram_of_two_different_stacks():
    left = {"a": jnp.arange(12.0).reshape(2, 3, 2), "b": jnp.ones((2, 4))}
    right = {"a": jnp.ones((3, 3, 2)), "b": jnp.full((3, 4), 2.0)}
    np.testing.assert_array_equal(interaction.gram(left, right), [[23.0] * 3, [59.0] * 3])


@pytest.mark.parametrize("size", [0, -1, 1.5, "all"])
def test_a_wrong_tile_size_is_named(size):
    with pytest.raises(ValueError, match=f"tile_size must be a positive integer.*{size}"):
        interaction.tiled(size)


def test_a_batch_without_a_common_task_axis_is_named():
    problem = problems.mlp()
    batch = problem.batch | {"y": problem.batch["y"][:3]}
    with pytest.raises(ValueError, match=r"same leading task axis.*'y'.*\(3, 8\)"):
        interaction.get("auto").matrix(problem.loss_fn, problem.params, batch)


def test_offloaded_gradients_are_on_the_host():
    problem = problems.mlp()
    matrix = interaction.offload().matrix
    traced = jax.make_jaxpr(lambda p: matrix(problem.loss_fn, p, problem.batch))(problem.params)
    sizes = [leaf.size for leaf in jax.tree.leaves(problem.params)]
    for size in sizes:
        assert f"f32<host>[5,{size}]" in str(traced)


def test_offloading_needs_memory_of_the_host(monkeypatch):
    memory = types.SimpleNamespace(kind="device")
    device = types.SimpleNamespace(addressable_memories=lambda: [memory], device_kind="abacus")
    monkeypatch.setattr(jax, "devices", lambda: [device])
    with pytest.raises(ValueError, match="memory, 'pinned_host', but abacus has device. Use 'ti"):
        measure(interaction.offload(), problems.mlp())

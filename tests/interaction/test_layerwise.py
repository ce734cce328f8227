"""Gradients of scanned layers that are used up in the scan, against a loop of gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import oracles, problems
from jax.sharding import NamedSharding, PartitionSpec

from ldro_jax import interaction, transform, weighting
from ldro_jax.interaction import slices
from ldro_jax.interaction.layerwise import held

N, LAYERS, WIDTH, EXAMPLES = 5, 6, 4, 3
TOLERANCE = {"float32": 1e-5, "float64": 1e-12}


def part(tree, index):
    """Of one task, or of one run."""
    return jax.tree.map(lambda x: x[index], tree)


def parameters(dtype="float32", axis=0):
    """Stacked layers along an axis, one matrix that all layers share, and one outside of them."""
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape) / 2, dtype)

    return {
        "in": normal(WIDTH, WIDTH),
        "layers": {
            "b": jnp.moveaxis(normal(LAYERS, WIDTH), 0, axis),
            "w": jnp.moveaxis(normal(LAYERS, WIDTH, WIDTH), 0, axis),
        },
        "shared": normal(WIDTH, WIDTH),
    }


def batches(dtype="float32"):
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(2, N, EXAMPLES, WIDTH))
    return {"x": jnp.asarray(x, dtype), "y": jnp.asarray(y, dtype)}


def loss_fn(params, batch, *, axis=0, remat=False, cast=None, inner=None, **options):
    """The matrix of the first layer is that of the last one as well."""

    def layer(x, p):
        if inner is not None:
            p = jax.tree.map(lambda a: a.astype(inner), p)
        x = x.astype(p["w"].dtype)
        x = jnp.tanh(x @ p["w"] + p["b"][None]) + x @ params["shared"].astype(x.dtype)
        return x.astype(batch["x"].dtype), jnp.sum(x.astype(jnp.float32) ** 2)

    layers = jax.tree.map(lambda a: jnp.moveaxis(a, axis, 0), params["layers"])
    if cast is not None:
        layers = jax.tree.map(lambda a: a.astype(cast), layers)
    layer = jax.checkpoint(layer) if remat else layer
    x, norms = jax.lax.scan(layer, jnp.tanh(batch["x"] @ params["in"]), layers, **options)
    regular = 1e-2 * norms.mean().astype(x.dtype)
    return jnp.mean((x @ params["in"] - batch["y"]) ** 2) + regular


FORMS = {
    "plain": {},
    "along another axis": {"axis": 1},
    "remat": {"remat": True},
    "unrolled": {"unroll": 2},
    "backwards": {"reverse": True},
}


def oracle(loss, params, batch):
    """Losses, and the gradients of the tasks as float64 rows."""
    flat, jitted = oracles.task_gradients(loss, params, batch), jax.jit(loss)
    losses = [float(jitted(params, part(batch, i))) for i in range(N)]
    return losses, flat


def pulled(loss, params, batch, weights):
    def both(params, batch, weights):
        losses, pull = interaction.layerwise().pullback(loss, params, batch)
        return losses, *pull(weights)

    return jax.jit(both)(params, batch, weights)


def flattened(tree):
    return np.concatenate([np.ravel(np.asarray(x, np.float64)) for x in jax.tree.leaves(tree)])


def assert_close(found, expected, tolerance):
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("form, jitted", [("plain", True), *((form, False) for form in FORMS)])
def test_equals_a_loop_of_gradients(form, jitted, dtype):
    loss = functools.partial(loss_fn, **FORMS[form])
    params, batch = parameters(dtype, FORMS[form].get("axis", 0)), batches(dtype)
    weights = jnp.asarray([0.1, 0.3, 0.0, 0.2, 0.4], dtype)
    expected_losses, flat = oracle(loss, params, batch)
    asked = jax.jit(loss) if jitted else loss
    losses, gradient, matrix = pulled(asked, params, batch, weights)
    assert matrix.dtype == dtype
    assert jax.tree.structure(gradient) == jax.tree.structure(params)
    tolerance = TOLERANCE[dtype]
    assert_close(losses, np.array(expected_losses), tolerance)
    assert_close(matrix, flat @ flat.T, tolerance)
    assert_close(flattened(gradient), np.asarray(weights, np.float64) @ flat, tolerance)
    alone = jax.jit(functools.partial(interaction.layerwise().matrix, asked))(params, batch)
    assert_close(alone, flat @ flat.T, tolerance)


@pytest.mark.parametrize("options", [{"cast": "bfloat16"}, {"inner": "bfloat16"}])
def test_layers_in_another_type(options):
    loss = functools.partial(loss_fn, **options)
    params, batch, weights = parameters(), batches(), jnp.full(N, 1 / N)
    losses, gradient, matrix = pulled(loss, params, batch, weights)
    stacked = jax.jit(jax.vmap(jax.value_and_grad(loss), in_axes=(None, 0)))(params, batch)
    flat = np.stack([flattened(part(stacked[1], i)) for i in range(N)])
    np.testing.assert_allclose(losses, stacked[0], rtol=2e-2)
    # A few roundings of bfloat16, where one program rounds and the other doesn't.
    assert_close(matrix, flat @ flat.T, 2e-2)
    assert_close(flattened(gradient), flat.mean(axis=0), 2e-2)
    assert {x.dtype for x in jax.tree.leaves(gradient)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("form", FORMS)
def test_no_stack_of_gradients_is_in_the_program(form):
    loss = functools.partial(loss_fn, **FORMS[form])
    params, batch = parameters(axis=FORMS[form].get("axis", 0)), batches()

    stack = tuple(sorted((N, LAYERS, WIDTH, WIDTH)))
    assert stack in array_shapes(functools.partial(interaction.vmap().matrix, loss), params, batch)
    matrix = functools.partial(interaction.layerwise().matrix, loss)
    assert stack not in array_shapes(matrix, params, batch)

    def both(params, batch):
        losses, pull = interaction.layerwise().pullback(loss, params, batch)
        return pull(losses)

    assert stack not in array_shapes(both, params, batch)
    assert held(loss, params, batch) == 4 * N * WIDTH**2


def array_shapes(function, *arguments):
    """The sizes of all arrays of a program, its inner ones too."""
    found, programs = set(), [jax.make_jaxpr(function)(*arguments).jaxpr]
    while programs:
        jaxpr = programs.pop()
        for eqn in jaxpr.eqns:
            found |= {tuple(sorted(v.aval.shape)) for v in eqn.outvars}
            for value in jax.tree.leaves(list(eqn.params.values())):
                programs += [getattr(value, "jaxpr", value)] if "axpr" in repr(type(value)) else []
    return found


def dense(params, batch):
    """Layers of several kinds, one of them twice, and a table whose rows are in and out of it."""
    x = jnp.tanh(jnp.einsum("ed,hdk->ehk", batch["x"], params["heads"])).reshape(-1, 12)
    x = jnp.tanh(x @ params["twice"] @ params["twice"]) @ params["out"]
    x = x + params["table"][jnp.arange(len(x), dtype=jnp.int32) % 8]
    regular = jnp.mean(jnp.einsum("ed,vd->ev", jnp.tanh(x), params["table"]) ** 2)
    return jnp.mean((x @ params["last"] - batch["y"]) ** 2) + regular


def dense_problem(dtype):
    shapes = {
        "heads": (3, 4, 4),
        "twice": (12, 12),
        "out": (12, 6),
        "table": (8, 6),
        "last": (6, 4),
    }
    rng = np.random.default_rng(2)
    params = {name: jnp.asarray(rng.normal(size=s) / 2, dtype) for name, s in shapes.items()}
    return params, batches(dtype)


@pytest.fixture
def one_device(monkeypatch):
    """As where there is one device: the products of dense layers are taken in small slices."""
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    monkeypatch.setattr(slices, "_CPU", 9)
    monkeypatch.setattr(slices, "_ROWS", 2)


def test_dense_layers_are_used_up_in_slices(one_device, dtype):
    params, batch = dense_problem(dtype)
    weights = jnp.asarray([0.1, 0.3, 0.0, 0.2, 0.4], dtype)
    expected_losses, flat = oracle(dense, params, batch)
    losses, gradient, matrix = pulled(dense, params, batch, weights)
    assert_close(losses, np.array(expected_losses), TOLERANCE[dtype])
    assert_close(matrix, flat @ flat.T, TOLERANCE[dtype])
    assert_close(flattened(gradient), np.asarray(weights, np.float64) @ flat, TOLERANCE[dtype])

    def alone(params, batch):
        return interaction.layerwise().matrix(dense, params, batch)

    assert_close(jax.jit(alone)(params, batch), flat @ flat.T, TOLERANCE[dtype])
    # All of them come in slices, the table is a sum of two; but "twice" is one of two products
    # with a transposition between.
    found = array_shapes(alone, params, batch)
    whole = {name: tuple(sorted((N, *leaf.shape))) in found for name, leaf in params.items()}
    assert whole == {"heads": False, "twice": True, "out": False, "table": False, "last": False}
    assert interaction.choose(dense, params, batch) == "layerwise"
    assert held(dense, params, batch) == jnp.dtype(dtype).itemsize * N * 12 * 12


def test_layers_that_are_not_scanned_are_stacked():
    problem = problems.mlp()
    losses, pull = interaction.layerwise().pullback(*problem)
    weights = jnp.linspace(0, 1, 5)
    gradient, matrix = pull(weights)
    np.testing.assert_allclose(losses, problem.losses(problem.params), rtol=1e-6)
    expected = oracles.weighted_gradient(*problem, weights)
    assert_close(flattened(gradient), expected, 1e-5)
    assert_close(matrix, oracles.gram(*problem), 1e-5)


def test_stacked_parameters_that_are_used_again_are_not_lost():
    # Weight decay of the stacked array: its gradient isn't what the scan puts out alone.
    def loss(params, batch):
        return loss_fn(params, batch) + jnp.sum(params["layers"]["w"] ** 2)

    params, batch = parameters(), batches()
    _, flat = oracle(loss, params, batch)
    _, gradient, matrix = pulled(loss, params, batch, jnp.ones(N))
    assert_close(matrix, flat @ flat.T, 1e-5)
    assert_close(flattened(gradient), flat.sum(axis=0), 1e-5)


def test_runs_side_by_side():
    many = jax.tree.map(lambda x: jnp.stack([x, x / 2]), parameters())
    batch, weights = batches(), jnp.full(N, 0.2)

    def one(params):
        losses, pull = interaction.layerwise().pullback(loss_fn, params, batch)
        return losses, *pull(weights)

    found = jax.jit(jax.vmap(one))(many)
    for run in range(2):
        params = part(many, run)
        losses, gradient, matrix = pulled(loss_fn, params, batch, weights)
        np.testing.assert_allclose(found[0][run], losses, rtol=1e-5)
        assert_close(found[2][run], matrix, 1e-5)
        assert_close(flattened(part(found[1], run)), flattened(gradient), 1e-5)


def test_on_a_mesh():
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)

    def placed(x, *spec):
        return jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))

    params, batch = parameters(), batches()
    batch = jax.tree.map(lambda x: jnp.concatenate([x, x[:, :1]], axis=1), batch)
    weights = jnp.linspace(0, 1, N)
    alone = pulled(loss_fn, params, batch, weights)
    spread = {
        "in": placed(params["in"], None, "model"),
        "layers": {
            "b": placed(params["layers"]["b"], None, "model"),
            "w": placed(params["layers"]["w"], None, None, "model"),
        },
        "shared": placed(params["shared"], "model"),
    }
    found = pulled(loss_fn, spread, jax.tree.map(lambda x: placed(x, None, "data"), batch), weights)
    for ours, expected in zip(jax.tree.leaves(found), jax.tree.leaves(alone), strict=True):
        assert_close(ours, np.asarray(expected), 1e-5)


def lagged_steps(strategy):
    method, batch = weighting.lookahead_online(0.1, 0.5), batches()
    tx = optax.chain(
        transform.weighted(method, N, interaction=strategy, interaction_interval=1, lagged=True),
        optax.sgd(0.1),
    )

    @jax.jit
    def step(params, state):
        updates, state = tx.update(None, state, params, loss_fn=loss_fn, batch=batch)
        return optax.apply_updates(params, updates), state

    params = parameters()
    state = tx.init(params)
    for _ in range(5):
        params, state = step(params, state)
    return params, transform.find_state(state)


def test_lagged_steps_are_those_of_stacked_gradients():
    expected = lagged_steps(interaction.Interaction(interaction.vmap().matrix))
    assert np.ptp(expected[1].weights) > 1e-3
    for strategy in ("auto", "layerwise"):
        problems.assert_trees_close(lagged_steps(strategy), expected, 1e-5)


def test_a_pullback_may_give_both():
    problem = problems.mlp()

    def update(tx, state, **options):
        losses, pull = interaction.layerwise().pullback(*problem)
        return tx.update(None, state, problem.params, losses=losses, pullback=pull, **options)[1]

    method = weighting.lookahead_online(0.1, 0.5)
    tx = transform.weighted(method, N, interaction_interval=1, lagged=True)
    step = jax.jit(functools.partial(update, tx))
    state = step(step(tx.init(problem.params)))
    assert_close(state.interaction, oracles.gram(*problem), 1e-5)
    assert np.ptp(state.weights) > 1e-3
    early = transform.weighted(method, N, interaction_interval=1)
    start = early.init(problem.params)
    with pytest.raises(ValueError, match="needs lagged=True and interaction_interval=1"):
        jax.eval_shape(lambda: update(early, start, interaction_fn=lambda: jnp.eye(N)))

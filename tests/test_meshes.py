"""Steps on meshes whose axes the compiler or the types split: the digits of one device."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import problems
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ldro_jax import interaction, ldro, transform, weighting

N = 4
STRATEGIES = ("auto", *interaction.STRATEGIES, "split")
# Where parameters lie, and arrays [task, example, ...].
LAYOUTS = {
    "examples": (None, PartitionSpec(None, "data")),
    "parameters and tasks": ("model", PartitionSpec("data")),
}


def loss_fn(params, task):
    def layer(hidden, w):
        # Sums, since a product over an axis that is split would need its sharding said.
        return jnp.tanh(hidden + jnp.sum(hidden[:, :, None] * w[None], axis=1)), None

    hidden, _ = jax.lax.scan(layer, jnp.tanh(task["x"] @ params["w"]), params["layers"])
    outputs = jnp.sum(hidden[:, :, None] * params["wide"][None], axis=1)
    return jnp.mean((jnp.sum(outputs, axis=-1) - task["y"]) ** 2)


@functools.cache
def problem():
    generator = np.random.default_rng(0)
    shapes = {"x": (N, 8, 6), "y": (N, 8), "w": (6, 8), "layers": (2, 8, 8), "wide": (8, 4)}
    arrays = {
        name: jnp.asarray(generator.normal(size=shape) / 3, jnp.float32)
        for name, shape in shapes.items()
    }
    batch = {name: arrays.pop(name) for name in "xy"}
    return problems.Problem(loss_fn, arrays, batch)


def placed(kind, layout):
    if kind == AxisType.Explicit and jax.__version_info__ < (0, 7, 1):
        pytest.skip("explicit meshes need jax 0.7.1")
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind,) * 2)
    width, rows = LAYOUTS[layout]
    specs = {
        "w": PartitionSpec(),
        "layers": PartitionSpec(),
        "wide": PartitionSpec(None, width),
    }

    def place(x, spec):
        return jax.device_put(x, NamedSharding(mesh, spec))

    params = {name: place(x, specs[name]) for name, x in problem().params.items()}
    return params, jax.tree.map(lambda x: place(x, rows), problem().batch)


def steps(strategy, interval, lagged, params, batch, form="tasks"):
    tx = optax.chain(
        ldro.transform(
            N,
            lookahead_lr=0.1,
            weight_lr=0.5,
            interaction=strategy,
            interaction_interval=interval,
            lagged=lagged,
        ),
        optax.sgd(0.05, momentum=0.9),
    )
    step, state = problems.make_step(tx, problem(), form), tx.init(params)
    types = jax.tree.map(jax.typeof, params)
    for _ in range(3):
        params, state = step(params, state, batch)
    # They stay where they were.
    assert jax.tree.map(jax.typeof, params) == types
    return params, transform.find_state(state)


@functools.cache
def alone(strategy, interval, lagged):
    return steps(strategy, interval, lagged, problem().params, problem().batch)


SPLIT = "parameters and tasks"
# Those that hold the gradients, or use them up where they come out.
FUSED = ("layerwise", "scan", "vmap")
CASES = [(AxisType.Explicit, name, layout, 2, False) for name in STRATEGIES for layout in LAYOUTS]
CASES += [(AxisType.Auto, name, SPLIT, 2, False) for name in STRATEGIES]
CASES += [(AxisType.Explicit, name, SPLIT, 1, lag) for name in FUSED for lag in (False, True)]


def is_quick(kind, strategy, layout, interval, lagged):
    """Each strategy once, where all is split that can be; the rest is heavy."""
    explicit = kind == AxisType.Explicit
    return strategy == "auto" or (
        explicit and layout == SPLIT and not (lagged and strategy != "vmap")
    )


CASES = [
    case if is_quick(*case) else pytest.param(*case, marks=pytest.mark.heavy) for case in CASES
]


@pytest.mark.parametrize("kind, strategy, layout, interval, lagged", CASES)
def test_the_digits_of_one_device(kind, strategy, layout, interval, lagged):
    found = steps(strategy, interval, lagged, *placed(kind, layout))
    # Three steps in float32, whose sums are in another order.
    problems.assert_trees_close(found, alone(strategy, interval, lagged), 1e-5)


@pytest.mark.parametrize("form", ["layout", "forward", "stacked"])
def test_other_forms_on_an_explicit_mesh(form):
    found = steps("vmap", 1, False, *placed(AxisType.Explicit, SPLIT), form)
    problems.assert_trees_close(found, alone("vmap", 1, False), 1e-5)


def test_an_exact_game_on_an_explicit_mesh():
    params, batch = placed(AxisType.Explicit, SPLIT)
    tx = transform.weighted(weighting.lookahead_exact(0.1), N)

    def gradient(params, batch):
        update = jax.jit(functools.partial(tx.update, None, loss_fn=loss_fn))
        return update(tx.init(params), params, batch=batch)[0]

    expected = gradient(problem().params, problem().batch)
    found = gradient(params, batch)
    assert np.abs(np.asarray(expected["w"])).max() > 0.01
    # The solver promises its weights to 1e-3 only.
    problems.assert_trees_close(found, expected, 2e-3)

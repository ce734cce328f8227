"""The state as an object: types, donation, checkpoints, devices, dtypes of the parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from helpers import problems
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ldro_jax import ldro, transform


def make(interval=2, **options):
    options = {"lookahead_lr": 0.1, "weight_lr": 0.5} | options
    return optax.chain(
        ldro.transform(5, interaction_interval=interval, **options), optax.sgd(0.1, momentum=0.9)
    )


def signature(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)


@pytest.mark.parametrize("form, interval", [("tasks", 1), *((form, 2) for form in problems.FORMS)])
def test_compiles_once_and_keeps_its_types(form, interval, dtype):
    problem = problems.mlp(dtype)
    tx = make(interval)
    step = problems.make_step(tx, problem, form)
    params, state = problem.params, tx.init(problem.params)
    before = signature((params, state))
    for _ in range(2):
        params, state = step(params, state, problem.batch)
        assert signature((params, state)) == before
    assert step._cache_size() == 1
    assert ldro.weights(state).dtype == dtype


def test_donates():
    problem = problems.mlp()
    tx = make()
    step = jax.jit(
        lambda params, state: problems.make_step(tx, problem)(params, state, problem.batch),
        donate_argnums=(0, 1),
        # What a step doesn't read is given up as well.
        keep_unused=True,
    )
    # A buffer that two leaves share could not be donated.
    params, state = jax.tree.map(jnp.copy, problem.params), tx.init(problem.params)
    first = (params, state)
    for _ in range(2):
        params, state = step(params, state)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(first))
    expected = problems.train(tx, problem, 2)[-1]
    problems.assert_trees_close((params, state), expected, 1e-6)


def test_checkpoints_bit_for_bit(tmp_path):
    problem = problems.mlp()
    tx = make()
    params, state = problems.train(tx, problem, 3)[-1]
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        like = jax.tree.map(ocp.utils.to_shape_dtype_struct, tx.init(problem.params))
        restored = checkpointer.restore(tmp_path / "state", like)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    # It also trains on, where A is refreshed and where it isn't.
    step = problems.make_step(tx, problem)
    for _ in range(2):
        one, two = step(params, state, problem.batch), step(params, restored, problem.batch)
        jax.tree.map(np.testing.assert_array_equal, one, two)
        (params, state), restored = one, two[1]


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("interval", [1, 3])
def test_one_and_eight_devices_agree(interval, kind):
    if kind == AxisType.Explicit and jax.__version_info__ < (0, 7, 1):
        pytest.skip("explicit meshes need jax 0.7.1")
    problem = problems.mlp()
    tx = make(interval)
    expected = problems.train(tx, problem, 20)[-1]
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    replicated = NamedSharding(mesh, PartitionSpec())
    examples = NamedSharding(mesh, PartitionSpec(None, "data"))
    batch = {
        name: jax.device_put(x, replicated if name == "task" else examples)
        for name, x in problem.batch.items()
    }
    params, state = jax.device_put((problem.params, tx.init(problem.params)), replicated)
    step = problems.make_step(tx, problem)
    for _ in range(20):
        params, state = step(params, state, batch)
    assert ldro.weights(state).sharding.is_fully_replicated
    # 20 steps in float32, whose sums over the examples are in another order.
    problems.assert_trees_close((params, state), expected, 1e-5)


def test_a_sweep_in_one_vmap():
    problem = problems.mlp()

    def final_weights(rate):
        tx = make(weight_lr=rate)
        return ldro.weights(problems.train(tx, problem, 4)[-1][1])

    rates = jnp.array([0.0, 0.5, 2.0])
    alone = [final_weights(float(rate)) for rate in rates]
    np.testing.assert_allclose(jax.vmap(final_weights)(rates), alone, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [{}, {"interval": 1}, {"interval": 1, "lagged": True}, {"interval": 1, "exact": True}],
)
def test_outside_of_a_jit_only_the_first_steps_compile(options):
    problem = problems.mlp()
    exact = {"weight_lr": None} if "exact" in options else {}
    tx = make(**{"interval": 100} | exact | options)
    params, state = problem.params, tx.init(problem.params)
    compiled = []

    def listen(event, *_, **__):
        compiled.append(event)

    for step in range(4):
        if step == 2:
            jax.monitoring.register_event_duration_secs_listener(listen)
        arguments = {"loss_fn": problem.loss_fn, "batch": problem.batch}
        updates, state = tx.update(None, state, params, **arguments)
        params = optax.apply_updates(params, updates)
    assert [event for event in compiled if "backend_compile" in event] == []


@pytest.mark.parametrize("form", ["tasks", "stacked"])
def test_bfloat16_parameters(form):
    problem = problems.mlp()
    half = problem._replace(
        params=jax.tree.map(lambda x: x.astype(jnp.bfloat16), problem.params),
        batch=problem.batch | {k: problem.batch[k].astype(jnp.bfloat16) for k in "xy"},
    )
    tx = make()
    params, state = problems.train(tx, half, 3, form)[-1]
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}
    mine = transform.find_state(state)
    assert mine.weights.dtype == mine.losses.dtype == mine.interaction.dtype == jnp.float32
    _, expected = problems.train(tx, problem, 3)[-1]
    # Losses and matrix are off by the few percent that bfloat16 (8 bits) loses in a model, and the
    # weights by this times eta lambda |A|, about one.
    np.testing.assert_allclose(mine.weights, ldro.weights(expected), atol=0.05)
    np.testing.assert_allclose(mine.weights.sum(), 1, rtol=1e-6)


def test_parameters_of_several_dtypes():
    problem = problems.mlp()
    mixed = problem._replace(
        params=problem.params | {"b": problem.params["b"].astype(jnp.bfloat16)},
        loss_fn=lambda p, t: problem.loss_fn(p | {"b": p["b"].astype(jnp.float32)}, t),
    )
    params, state = problems.train(make(1), mixed, 2)[-1]
    assert jax.tree.map(lambda x: x.dtype, params) == jax.tree.map(lambda x: x.dtype, mixed.params)
    assert ldro.interaction(state).dtype == jnp.float32


def test_schedules():
    problem = problems.mlp()
    options = {"lookahead_lr": 0.1, "weight_lr": 0.5, "floor": 0.0}
    before = [ldro.weights(s) for _, s in problems.train(make(**options), problem, 3)]
    for rate, value in options.items():
        switched = options | {rate: lambda count, v=value: jnp.where(count < 2, v, 0.9)}
        after = [ldro.weights(s) for _, s in problems.train(make(**switched), problem, 3)]
        np.testing.assert_allclose(after[:2], before[:2], rtol=1e-6)
        assert np.abs(after[2] - before[2]).max() > 1e-3, rate

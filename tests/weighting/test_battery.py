"""What every weighting must do, whatever its method."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from ldro_jax import weighting

N = 8

# One entry for each method, and one for each option that changes its arithmetic. The methods with
# numbers for each task get different ones, which a permutation of the tasks has to follow.
PER_TASK = np.array([3.0, 1.0, 4.0, 1.5, 9.0, 2.0, 6.0, 5.0])
WEIGHTINGS = {
    "average": lambda order: weighting.average(),
    "baselined_dro": lambda order: weighting.baselined_dro(PER_TASK[order] / 10, 0.1),
    "group_dro": lambda order: weighting.group_dro(0.1),
    "group_dro adjusted": lambda order: weighting.group_dro(
        0.1, group_sizes=PER_TASK[order], adjustment=0.5
    ),
    "interpolated": lambda order: weighting.interpolated(0.3),
    "lookahead_exact": lambda order: weighting.lookahead_exact(0.1),
    "lookahead_exact raw": lambda order: weighting.lookahead_exact(
        0.1, normalize_interaction=False
    ),
    "lookahead_online": lambda order: weighting.lookahead_online(0.1, 0.5),
    "lookahead_online raw": lambda order: weighting.lookahead_online(
        0.1, 0.5, normalize_interaction=False
    ),
    "floor": lambda order: weighting.with_floor(weighting.group_dro(0.1), 0.2),
    "pcgrad": lambda order: weighting.pcgrad(),
    "static_mixing": lambda order: weighting.static_mixing(PER_TASK[order]),
}
ORDER = np.arange(N)

# What projects gradients gives all tasks at least their share, and more where there is conflict.
BEYOND_THE_SIMPLEX = {"pcgrad"}
# What draws a random order of the tasks draws it by their numbers.
RANDOM = {"pcgrad"}


@pytest.fixture(params=WEIGHTINGS)
def name(request):
    return request.param


def statistics(dtype="float32", *, seed=0, num_tasks=N, scale=1.0, order=None):
    """Losses between one and two, and the Gram matrix of random gradients."""
    generator = np.random.default_rng(seed)
    losses = scale * generator.uniform(1, 2, num_tasks)
    gradients = scale * generator.standard_normal((num_tasks, 7))
    if order is not None:
        losses, gradients = losses[order], gradients[order]
    return weighting.Statistics(
        jnp.zeros([], jnp.int32),
        jnp.asarray(losses, dtype),
        jnp.asarray(gradients @ gradients.T, dtype),
    )


def run(method, all_statistics, num_tasks=N, *, update=None):
    """Weights after some steps, and the state."""
    state = method.init(num_tasks, all_statistics[0].losses.dtype)
    for current in all_statistics:
        weights, state = (update or method.update)(current, state)
    return weights, state


def avals(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)


def assert_total(name, weights, dtype="float32"):
    """The weights sum to one, or to more where the method projects gradients."""
    rounding = 10 * float(jnp.finfo(dtype).eps)
    if name in BEYOND_THE_SIMPLEX:
        assert (weights >= (1 - rounding) / N).all() and jnp.isfinite(weights).all()
    else:
        np.testing.assert_allclose(weights.sum(), 1, rtol=rounding)


def tolerance(name, dtype):
    # Sums of a few numbers around one: some roundings of the dtype. The game solver promises its
    # entropy to 1e-3 only, and where a face of optimal weights is flat, that leaves them freer.
    return 1e-3 if "exact" in name else 20 * float(jnp.finfo(dtype).eps)


def test_every_method_is_here():
    assert set(weighting.METHODS) <= set(WEIGHTINGS)


def test_weights_lie_on_the_simplex(name, dtype):
    weights, _ = run(WEIGHTINGS[name](ORDER), [statistics(dtype, seed=s) for s in range(3)])
    assert weights.shape == (N,) and weights.dtype == dtype
    assert (weights >= 0).all()
    assert_total(name, weights, dtype)


def test_follows_a_permutation_of_the_tasks(name, dtype):
    if name in RANDOM:
        pytest.skip("follows one in distribution only: its random orders are of these numbers")
    order = np.array([3, 0, 4, 7, 1, 6, 2, 5])
    plain, _ = run(WEIGHTINGS[name](ORDER), [statistics(dtype, seed=s) for s in range(3)])
    permuted, _ = run(
        WEIGHTINGS[name](order), [statistics(dtype, seed=s, order=order) for s in range(3)]
    )
    np.testing.assert_allclose(permuted, plain[order], atol=tolerance(name, dtype))


def test_jit_equals_eager_and_compiles_once(name):
    method = WEIGHTINGS[name](ORDER)
    steps = [statistics(seed=s) for s in range(3)]
    update = jax.jit(method.update)
    compiled, _ = run(method, steps, update=update)
    np.testing.assert_allclose(compiled, run(method, steps)[0], atol=tolerance(name, "float32"))
    assert update._cache_size() == 1


def test_state_is_type_stable(name, dtype):
    method = WEIGHTINGS[name](ORDER)
    state = method.init(N, dtype)
    _, after = method.update(statistics(dtype), state)
    assert avals(after) == avals(state)
    assert not any(x.weak_type for x in jax.tree.leaves(state))


def test_vmaps(name):
    method = WEIGHTINGS[name](ORDER)
    steps = [statistics(seed=s) for s in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *steps)
    states = jax.vmap(lambda _: method.init(N, jnp.float32))(jnp.arange(3))
    weights, _ = jax.vmap(method.update)(stacked, states)
    alone = jnp.stack([run(method, [step])[0] for step in steps])
    np.testing.assert_allclose(weights, alone, atol=tolerance(name, "float32"))


@pytest.mark.parametrize("scale", [0.0, 1e-6, 1e6])
def test_any_scale_of_losses_stays_on_the_simplex(name, scale):
    weights, state = run(
        WEIGHTINGS[name](ORDER), [statistics(seed=s, scale=scale) for s in range(3)]
    )
    assert (weights >= 0).all()
    assert_total(name, weights)
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(state))


@pytest.mark.parametrize(
    "make",
    [
        weighting.average,
        lambda: weighting.baselined_dro([0.5], 0.1),
        lambda: weighting.group_dro(0.1),
        lambda: weighting.interpolated(0.3),
        lambda: weighting.lookahead_exact(0.1),
        lambda: weighting.lookahead_online(0.1, 0.5),
        weighting.pcgrad,
        lambda: weighting.static_mixing([2.0]),
    ],
)
def test_a_single_task_has_all_the_weight(make):
    weights, _ = run(make(), [statistics(num_tasks=1)], 1)
    np.testing.assert_allclose(weights, [1.0], rtol=1e-6)


def test_works_sharded_over_devices(name):
    # One task to a device, the layout in which a wrong reduction over tasks would show.
    mesh = jax.make_mesh((N,), ("tasks",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("tasks"))
    current = statistics()
    sharded = current._replace(
        losses=jax.device_put(current.losses, rows),
        interaction=jax.device_put(current.interaction, rows),
    )
    assert len(sharded.losses.sharding.device_set) == N
    method = WEIGHTINGS[name](ORDER)
    weights, _ = run(method, [sharded], update=jax.jit(method.update))
    np.testing.assert_allclose(weights, run(method, [current])[0], atol=tolerance(name, "float32"))

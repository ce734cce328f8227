"""Losses of rows that belong to tasks: the means, and a step beside the form "tasks"."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from ldro_jax import ldro, transform, weighting

TASKS, EACH = 3, 8
# Float32, in another order.
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def by_hand(losses, ids, mask):
    """One task, row and token after the other."""
    totals, counts = np.zeros(TASKS), np.zeros(TASKS)
    for place in np.ndindex(losses.shape):
        if 0 <= ids[place] < TASKS:
            totals[ids[place]] += losses[place] * mask[place] if mask[place] else 0
            counts[ids[place]] += mask[place]
    return np.divide(totals, counts, out=np.zeros(TASKS), where=counts != 0), counts > 0


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(11,), (11, 4)])
@pytest.mark.parametrize("masked", [None, "rows", "bools", "numbers"])
@pytest.mark.parametrize("packed", [False, True])
def test_means_are_those_of_a_loop(dtype, shape, masked, packed):
    rng = np.random.default_rng(0)
    losses = rng.normal(size=shape)
    # Task 1 is absent, and some rows are of none.
    ids = rng.choice([0, 2, -1, 7], size=shape if packed else shape[:1])
    mask = {
        None: np.ones(shape),
        "rows": rng.integers(0, 2, shape[:1]).astype(bool),
        "bools": rng.integers(0, 2, shape).astype(bool),
        "numbers": rng.integers(0, 3, shape) / 2,
    }[masked]

    def whole(x):
        return np.broadcast_to(x.reshape(x.shape + (1,) * (len(shape) - x.ndim)), shape)

    expected, present = by_hand(losses, whole(ids), whole(mask))
    # What doesn't count may be anything.
    losses = np.where(whole(mask) != 0, losses, np.nan)
    with jax.enable_x64(dtype == "float64"):
        given = jnp.asarray(losses, dtype), jnp.asarray(ids)
        kept = None if masked is None else jnp.asarray(mask, dtype if masked == "numbers" else None)
        means = jax.jit(lambda *x: ldro.task_means(x[0], x[1], TASKS, x[2]))(*given, kept)
    assert means[0].dtype == dtype
    np.testing.assert_allclose(means[0], expected, rtol=1e-5)
    np.testing.assert_array_equal(means[1], present)
    assert not present[1]


def test_rows_with_a_label_of_each_task():
    losses, mask = jnp.array([[1.0, 2.0], [3.0, jnp.nan]]), jnp.array([[1, 1], [1, 0]], bool)
    means, present = ldro.task_means(losses, None, 2, mask)
    np.testing.assert_allclose(means, [2.0, 2.0])
    assert present.all()
    halves, counts = ldro.Rows(losses, None, mask).means(2, 2)
    np.testing.assert_allclose(halves, [1.0, 3.0, 2.0, 0.0])
    np.testing.assert_allclose(counts, [1, 1, 1, 0])


def test_halves_are_rows_in_turn_without_those_that_are_masked():
    losses, ids = jnp.arange(8.0), jnp.array([0, 1, 0, 0, 1, 0, 1, 0])
    mask = jnp.array([1, 1, 0, 1, 1, 1, 1, 1], bool)
    means, counts = ldro.Rows(losses, ids, mask).means(3, 2)
    # Of task 0 rows 0, 3, 5, 7; of task 1 rows 1, 4, 6; of task 2 none.
    np.testing.assert_allclose(means, [2.5, 5.0, 3.5, 4.0, 0.0, 0.0])
    np.testing.assert_allclose(counts, [2, 2, 2, 1, 0, 0])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ((jnp.arange(3), jnp.arange(3)), "must be floating-point numbers"),
        ((jnp.zeros(3), jnp.zeros(3)), "task_ids must be integers"),
        ((jnp.zeros(3), jnp.arange(2)), r"losses are \(3,\) and the task_ids \(2,\)"),
        ((jnp.zeros((3, 2)), jnp.zeros((3, 3), int)), "or the same as the losses"),
        ((jnp.zeros((3, 2)), None), r"must be \[rows, 3 tasks\], but their shape is \(3, 2\)"),
        ((jnp.zeros(3), jnp.arange(3), jnp.ones(2)), r"of the losses, \(3,\), or of the rows"),
    ],
)
def test_what_does_not_fit_is_refused(rows, message):
    losses, ids, *mask = rows
    with pytest.raises(ValueError, match=message):
        ldro.task_means(losses, ids, 3, *mask)


WEIGHTINGS = {
    "by signal": {},
    "L-DRO": {"lookahead_lr": 0.1, "weight_lr": 0.5},
    "smooth L-DRO by signal": {"lookahead_lr": 0.1, "temperature": 0.3, "signal_power": 1.0},
    "products": {"lookahead_lr": 0.1, "weight_lr": 0.5, "interaction": "products"},
}


def problem():
    """Three tasks as ``[task, row, ...]``, and the same rows mixed, with their tasks."""
    x = jax.random.normal(jax.random.key(0), (TASKS, EACH, 2))
    y = jnp.tanh(x @ jnp.array([1.0, -1.0])) + jnp.arange(3.0)[:, None] * x[..., 0]
    mixed = x.swapaxes(0, 1).reshape(-1, 2), y.T.reshape(-1)
    return (x, y), mixed, jnp.tile(jnp.arange(TASKS), EACH)


def losses_of(params, rows):
    return (rows[0] @ params["w"] + params["b"] - rows[1]) ** 2 + 0.1


def same(found, expected):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **CLOSE), found, expected)


@pytest.mark.parametrize("geometry", ["plain", "preconditioned", "trainable"])
@pytest.mark.parametrize("name", WEIGHTINGS)
def test_steps_are_those_of_tasks_by_themselves(name, geometry):
    tasks, mixed, ids = problem()
    params = {"w": jnp.array([0.3, -0.2]), "b": jnp.array(0.1)}
    more = {"trainable": {"w": True, "b": False}} if geometry == "trainable" else {}
    tx = ldro.transform(TASKS, **WEIGHTINGS[name], **more)
    given = {}
    if geometry == "preconditioned":
        given["preconditioner"] = jax.tree.map(lambda x: jnp.full_like(x, 4.0), params)

    def rows_fn(params):
        return ldro.Rows(losses_of(params, mixed), ids)

    @jax.jit
    def stepped(state):
        means = lambda p, rows: losses_of(p, rows).mean()  # noqa: E731
        one = tx.update(None, state, params, loss_fn=means, batch=tasks, **given)
        other = tx.update(None, state, params, losses_fn=rows_fn, **given)
        return one, other

    state = tx.init(params)
    expected, found = stepped(state)
    if name == "products":
        # Each form measures them on rows of its own choice.
        losses = ldro.losses(found[1]), ldro.losses(expected[1])
        return same(losses[0], losses[1])
    same(found, expected)
    if name != "by signal":
        assert np.ptp(ldro.weights(found[1])) > 1e-3


def test_what_is_known_of_a_task_with_one_row_or_none_stays():
    """One row has no halves; without a row a task keeps its loss, and adds no gradient."""
    _, mixed, ids = problem()
    params = {"w": jnp.zeros(2), "b": jnp.array(0.0)}
    tx = transform.weighted(weighting.signal(tilt=1.0), TASKS, interaction_interval=1)

    def step(state, ids):
        rows_fn = lambda p: ldro.Rows(losses_of(p, mixed), ids)  # noqa: E731
        return jax.jit(lambda s: tx.update(None, s, params, losses_fn=rows_fn))(state)

    _, before = step(tx.init(params), ids)
    # Task 1 has row 1 alone, and task 2 none.
    few = jnp.where((ids == 0) | (jnp.arange(ids.size) == 1), ids, -1)
    updates, after = step(before, few)
    kept = np.s_[1:, 1:]
    np.testing.assert_array_equal(before.interaction[kept], after.interaction[kept])
    np.testing.assert_array_equal(before.noise[1:], after.noise[1:])
    assert after.losses[2] == before.losses[2] and after.losses[1] != before.losses[1]
    gradients = jax.jacrev(lambda p: ldro.task_means(losses_of(p, mixed), few, TASKS)[0])(params)
    own = jax.tree.map(lambda g: after.weights[:2] @ g[:2], gradients)
    same(updates, own)


@pytest.mark.parametrize("kind", ["by signal", "L-DRO"])
def test_statistics_take_rows_as_well(kind):
    _, mixed, ids = problem()
    params = {"w": jnp.zeros(2), "b": jnp.array(0.0)}
    tx = ldro.transform(TASKS, **WEIGHTINGS[kind])
    strategy = "split" if kind == "by signal" else "auto"

    def rows_fn(params):
        return ldro.Rows(losses_of(params, mixed), jnp.where(ids == 1, -1, ids)), "besides"

    state = tx.init(params)
    expected = tx.update(None, state, params, losses_fn=lambda p: rows_fn(p)[0])
    given, aux = ldro.statistics(
        rows_fn, params, has_aux=True, num_tasks=TASKS, interaction=strategy
    )
    assert aux == "besides" and given["present"].tolist() == [True, False, True]
    same(tx.update(None, state, params, **given), expected)
    with pytest.raises(ValueError, match="needs num_tasks, and no batch"):
        ldro.statistics(rows_fn, params, has_aux=True)


def test_rows_at_features():
    _, (x, y), ids = problem()
    params = {"w": jnp.array([0.3, -0.2]), "b": jnp.array(0.1)}
    tx = ldro.transform(TASKS, lookahead_lr=0.1, weight_lr=0.5, interaction="features")

    def losses_at(params, features):
        return ldro.Rows((features + params["b"] - y) ** 2, ids)

    def features(params):
        return x @ params["w"]

    _, state = tx.update(None, tx.init(params), params, losses_fn=losses_at, features_fn=features)
    means = lambda z: ldro.task_means(losses_at(params, z).losses, ids, TASKS)[0]  # noqa: E731
    jacobian = jax.jacrev(means)(features(params))
    same(state.interaction, jacobian @ jacobian.T)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("name", ["by signal", "L-DRO"])
def test_rows_on_eight_devices_give_the_same(name, kind):
    if kind == AxisType.Explicit and jax.__version_info__ < (0, 7, 1):
        pytest.skip("explicit axes need jax 0.7.1")
    _, mixed, ids = problem()
    params = {"w": jnp.array([0.3, -0.2]), "b": jnp.array(0.1)}
    tx = ldro.transform(TASKS, **WEIGHTINGS[name])

    @jax.jit
    def step(params, state, mixed, ids):
        rows_fn = lambda p: ldro.Rows(losses_of(p, mixed), ids)  # noqa: E731
        return tx.update(None, state, params, losses_fn=rows_fn)

    given = params, tx.init(params), mixed, ids
    expected = step(*given)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    whole, split = (NamedSharding(mesh, P(*spec)) for spec in ((), ("data",)))
    places = (whole, whole, split, split)
    found = step(*(jax.device_put(x, at) for x, at in zip(given, places, strict=True)))
    same(found, expected)

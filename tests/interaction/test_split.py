"""The diagonal from two halves: what it is, and that it has no bias."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import oracles, problems

from ldro_jax import interaction, ldro, transform, weighting


@pytest.mark.parametrize("inner", ["auto", "vmap", "scan", "tiled", "columns"])
def test_the_diagonal_is_the_product_of_the_halves(inner, dtype):
    problem = problems.mlp(dtype)
    batch = jax.tree.map(lambda x: x if x.ndim == 1 else x[:, : x.shape[1] // 2 * 2], problem.batch)
    found = jax.jit(lambda p, b: interaction.split(inner).matrix(problem.loss_fn, p, b))(
        problem.params, batch
    )
    found, noise = found
    halves = [
        jax.tree.map(lambda x, h=half: x if x.ndim == 1 else x[:, h::2], batch) for half in (0, 1)
    ]
    flat = [oracles.task_gradients(problem.loss_fn, problem.params, half) for half in halves]
    mean = (flat[0] + flat[1]) / 2
    expected = mean @ mean.T
    np.fill_diagonal(expected, np.sum(flat[0] * flat[1], axis=1))
    tolerance = 1e-5 if dtype == "float32" else 1e-12
    np.testing.assert_allclose(found, expected, atol=tolerance * np.abs(expected).max())
    plain = oracles.gram(problem.loss_fn, problem.params, batch)
    assert not np.allclose(np.diag(found), np.diag(plain), rtol=1e-3)
    # The variance of a mean of two, from two: half the squared distance, and half of that.
    np.testing.assert_allclose(
        noise,
        np.sum((flat[0] - flat[1]) ** 2, axis=1) / 4,
        atol=tolerance * np.abs(expected).max(),
    )


def test_it_has_no_bias_where_the_plain_matrix_has():
    # Least squares in three dimensions, four of 512 examples at a time.
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(2, 512, 3)).astype("float32")
    slopes = np.array([[1.0, 0.5, 0.0], [0.8, 0.6, 0.3]], "float32")
    targets = np.einsum("ned,nd->ne", inputs, slopes) + 2 * rng.normal(size=(2, 512))
    data = (jnp.asarray(inputs), jnp.asarray(targets, "float32"))

    def loss_fn(params, batch):
        return jnp.mean((batch[0] @ params - batch[1]) ** 2)

    params, draws = jnp.zeros(3), 20_000
    full = interaction.vmap().matrix(loss_fn, params, data)
    rows = jnp.asarray(rng.integers(0, 512, size=(draws, 2, 4)))

    def measured(strategy):
        def one(rows):
            batch = jax.tree.map(lambda x: jax.vmap(lambda a, r: a[r])(x, rows), data)
            found = strategy.matrix(loss_fn, params, batch)
            return found.matrix if isinstance(found, interaction.Measured) else found

        found = np.asarray(jax.jit(jax.vmap(one))(rows), np.float64)
        return found.mean(axis=0), found.std(axis=0) / np.sqrt(draws)

    mean, error = measured(interaction.split("vmap"))
    assert (np.abs(mean - full) < 4 * error).all()
    mean, error = measured(interaction.vmap())
    assert (np.diag(mean - full) > 20 * np.diag(error)).all()
    off = ~np.eye(2, dtype=bool)
    assert (np.abs(mean - full) < 4 * error)[off].all()


def test_an_odd_number_of_examples_is_refused():
    batch = jnp.ones((2, 3, 1))
    with pytest.raises(ValueError, match="even number of examples .* but there are 3"):
        interaction.split().matrix(lambda p, x: jnp.sum(p * x), jnp.ones(1), batch)


@pytest.mark.parametrize("interval", [1, 2])
def test_a_transformation_takes_it_by_name(interval):
    batch = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 2)), "float32")

    def loss_fn(params, x):
        return jnp.mean((x @ params - 1) ** 2)

    made = [
        transform.weighted(
            weighting.lookahead_online(0.1, 0.1),
            3,
            interaction=name,
            interaction_interval=interval,
        )
        for name in ("split", "vmap")
    ]
    params, states = jnp.ones(2), []
    for tx in made:
        updates, state = jax.jit(tx.update, static_argnames="loss_fn")(
            None, tx.init(params), params, loss_fn=loss_fn, batch=batch
        )
        states.append((updates, ldro.interaction(state)))
    off = ~np.eye(3, dtype=bool)
    np.testing.assert_allclose(states[0][1][off], states[1][1][off], rtol=1e-5)
    assert not np.allclose(np.diag(states[0][1]), np.diag(states[1][1]))
    assert np.isfinite(states[0][0]).all()


def test_rows_that_fill_up_a_batch_lie_in_both_halves():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 3)), "float32")
    is_real = jnp.array([[True, True, False, False]] * 2)

    def loss_fn(params, batch):
        losses = jnp.where(batch[1], (batch[0] @ params - 1) ** 2, 0)
        return jnp.sum(losses) / jnp.sum(batch[1], dtype="float32")

    def measured(batch):
        return jax.jit(lambda: interaction.split("vmap").matrix(loss_fn, jnp.ones(3), batch))()

    found, expected = measured((x, is_real)), measured((x[:, :2], is_real[:, :2]))
    np.testing.assert_allclose(found.matrix, expected.matrix, rtol=1e-5)


def test_a_square_that_vanishes_without_its_noise_is_measured():
    # One half of the first task's rows has no gradient, as a hinge loss has it.
    x = jnp.array([[[0.0, 0.0], [1.0, 2.0]], [[1.0, 1.0], [2.0, 1.0]]])
    tx = transform.weighted(weighting.mgda(), 2, interaction="split")
    given = {"loss_fn": lambda p, x: jnp.mean(x @ p), "batch": x}
    _, state = problems.update(tx, None, tx.init(jnp.ones(2)), jnp.ones(2), **given)
    assert not state.unmeasured.any()
    np.testing.assert_allclose(state.interaction, [[0, 1.75], [1.75, 3]])
    np.testing.assert_allclose(state.noise, [5 / 4, 1 / 4])


@pytest.mark.parametrize("name", ["nash_mtl", "fairgrad", "pcgrad", "upgrad", "imtl_g", "config"])
def test_what_solves_with_the_diagonal_stays_within_bounds(name):
    # Gradients that are mostly noise: an unbiased square is often near zero or negative.
    rng = np.random.default_rng(1)
    true, method = 0.1 * rng.normal(size=(8, 100)), weighting.create(name)

    @jax.jit
    def weights(matrix):
        statistics = weighting.Statistics(jnp.int32(0), jnp.ones(8), matrix)
        return method.update(statistics, method.init(8, jnp.float32))[0]

    lengths = {"plain": [], "split": []}
    for _ in range(200):
        halves = true + np.sqrt(2) * rng.normal(size=(2, 8, 100))
        plain = halves.mean(axis=0) @ halves.mean(axis=0).T
        unbiased = plain.copy()
        np.fill_diagonal(unbiased, np.sum(halves[0] * halves[1], axis=1))
        for kind, matrix in (("plain", plain), ("split", unbiased)):
            w = np.asarray(weights(jnp.asarray(matrix, "float32")), np.float64)
            lengths[kind].append(np.sqrt(w @ plain @ w))
    # Thousands of times as long without a bound on the cosines.
    assert max(lengths["split"]) < 200 * np.median(lengths["plain"])


def mean_loss(params, batch):
    return jnp.mean((batch[0] @ params - batch[1]) ** 2)


@pytest.mark.parametrize(
    "form, preconditioner",
    [("tasks", None), ("tasks", jnp.array([0.5, 2.0])), ("stacked", jnp.array([0.5, 2.0]))],
)
def test_the_halves_give_the_training_gradient_too(form, preconditioner, dtype):
    rng = np.random.default_rng(0)
    batch = tuple(jnp.asarray(rng.normal(size=s), dtype) for s in ((3, 4, 2), (3, 4)))
    params = jnp.ones(2, dtype)
    if preconditioner is not None:
        preconditioner = preconditioner.astype(dtype)
    method = weighting.pike(0.5, noise_penalty=0.5)
    strategies = {"apart": interaction.split(), "fused": interaction.split(fused=True)}
    found = {}
    for name, strategy in strategies.items():
        tx = transform.weighted(method, 3, interaction=strategy)
        given = {"loss_fn": mean_loss, "batch": batch}
        updates = None
        if name == "fused" and form == "stacked":
            halves = jax.tree.map(
                lambda x: jnp.stack([x[:, ::2], x[:, 1::2]], 1).reshape(6, 2, *x.shape[2:]), batch
            )
            value_and_grad = jax.vmap(jax.value_and_grad(mean_loss), in_axes=(None, 0))
            losses, updates = value_and_grad(params, halves)
            given = {"losses": losses}
        update = jax.jit(functools.partial(tx.update, preconditioner=preconditioner, **given))
        state = tx.init(params)
        for _ in range(3):
            taken, state = update(updates, state, params)
        found[name] = taken, state
    tolerance = 1e-5 if dtype == "float32" else 1e-12
    assert_close = functools.partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance)
    jax.tree.map(assert_close, found["apart"], found["fused"])
    assert (found["fused"][1].noise > 0).all()


def test_only_what_holds_all_gradients_can_be_fused():
    with pytest.raises(ValueError, match="fused needs a strategy that holds the gradients"):
        interaction.split("tiled", fused=True)


def test_stacked_gradients_of_whole_tasks_have_no_halves():
    tx = transform.weighted(weighting.mgda(), 2, interaction="split")
    gradients = jnp.array([[1.0, 0.0], [0.5, 0.5]])
    _, state = tx.update(gradients, tx.init(jnp.ones(2)), jnp.ones(2), losses=jnp.ones(2))
    np.testing.assert_allclose(state.interaction, gradients @ gradients.T)


def noisy(params, task):
    """With one key, or one number, for all examples of a task."""
    scale = jax.random.uniform(task["key"]) if "key" in task else task["scale"]
    return scale * jnp.mean((task["x"] @ params) ** 2)


def test_a_key_of_each_task_is_that_of_both_halves():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 2)), jnp.float32)
    keys = jax.random.split(jax.random.key(3), 3)
    params, measure = jnp.ones(2), interaction.split("vmap").matrix
    scales = jax.vmap(jax.random.uniform)(keys)
    found = measure(noisy, params, {"x": x, "key": keys})
    expected = measure(noisy, params, {"x": x, "scale": scales})
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), found, expected)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("other", [(3, 2), (3, 6), (3, 2, 4)])
def test_what_has_no_examples_is_not_cut_in_half(other, fused):
    batch = {"x": jnp.ones((3, 4, 2)), "other": jnp.ones(other)}
    strategy = interaction.split("vmap", fused=fused)
    called = strategy.gradients if fused else strategy.matrix
    said = rf"batch\['other'\] {other[1]}, batch\['x'\] 4\. .*jax\.random\.key \(not of PRNGKey\)"
    with pytest.raises(ValueError, match=said):
        called(lambda params, task: jnp.mean(task["x"] @ params), jnp.ones(2), batch)

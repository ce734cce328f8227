"""A row has one dropout mask in a step, whatever pass looks at it, and with which other rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

tiny_t5x = pytest.importorskip(
    "helpers.tiny_t5x", reason="T5X is not installed (scripts/install_t5x.sh)", exc_type=ImportError
)
from ldro_jax.t5x import dropout  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
N, ROWS = tiny_t5x.N, tiny_t5x.ROWS
RATE = 0.3


def drawn(key, rows):
    """What modules do with keys: fold names in, split for layers, draw with and without rows."""
    key = jax.random.fold_in(key, jnp.uint32(7))
    first, second = jax.random.split(key)
    return (
        jax.random.bits(key, (rows, 3), jnp.uint32),
        jax.random.bernoulli(first, 0.5, (rows, 1, 40)),
        jax.random.uniform(second, (rows * 6, 2)).reshape(rows, 6, 2),
    )


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_what_a_row_draws_does_not_depend_on_the_others(impl):
    rng = jax.random.key(3, impl=impl)
    whole = drawn(dropout.row_keys(rng, jnp.arange(8)), 8)
    some = jnp.array([6, 1, 3])
    for found, expected in zip(drawn(dropout.row_keys(rng, some), 3), whole, strict=True):
        np.testing.assert_array_equal(found, expected[some])
    by_task = jnp.arange(8).reshape(4, 2).T
    mapped = jax.jit(jax.vmap(lambda rows: drawn(dropout.row_keys(rng, rows), 4)))(by_task)
    for found, expected in zip(mapped, whole, strict=True):
        np.testing.assert_array_equal(found, expected[by_task])
        # Rows differ, and so do steps.
        assert len(np.unique(np.asarray(expected).reshape(8, -1), axis=0)) == 8
    other = drawn(dropout.row_keys(jax.random.fold_in(rng, 1), jnp.arange(8)), 8)
    assert all((x != y).any() for x, y in zip(other, whole, strict=True))


def test_what_rows_draw_is_random():
    key = dropout.row_keys(jax.random.PRNGKey(0), jnp.arange(64))
    found = np.asarray(jax.random.bernoulli(key, 0.3, (64, 1000)), float)
    # 64,000 draws: a standard error of 0.0018; between rows one of 1 / sqrt(1000).
    assert abs(found.mean() - 0.3) < 5 * 0.0018
    assert np.abs(np.corrcoef(found) - np.eye(64)).max() < 5 / np.sqrt(1000)
    # What has no axis of rows is drawn all the same.
    assert np.isfinite(jax.random.normal(key, ())) and jax.random.uniform(key, (3,)).shape == (3,)


def row_by_row(a_model, params, batch):
    """Losses and gradients of the tasks in the first step, each row alone."""
    rng = jax.random.fold_in(jax.random.PRNGKey(1), 0)
    rows = tiny_t5x.tasks_lib.unmarked(batch)

    def task_loss(params, rows, numbers):
        losses = [
            a_model.row_losses(
                params,
                jax.tree.map(lambda x, i=i: x[i : i + 1], rows),
                dropout.row_keys(rng, numbers[i : i + 1]),
            )[0].sum()
            for i in range(ROWS // N)
        ]
        return sum(losses) / rows["decoder_loss_weights"].sum()

    both = jax.jit(jax.value_and_grad(task_loss))
    numbers = jnp.arange(ROWS)
    found = [
        both(params, jax.tree.map(lambda x, i=i: x[i::N], rows), numbers[i::N]) for i in range(N)
    ]
    losses, gradients = zip(*found, strict=True)
    return np.array(losses), np.stack([jax.flatten_util.ravel_pytree(g)[0] for g in gradients])


def test_losses_and_matrix_are_of_one_network_however_they_are_measured():
    batch = tiny_t5x.batch()
    ways = {
        "one pass": {},
        "lagged": {"lagged": True},
        "two passes": {"interaction": "tiled"},
        "microbatches": {"num_microbatches": 2},
    }
    losses = None
    for name, options in ways.items():
        options = dict(options)
        weighted = tiny_t5x.weighted(interaction_interval=1, lagged=options.pop("lagged", False))
        a_model = tiny_t5x.make_model(weighted, dropout_rate=RATE)
        a_trainer = tiny_t5x.make_trainer(a_model, **options)
        before = jax.tree.map(np.array, a_trainer.train_state.params)
        if losses is None:
            losses, flat = row_by_row(a_model, before, batch)
            without, _ = row_by_row(tiny_t5x.make_model(weighted), before, batch)
            assert np.abs(losses - without).min() > 1e-3
        tiny_t5x.train(a_trainer, [batch])
        state = a_trainer.train_state.param_states["weighting"]
        np.testing.assert_allclose(state.losses, losses, rtol=1e-5, err_msg=name)
        matrix = flat @ flat.T
        atol = 1e-5 * np.abs(matrix).max()
        np.testing.assert_allclose(state.interaction, matrix, rtol=2e-5, atol=atol, err_msg=name)
        moved, _ = jax.flatten_util.ravel_pytree(
            jax.tree.map(lambda x, y: x - y, before, a_trainer.train_state.params)
        )
        step = tiny_t5x.LEARNING_RATE * np.asarray(state.weights) @ flat
        np.testing.assert_allclose(moved, step, atol=1e-5 * np.abs(step).max(), err_msg=name)

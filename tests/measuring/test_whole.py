"""All tasks in one pass: losses, gradient and matrix are those of a ``jax.grad`` for each task."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldro_jax import interaction
from ldro_jax.interaction import Measured
from ldro_jax.measuring import Batch, Plan, RowLosses, measure

N, B, SIZE = 3, 12, 4
RNG = np.random.default_rng(0)
PARAMS = RNG.normal(size=(SIZE, N)).astype(np.float32)
WEIGHTS = np.float32([0.2, 0.3, 0.5])
ROWS = {
    "inputs": RNG.normal(size=(B, SIZE)).astype(np.float32),
    "targets": RNG.normal(size=(B, N)).astype(np.float32),
    "labelled": RNG.random((B, N)) < 0.7,
}
# Float32, in another order.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def losses_of(params, rows):
    errors = (rows["inputs"] @ params - rows["targets"]) ** 2
    labelled = rows["labelled"]
    return RowLosses(jnp.where(labelled, errors, 0), labelled.astype(errors.dtype))


def of_one_table(params, tables):
    """The first two tasks in one table, the third in another."""
    found = []
    for name, has in {"first": [True, True, False], "second": [False, False, True]}.items():
        if name in tables:
            rows = tables[name]
            found.append(losses_of(params, {**rows, "labelled": rows["labelled"] & np.array(has)}))
    return RowLosses(*(jnp.concatenate([x[i] for x in found]) for i in (0, 1)))


def mean_loss(params, task, chosen):
    errors = (ROWS["inputs"] @ params - ROWS["targets"])[:, task] ** 2
    return jnp.sum(jnp.where(chosen, errors, 0)) / np.float32(np.sum(chosen))


def gradient(task, chosen):
    return np.ravel(jax.grad(mean_loss)(PARAMS, task, chosen))


@pytest.mark.parametrize("microbatches", [1, 3])
@pytest.mark.parametrize("strategy", ["auto", "split"])
def test_a_pass_over_labels_of_several_tasks(strategy, microbatches):
    plan = Plan(N, interaction.get(strategy), 1, microbatches=microbatches, whole=True, owned=False)

    @jax.jit
    def measured(params):
        found = measure(plan, losses_of, params, Batch(ROWS))
        return found.losses, found.pullback(WEIGHTS), found.interaction(), found.counts

    losses, weighted, matrix, counts = measured(PARAMS)
    masks = ROWS["labelled"].T
    gradients = np.stack([gradient(i, masks[i]) for i in range(N)])
    np.testing.assert_allclose(losses, [mean_loss(PARAMS, i, masks[i]) for i in range(N)], **CLOSE)
    np.testing.assert_allclose(np.ravel(weighted), WEIGHTS @ gradients, **CLOSE)
    np.testing.assert_array_equal(counts, masks.sum(axis=1))
    if strategy == "auto":
        np.testing.assert_allclose(matrix, gradients @ gradients.T, **CLOSE)
        return
    assert isinstance(matrix, Measured)
    for i, mask in enumerate(masks):
        # Every other row that has the label.
        halves = [mask & ((np.cumsum(mask) - 1) % 2 == half) for half in (0, 1)]
        first, second = (gradient(i, half) for half in halves)
        np.testing.assert_allclose(matrix.matrix[i, i], first @ second, rtol=1e-4, atol=1e-5)


def test_a_table_is_pulled_back_alone():
    plan = Plan(
        N, interaction.get("auto"), 1, whole=True, owned=False, tables={"first": 2, "second": 1}
    )
    tables = {"first": ROWS, "second": ROWS}
    found = jax.jit(
        lambda params: measure(plan, of_one_table, params, Batch(tables)).interaction()
    )(PARAMS)
    gradients = np.stack([gradient(i, mask) for i, mask in enumerate(ROWS["labelled"].T)])
    np.testing.assert_allclose(found, gradients @ gradients.T, **CLOSE)


def test_of_rows_without_a_label_there_is_no_gradient():
    # Not one of zero, which would be taken for that of a converged task.
    plan = Plan(N, interaction.get("auto"), 1, rows=4, whole=True, owned=False)
    other = jax.tree.map(lambda x: x[:4], ROWS)
    other["labelled"] = np.array([[True, True, False]] * 4)
    found = jax.jit(
        lambda params: measure(plan, losses_of, params, Batch(ROWS, measured=other)).interaction()
    )(PARAMS)
    assert np.isnan(found[2]).all() and np.isnan(found[:, 2]).all()
    assert np.isfinite(found[:2, :2]).all()


def test_rows_of_one_task_each_that_only_fill_up_count_nowhere():
    plan = Plan(N, interaction.get("auto"), 1, rows=2, whole=True)
    rows = {"inputs": ROWS["inputs"], "targets": ROWS["targets"][:, 0]}

    def losses(params, rows):
        return RowLosses((rows["inputs"] @ params[:, 0] - rows["targets"]) ** 2)

    # Two rows of each task and two more, so that four devices hold as many.
    other = jax.tree.map(lambda x: x[:8], rows)
    batch = Batch(rows, jnp.arange(B, dtype=jnp.int32) % N, measured=other)
    found = jax.jit(lambda params: measure(plan, losses, params, batch).interaction())(PARAMS)
    gradients = []
    for task in range(N):
        x, y = ROWS["inputs"][[task, task + N]], ROWS["targets"][[task, task + N], 0]
        gradients.append(2 * (x @ PARAMS[:, 0] - y) @ x / 2)
    np.testing.assert_allclose(found, np.array(gradients) @ np.array(gradients).T, **CLOSE)


@pytest.mark.parametrize("rows", [None, 6])
def test_products_of_labels_come_from_two_parts_of_the_rows(rows):
    plan = Plan(
        N, interaction.products(apart=True, share=0.5), 1, rows=rows, whole=True, owned=False
    )

    @jax.jit
    def asked(params, vector):
        return measure(plan, losses_of, params, Batch(ROWS)).interaction().times(vector)

    product, there = asked(PARAMS, WEIGHTS)
    # Six of twelve rows, three of each half, all over the batch.
    first, second = (ROWS["labelled"].T & np.isin(range(B), range(n, B, 4)) for n in (0, 2))
    assert there.tolist() == second.any(axis=1).tolist()
    assert len(np.flatnonzero(there)) >= 2
    known = np.flatnonzero(there)
    left, right = (
        np.stack([gradient(i, half[i]) for i in tasks if half[i].any()])
        for half, tasks in ((second, known), (first, range(N)))
    )
    weights = WEIGHTS[first.any(axis=1)]
    np.testing.assert_allclose(product[known], left @ right.T @ weights, **CLOSE)


def test_products_of_rows_that_were_drawn_apart_take_all_of_them():
    plan = Plan(N, interaction.products(apart=True), 1, rows=4, whole=True, owned=False)
    other = jax.tree.map(lambda x: x[:4], ROWS)
    other["labelled"] = np.array([[True, True, False]] * 4)
    product, there = jax.jit(
        lambda p: (
            measure(plan, losses_of, p, Batch(ROWS, measured=other)).interaction().times(WEIGHTS)
        )
    )(PARAMS)
    first, second = (np.isin(range(B), rows) for rows in ([0, 2], [1, 3]))
    left, right = (np.stack([gradient(i, half) for i in (0, 1)]) for half in (second, first))
    np.testing.assert_allclose(product[:2], left @ right.T @ WEIGHTS[:2], **CLOSE)
    np.testing.assert_array_equal(there, [True, True, False])


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("whole", [False, True])
def test_products_of_rows_of_one_task_each(whole, apart):
    plan = Plan(N, interaction.products(apart=apart, share=1.0), 1, whole=whole)
    rows = {"inputs": ROWS["inputs"], "targets": ROWS["targets"][:, 0]}

    def losses(params, rows):
        return RowLosses((rows["inputs"] @ params[:, 0] - rows["targets"]) ** 2)

    batch = Batch(jax.tree.map(jnp.asarray, rows), jnp.arange(B, dtype=jnp.int32) % N)
    product, _ = jax.jit(lambda p: measure(plan, losses, p, batch).interaction().times(WEIGHTS))(
        PARAMS
    )
    halves = []
    for half in (0, 1):
        taken = [np.arange(task, B, N)[half::2] for task in range(N)]
        if not apart:
            taken = [np.arange(task, B, N) for task in range(N)]
        inputs, targets = ROWS["inputs"], ROWS["targets"][:, 0]
        halves.append(
            [2 * (inputs[r] @ PARAMS[:, 0] - targets[r]) @ inputs[r] / len(r) for r in taken]
        )
    first, second = map(np.array, halves)
    np.testing.assert_allclose(product, second @ first.T @ WEIGHTS, **CLOSE)

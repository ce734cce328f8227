"""What is measured of rows with counts, excess and more besides is NumPy's, whichever the way."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldro_jax import interaction
from ldro_jax.interaction import Pulled
from ldro_jax.measuring import Batch, Plan, RowLosses, Way, measure

N, B, SIZE = 3, 12, 4
RNG = np.random.default_rng(0)
PARAMS = RNG.normal(size=SIZE).astype(np.float32)
WEIGHTS = np.float32([0.5, 0.2, 0.7])
ROWS = {
    "inputs": RNG.normal(size=(B, SIZE)).astype(np.float32),
    "tokens": RNG.integers(1, 5, B).astype(np.float32),
}
IN_TURN = np.arange(B, dtype=np.int32) % N
# Float32, in another order.
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def losses_of(params, rows):
    """Of each row its tokens times the square of a number."""
    numbers = rows["inputs"] @ params
    return RowLosses(
        rows["tokens"] * numbers**2,
        rows["tokens"],
        excess=numbers,
        auxiliary={"sum": numbers.sum(), "rows": numbers.size},
    )


def expected(tasks, by):
    """Losses, task gradients, tokens and excess; a task counts by so many tokens in a gradient."""
    numbers, tokens = ROWS["inputs"] @ PARAMS, ROWS["tokens"]
    of_task = np.float32(tasks[None] == np.arange(N)[:, None])
    counts, rows = of_task @ tokens, of_task.sum(axis=1)
    gradients = (of_task * (2 * tokens * numbers)) @ ROWS["inputs"]
    losses = of_task @ (tokens * numbers**2) / np.maximum(counts, 1)
    excess = of_task @ numbers / np.maximum(rows, 1)
    return losses, gradients / np.maximum(counts if by is None else by, 1)[:, None], counts, excess


WAYS = {
    Way.APART: {"interval": 2},
    Way.ONE_PASS: {},
    Way.LAGGED: {"lagged": True, "strategy": interaction.layerwise()},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("given", [False, True], ids=["in turn", "tasks are given"])
def test_every_way_measures_the_same(way, given):
    plan = Plan(**{"num_tasks": N, "strategy": interaction.vmap(), "interval": 1} | WAYS[way])
    batch = Batch(jax.tree.map(jnp.asarray, ROWS), jnp.asarray(IN_TURN) if given else None)
    assert plan.way(batch) == way

    @jax.jit
    def measured(params):
        found = measure(plan, losses_of, params, batch)
        if found.gradients is not None:
            gradient = jnp.tensordot(WEIGHTS, found.gradients, 1)
            matrix = interaction.gram(found.gradients)
        else:
            gradient = found.pullback(jnp.asarray(WEIGHTS))
            if isinstance(gradient, Pulled):
                gradient, matrix = gradient
            else:
                matrix = found.interaction()
        parts = [found.losses, found.counts, found.excess, found.present, found.auxiliary]
        return gradient, matrix, parts

    gradient, matrix, parts = measured(PARAMS)
    losses, gradients, counts, excess = expected(IN_TURN, None)
    np.testing.assert_allclose(gradient, WEIGHTS @ gradients, **CLOSE)
    np.testing.assert_allclose(matrix, gradients @ gradients.T, **CLOSE)
    for ours, theirs in zip(parts, (losses, counts, excess, np.full(N, True)), strict=False):
        np.testing.assert_allclose(ours, theirs, **CLOSE)
    # Stacked over the parts that the rows were taken in.
    np.testing.assert_allclose(parts[-1]["sum"].sum(), (ROWS["inputs"] @ PARAMS).sum(), **CLOSE)
    assert parts[-1]["rows"].sum() == B and len(parts[-1]["rows"]) == (1 if way == Way.APART else N)


@pytest.mark.parametrize("microbatches", [1, 4])
def test_random_rows_count_by_the_rows_expected(microbatches):
    # Task 1 is absent, and of the others come more or fewer rows than on average.
    tasks, rows = np.int32([0, 0, 2, 0, 2, 2, 2, 0, 2, 2, 2, 2]), np.float32([3, 4, 5])
    plan = Plan(N, interaction.vmap(), microbatches=microbatches)
    batch = Batch(jax.tree.map(jnp.asarray, ROWS), jnp.asarray(tasks), jnp.asarray(rows))

    @jax.jit
    def measured(params):
        found = measure(plan, losses_of, params, batch)
        return (
            found.pullback(jnp.asarray(WEIGHTS)),
            [found.losses, found.counts, found.excess],
            found.present,
        )

    gradient, parts, present = measured(PARAMS)
    drawn = np.bincount(tasks, minlength=N)
    _, _, counts, _ = expected(tasks, None)
    losses, gradients, counts, excess = expected(tasks, counts * rows / np.maximum(drawn, 1))
    np.testing.assert_allclose(gradient, WEIGHTS @ gradients, **CLOSE)
    for ours, theirs in zip(parts, (losses, counts, excess), strict=True):
        np.testing.assert_allclose(ours, theirs, **CLOSE)
    np.testing.assert_array_equal(present, [True, False, True])


@pytest.mark.parametrize("counted", ["rows", "tokens"])
def test_one_tasks_loss_that_is_not_a_number_stays_its_own(counted, dtype):
    values, tasks = jnp.array([1.0, jnp.nan, 3.0, 9.0], dtype), jnp.int32([0, 1, 0, 3])
    plan = Plan(4, interaction.vmap())

    def of_rows(params, rows):
        return RowLosses(rows * params, None if counted == "rows" else jnp.ones_like(rows))

    found = measure(plan, of_rows, jnp.ones([], dtype), Batch(values, tasks))
    np.testing.assert_array_equal(found.losses, [2, np.nan, 0, 9])
    np.testing.assert_array_equal(found.present, [True, True, False, True])
    assert found.losses.dtype == dtype


def test_a_task_with_too_few_rows_to_halve_is_not_measured():
    # Not with a half that has no gradient, as if all of it were noise. Task 1 has one row.
    plan, tasks = Plan(N, interaction.split("vmap"), 2), np.int32([0, 0, 1, 2, 2, 2])
    places = jnp.int32([[0, 1, -1, -1], [2, -1, -1, -1], [3, 4, 5, -1]])
    rows = jax.tree.map(lambda x: jnp.asarray(x[:6]), ROWS)

    @jax.jit
    def measured(params):
        batch = Batch(rows, jnp.asarray(tasks), by_task=places)
        return measure(plan, losses_of, params, batch).interaction()

    matrix, noise = measured(PARAMS)
    assert np.isnan(matrix[1]).all() and np.isnan(matrix[:, 1]).all()
    numbers = ROWS["inputs"][:6] @ PARAMS
    tokens = ROWS["tokens"][:6, None]
    each = 2 * tokens * numbers[:, None] * ROWS["inputs"][:6]

    def half(*which):
        return each[list(which)].sum(axis=0) / tokens[list(which)].sum()

    (a, b), (c, d) = (half(0), half(1)), (half(3, 5), half(4))
    expected = [[a @ b, (a + b) @ (c + d) / 4], [(a + b) @ (c + d) / 4, c @ d]]
    np.testing.assert_allclose(matrix[::2, ::2], expected, **CLOSE)
    np.testing.assert_allclose(noise[0], np.sum((a - b) ** 2) / 4, **CLOSE)


def test_microbatches_divide_the_rows():
    plan = dataclasses.replace(Plan(N, interaction.vmap()), microbatches=5)
    with pytest.raises(ValueError, match="a multiple of the 5 microbatches, but it is 12"):
        measure(plan, losses_of, jnp.asarray(PARAMS), Batch(jax.tree.map(jnp.asarray, ROWS)))

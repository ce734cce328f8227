"""Interactions that can't be measured: what is finite is taken, and the rest is counted by task."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import oracles, problems

from ldro_jax import interaction, ldro, transform, weighting
from ldro_jax.interaction import base

N = 4
# Task gradients whose products are exact, and one that is orthogonal to the others.
GRADIENTS = np.array([[1, 2, 0], [2, 1, 0], [1, -1, 0], [0, 0, 4]], float)


def scales(dtype):
    """Norms whose squares over- and underflow, while their products with others don't."""
    limits = np.finfo(dtype)
    return float(limits.max) ** 0.55, float(limits.tiny) ** 0.55


def loss_fn(params, task):
    # Linear, so that the gradient of a task is what stands in the batch.
    return jnp.mean(task["gradient"] @ params)


def batch(gradients, dtype):
    return {"gradient": jnp.asarray(gradients, dtype)[:, None]}


@functools.cache
def make(interval=2):
    return ldro.transform(N, lookahead_lr=0.1, weight_lr=0.5, interaction_interval=interval)


@functools.cache
def compiled(tx, form, interaction_fn):
    """A jitted step, compiled once for all tests of a transformation and a form."""

    @jax.jit
    def update(state, params, batch, extra):
        problem = problems.Problem(loss_fn, params, batch)
        updates, arguments = problems.form_arguments(form, problem, params)
        if interaction_fn is not None:
            arguments["interaction_fn"] = interaction_fn
        return tx.update(updates, state, params, **arguments, **extra)

    return update


def step(tx, state, gradients, dtype, form="tasks", interaction_fn=None, **extra):
    update = compiled(tx, form, interaction_fn)
    return update(state, jnp.zeros(3, dtype), batch(gradients, dtype), extra)


def sevens(tx, dtype):
    """A state whose last interactions can be told from all measured ones."""
    return tx.init(jnp.zeros(3, dtype))._replace(interaction=jnp.full((N, N), 7, dtype))


def scaled(task, factor):
    gradients = GRADIENTS.copy()
    gradients[task] *= factor
    return gradients


FORMS = [("tasks", 1), ("tasks", 2), ("layout", 2), ("stacked", 1), ("stacked", 2)]


@pytest.mark.parametrize("form, interval", FORMS)
def test_a_norm_that_overflows(form, interval, dtype):
    large, _ = scales(dtype)
    tx = make(interval)
    gradients = scaled(1, large)
    _, state = step(tx, sevens(tx, dtype), gradients, dtype, form)
    np.testing.assert_array_equal(state.unmeasured, [0, 1, 0, 0])
    with np.errstate(over="ignore"):
        expected = gradients @ gradients.T
    expected[1, 1] = 7
    np.testing.assert_allclose(state.interaction, expected, rtol=1e-6)
    assert jnp.isfinite(state.weights).all() and not state.nonfinite.any()


@pytest.mark.parametrize("form, interval", FORMS)
def test_a_norm_that_underflows(form, interval, dtype):
    _, small = scales(dtype)
    tx = make(interval)
    _, state = step(tx, sevens(tx, dtype), scaled(1, small), dtype, form)
    np.testing.assert_array_equal(state.unmeasured, [0, 1, 0, 0])
    expected = GRADIENTS @ GRADIENTS.T
    expected[1, :] = expected[:, 1] = 7
    np.testing.assert_allclose(state.interaction, expected, rtol=1e-6)


@pytest.mark.parametrize("form, interval", FORMS)
def test_a_converged_task_is_measured(form, interval, dtype):
    tx = make(interval)
    gradients = scaled(1, 0.0)
    _, state = step(tx, sevens(tx, dtype), gradients, dtype, form)
    np.testing.assert_array_equal(state.unmeasured, 0)
    np.testing.assert_allclose(state.interaction, gradients @ gradients.T, rtol=1e-6)


@pytest.mark.parametrize("form, interval", FORMS)
def test_all_norms_underflow_or_all_have_converged(form, interval, dtype):
    tx = make(interval)
    for factor, counts, kept in [(np.finfo(dtype).tiny ** 0.7, 1, True), (0.0, 0, False)]:
        before = sevens(tx, dtype)
        _, state = step(tx, before, GRADIENTS * float(factor), dtype, form)
        np.testing.assert_array_equal(state.unmeasured, counts)
        np.testing.assert_array_equal(state.interaction, 7 if kept else 0)


def test_a_norm_that_overflows_where_all_others_have_converged(dtype):
    large, _ = scales(dtype)
    tx = make()
    gradients = np.zeros_like(GRADIENTS)
    gradients[1] = large
    _, state = step(tx, tx.init(jnp.zeros(3, dtype)), gradients, dtype)
    np.testing.assert_array_equal(state.unmeasured, [0, 1, 0, 0])


def test_all_norms_underflow_in_one_run_of_a_sweep(dtype):
    tx = make()
    tiny = float(np.finfo(dtype).tiny ** 0.7)
    gradients = jnp.stack([batch(GRADIENTS * f, dtype)["gradient"] for f in (1.0, tiny, 0.0)])

    def one(gradient):
        state = sevens(tx, dtype)
        params = jnp.zeros(3, dtype)
        arguments = {"loss_fn": loss_fn, "batch": {"gradient": gradient}}
        return tx.update(None, state, params, **arguments)[1].unmeasured

    counts = jax.jit(jax.vmap(one))(gradients)
    np.testing.assert_array_equal(counts, [[0] * N, [1] * N, [0] * N])


@pytest.mark.parametrize("form, interval", [("tasks", 1), ("tasks", 2), ("stacked", 2)])
def test_an_absent_task_is_not_counted(form, interval, dtype):
    large, _ = scales(dtype)
    tx = make(interval)
    present = jnp.arange(N) != 1
    gradients = scaled(1, large)
    _, state = step(tx, sevens(tx, dtype), gradients, dtype, form, present=present)
    np.testing.assert_array_equal(state.unmeasured, 0)


def test_counts_only_when_due(dtype):
    large, _ = scales(dtype)
    tx = make(3)
    state = tx.init(jnp.zeros(3, dtype))
    counts = []
    for _ in range(5):
        _, state = step(tx, state, scaled(1, large), dtype)
        counts.append(int(state.unmeasured[1]))
    assert counts == [1, 1, 1, 2, 2]


@pytest.mark.parametrize("interval", [1, 2])
def test_one_bad_interaction_batch_leaves_the_other_tasks_alone(interval):
    problem = problems.mlp()
    tx = ldro.transform(5, lookahead_lr=0.1, weight_lr=0.5, interaction_interval=interval)
    state = tx.init(problem.params)._replace(interaction=jnp.full((5, 5), 7.0))
    other = problem.batch | {"y": problem.batch["y"].at[2, 0].set(jnp.nan)}
    arguments = {"loss_fn": problem.loss_fn, "batch": problem.batch, "interaction_batch": other}
    updates, after = jax.jit(lambda s: tx.update(None, s, problem.params, **arguments))(state)
    expected = np.array(interaction.get("vmap").matrix(*problem))
    expected[2, :] = expected[:, 2] = 7
    np.testing.assert_allclose(after.interaction, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(after.unmeasured, [0, 0, 1, 0, 0])
    # The losses were fine, and so the step is taken.
    assert not after.nonfinite.any() and jnp.isfinite(after.weights).all()
    assert any((leaf != 0).any() for leaf in jax.tree.leaves(updates))


def test_a_given_matrix_is_taken_as_it_is():
    # Zeros that its own function gives are its own business, whatever the gradient is.
    tx = make(1)
    matrix = jnp.zeros((N, N))
    _, state = step(
        tx,
        tx.init(jnp.zeros(3)),
        GRADIENTS,
        jnp.float32,
        "layout",
        interaction_fn=lambda params: matrix,
    )
    np.testing.assert_array_equal(state.unmeasured, 0)


def test_a_product_of_finite_norms_that_is_not_finite():
    last = jnp.full((3, 3), 7.0)
    measured = jnp.array([[1.0, 2.0, 3.0], [2.0, 5.0, jnp.inf], [3.0, jnp.nan, 6.0]])
    matrix, unmeasured = base.refreshed(last, measured, jnp.ones(3, bool))
    np.testing.assert_array_equal(matrix, [[1, 2, 3], [2, 5, 7], [3, 7, 6]])
    np.testing.assert_array_equal(unmeasured, [False, True, True])


def test_what_is_not_finite_beside_a_converged_task_is_the_other_ones():
    # Zero times infinity.
    measured = jnp.array([[0.0, jnp.nan], [jnp.nan, jnp.inf]])
    matrix, unmeasured = base.refreshed(jnp.full((2, 2), 7.0), measured, jnp.ones(2, bool))
    np.testing.assert_array_equal(matrix, [[0, 7], [7, 7]])
    np.testing.assert_array_equal(unmeasured, [False, True])


def test_weightings_without_interactions_count_nothing():
    tx = transform.weighted(weighting.group_dro(0.1), N)
    _, state = step(tx, tx.init(jnp.zeros(3)), GRADIENTS * 1e-30, jnp.float32)
    np.testing.assert_array_equal(state.unmeasured, 0)


def with_rows(problem, method, *, interval=1, options=None):
    """A jitted step in the form "forward", whose interaction_fn looks at the batch alone."""
    tx = transform.weighted(method, 5, interaction_interval=interval, **(options or {}))

    @jax.jit
    def step(state, present):
        def losses_fn(params):
            # What a mean over no rows comes to, where it is kept from being NaN.
            return jnp.where(present, problem.losses(params), 0)

        losses, pull = jax.vjp(losses_fn, problem.params)
        return tx.update(
            None,
            state,
            problem.params,
            losses=losses,
            pullback=lambda weights: pull(weights)[0],
            interaction_fn=lambda: interaction.jacobian_gram(losses_fn, problem.params),
            present=present,
        )[1]

    return tx, step


ALL, WITHOUT = np.ones(5, bool), np.arange(5) != 2


def test_a_task_without_rows_in_a_batch_keeps_what_an_interaction_fn_measured_before():
    problem = problems.mlp()
    tx, step = with_rows(problem, weighting.mgda())
    first = step(tx.init(problem.params), ALL)
    second = step(first, WITHOUT)
    np.testing.assert_array_equal(second.interaction, first.interaction)
    np.testing.assert_array_equal(second.unmeasured, 0)
    np.testing.assert_allclose(second.weights, first.weights, atol=1e-6)


def test_a_task_that_comes_between_two_measurements_has_the_mean_weight_until_the_next():
    problem = problems.mlp()
    tx, step = with_rows(problem, weighting.mgda(), interval=3, options={"total": 1.0})
    state = step(tx.init(problem.params), WITHOUT)
    np.testing.assert_array_equal(state.measured, WITHOUT)
    others = state.weights
    assert others[2] == 0 and others.max() < 0.9
    state = step(state, ALL)
    np.testing.assert_array_equal(state.measured, WITHOUT)
    share = (others > 0).sum() / ((others > 0).sum() + 1)
    np.testing.assert_allclose(state.weights[WITHOUT], share * others[WITHOUT], rtol=1e-5)
    np.testing.assert_allclose(jnp.abs(state.weights).sum(), 1, rtol=1e-5)
    # It keeps a share for sampling by weights where it is absent again.
    assert step(state, WITHOUT).weights[2] > 0
    state = step(step(state, ALL), ALL)
    assert state.measured.all()
    np.testing.assert_allclose(state.weights, step(tx.init(problem.params), ALL).weights, atol=1e-5)


def test_what_is_weighed_before_anything_is_measured_leaves_no_trace():
    # With lagged, the first step has no matrix.
    problem = problems.mlp()
    method = weighting.smoothed(weighting.lookahead_online(0.1, 0.5), 0.9)
    tx = transform.weighted(method, 5, interaction_interval=1, lagged=True)
    (_, first), (_, second) = problems.train(tx, problem, 2)
    assert not first.weighting.total.any() and first.interaction.any()
    # The second step's mean is of the first matrix alone.
    inner = second.weighting
    np.testing.assert_allclose(inner.interaction / inner.total[0], first.interaction, rtol=1e-5)


def test_diagnostics_are_of_the_tasks_that_were_measured():
    problem = problems.mlp()
    tx, step = with_rows(problem, weighting.mgda())
    found = ldro.diagnose(step(tx.init(problem.params), WITHOUT))
    matrix = oracles.gram(*problem)[np.ix_(WITHOUT, WITHOUT)]
    lengths = np.sqrt(np.diagonal(matrix))
    cosines = (matrix / lengths / lengths[:, None])[~np.eye(4, dtype=bool)]
    np.testing.assert_allclose(found["similarity"], cosines.mean(), rtol=1e-4)
    np.testing.assert_allclose(found["conflicts"], (cosines < 0).mean(), rtol=1e-6)

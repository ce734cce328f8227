"""Dtypes: weights are never rounded, and what can't be trained on is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import problems

from ldro_jax import interaction, ldro, transform, weighting

HALF = [jnp.bfloat16, jnp.float16]


def in_losses_dtype(problem, dtype):
    """The same problem with losses of another dtype."""
    return problem._replace(loss_fn=lambda p, task: problem.loss_fn(p, task).astype(dtype))


def one_step(tx, problem, form, params=None, **extra):
    params = problem.params if params is None else params
    updates, arguments = problems.form_arguments(form, problem, params)
    return problems.update(tx, updates, tx.init(params), params, **(arguments | extra))


@pytest.mark.parametrize("form", problems.FORMS)
@pytest.mark.parametrize("losses_dtype", [jnp.int32, jnp.bool_, jnp.complex64])
def test_losses_that_are_not_floating_point_are_refused(form, losses_dtype):
    problem = problems.mlp()
    broken = in_losses_dtype(problem, losses_dtype)
    updates, arguments = problems.form_arguments(form, problem, problem.params)
    if form in ("tasks", "layout"):
        _, arguments = problems.form_arguments(form, broken, problem.params)
    else:
        arguments["losses"] = broken.losses(problem.params)
    tx = transform.weighted(weighting.group_dro(0.1), 5)
    message = f"losses must be real floating-point numbers.* {jnp.dtype(losses_dtype)}"
    with pytest.raises(ValueError, match=message):
        tx.update(updates, tx.init(problem.params), problem.params, **arguments)


def ulps(found, exact):
    """How many numbers of its dtype lie between `found` and the rounded exact result, at most."""

    def place(x):
        bits = np.asarray(x).view(np.int16).astype(int)
        return np.where(bits < 0, -(bits & 0x7FFF), bits)

    return np.abs(place(found) - place(exact.astype(np.asarray(found).dtype))).max()


@pytest.mark.parametrize("gradient_dtype", HALF)
@pytest.mark.parametrize("losses_dtype", [*HALF, jnp.float32])
def test_half_precision_gradients_are_summed_with_unrounded_weights(gradient_dtype, losses_dtype):
    generator = np.random.default_rng(0)
    gradients = jnp.asarray(generator.standard_normal((5, 40, 30)), gradient_dtype)
    losses = jnp.asarray(generator.uniform(1, 2, 5), losses_dtype)
    params = jnp.zeros((40, 30), gradient_dtype)
    tx = transform.weighted(weighting.group_dro(1.0), 5)
    update, state = jax.jit(lambda g: tx.update(g, tx.init(params), params, losses=losses))(
        gradients
    )
    assert update.dtype == gradient_dtype and state.weights.dtype == jnp.float32
    exact = np.einsum(
        "n,nij->ij", np.asarray(state.weights, np.float64), np.asarray(gradients, np.float64)
    )
    # Cancelling terms leave a float32 rounding error, far below half an ulp of what remains.
    assert ulps(update, exact) <= 1


@pytest.mark.parametrize("half", HALF)
def test_the_fused_step_does_not_round_the_weights(half):
    problem = problems.mlp()
    cast = functools.partial(jax.tree.map, lambda x: x.astype(half))
    half_problem = problem._replace(
        params=cast(problem.params),
        batch=problem.batch | cast({k: problem.batch[k] for k in "xy"}),
    )
    strategy = interaction.get("vmap")
    tx = ldro.transform(
        5, lookahead_lr=0.1, weight_lr=0.5, interaction_interval=1, interaction=strategy
    )
    # Operation by operation, as the gradients: a program may round elsewhere.
    given = {"loss_fn": half_problem.loss_fn, "batch": half_problem.batch}
    params = half_problem.params
    update, state = tx.update(None, tx.init(params), params, **given)
    _, gradients = strategy.gradients(problem.loss_fn, half_problem.params, half_problem.batch)
    weights = np.asarray(ldro.weights(state), np.float64)
    for name, gradient in gradients.items():
        exact = np.einsum("n,n...->...", weights, np.asarray(gradient, np.float64))
        assert ulps(update[name], exact) <= 1


def test_half_precision_losses_of_full_precision_gradients(dtype):
    problem = problems.mlp(dtype)
    gradients, arguments = problems.form_arguments("stacked", problem, problem.params)
    arguments["losses"] = arguments["losses"].astype(jnp.bfloat16)
    tx = transform.weighted(weighting.group_dro(1.0), 5)
    state = tx.init(problem.params)
    update, state = problems.update(tx, gradients, state, problem.params, **arguments)
    assert state.weights.dtype == dtype
    expected = jax.tree.map(
        lambda g: np.einsum(
            "n,n...->...", np.asarray(state.weights, np.float64), np.asarray(g, np.float64)
        ),
        gradients,
    )
    problems.assert_trees_close(update, expected, 1e-6 if dtype == "float32" else 1e-14)


@pytest.mark.parametrize("form", ["tasks", "layout"])
@pytest.mark.parametrize("half", HALF)
def test_half_precision_losses_are_the_losses_cast_by_hand(form, half):
    rounded = in_losses_dtype(problems.mlp(), half)
    by_hand = in_losses_dtype(rounded, jnp.float32)
    tx = transform.weighted(weighting.group_dro(1.0), 5)
    found, expected = (one_step(tx, p, form) for p in (rounded, by_hand))
    problems.assert_trees_close(found, expected, 1e-6)
    assert found[1].losses.dtype == jnp.float32


@pytest.mark.parametrize("half", HALF)
def test_a_pullback_that_would_round_the_weights_is_refused(half):
    problem = in_losses_dtype(problems.mlp(), half)
    tx = transform.weighted(weighting.group_dro(1.0), 5)
    with pytest.raises(
        ValueError,
        match=rf"float32.* {jnp.dtype(half)}, which would round.*losses\.astype\(jnp\.float32\)",
    ):
        one_step(tx, problem, "forward")


def test_weights_of_float64_parameters_are_not_rounded_to_float32():
    with jax.enable_x64(True):
        problem = in_losses_dtype(problems.mlp("float64"), jnp.float32)
        tx = transform.weighted(weighting.group_dro(1.0), 5)
        with pytest.raises(ValueError, match=r"Return losses\.astype\(jnp\.float64\)"):
            one_step(tx, problem, "forward")
        for form in ("tasks", "layout"):
            _, state = one_step(tx, problem, form)
            assert state.weights.dtype == state.losses.dtype == jnp.float64


def test_complex_parameters_are_refused():
    params = {"real": jnp.ones(2), "phase": {"w": jnp.ones(2, jnp.complex64)}}
    tx = transform.weighted(weighting.average(), 5)
    message = r"needs real parameters.*complex: {}\['phase'\]\['w'\]\. Hold .*two real arrays"
    with pytest.raises(ValueError, match=message.format("params")):
        tx.init(params)
    state = tx.init({"real": jnp.ones(2)})
    losses = jnp.ones(5)
    with pytest.raises(ValueError, match=message.format("params")):
        tx.update(None, state, params, losses_fn=lambda params: losses)
    # Where update sees no parameters, the gradient tells.
    with pytest.raises(ValueError, match=message.format("gradient")):
        tx.update(None, state, losses=losses, pullback=lambda weights: params)


@pytest.mark.parametrize("num_examples", [5, 8])
def test_a_plain_gradient_is_not_taken_for_those_of_the_tasks(num_examples):
    # With 5 rows it looks like the gradients of 5 tasks.
    params = jnp.ones((num_examples, 3))
    tx = transform.weighted(weighting.average(), 5)
    state = tx.init(params)
    with pytest.raises(ValueError, match=rf"each leaf \[5, \.\.\.\].*\(5, {num_examples}, 3\)"):
        tx.update(params, state, params, losses=jnp.ones(5))
    with pytest.raises(ValueError, match="needs params, as its third argument"):
        tx.update(params, state, losses=jnp.ones(5))

"""What goes wrong: losses that are not finite, and arguments that are not as they should be."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import oracles, problems

from ldro_jax import interaction, ldro, transform, weighting


def made(name):
    return weighting.create(name, weighting.usual(name, 5))


def batch_with(problem, value, task=2):
    return problem.batch | {"y": problem.batch["y"].at[task, 0].set(value)}


@pytest.mark.parametrize("form", problems.FORMS)
@pytest.mark.parametrize("interval", [1, 2])
def test_a_step_with_a_bad_loss_changes_nothing(form, interval):
    problem = problems.mlp()
    tx = ldro.transform(5, lookahead_lr=0.1, weight_lr=0.5, interaction_interval=interval)

    @jax.jit
    def step(state, batch):
        updates, arguments = problems.form_arguments(form, problem, problem.params, batch)
        # A gradient of no task must not pass either: the step changes nothing.
        if form != "stacked":
            updates = problem.params
        return tx.update(updates, state, problem.params, **arguments)

    _, good = step(tx.init(problem.params), problem.batch)
    state = good._replace(count=jnp.int32(2))
    for events, value in enumerate([np.nan, np.inf], start=1):
        updates, state = step(state, batch_with(problem, value))
        assert all((leaf == 0).all() for leaf in jax.tree.leaves(updates))
        np.testing.assert_array_equal(state.nonfinite, [0, 0, events, 0, 0])
        assert state.nonfinite_streak == events
    for name in ("weights", "losses", "interaction", "weighting"):
        jax.tree.map(np.testing.assert_array_equal, getattr(state, name), getattr(good, name))

    # The next good step goes on as if nothing had been.
    _, expected = step(good._replace(count=state.count), problem.batch)
    updates, state = step(state, problem.batch)
    assert state.nonfinite_streak == 0 and state.nonfinite[2] == 2
    np.testing.assert_array_equal(state.weights, expected.weights)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(updates))


def test_a_bad_loss_of_an_absent_task_does_not_slip_through():
    # Zero times NaN is NaN: the weight alone would not keep it out of the gradient.
    problem = problems.mlp()
    tx = transform.weighted(weighting.average(), 5)
    updates, state = tx.update(
        None,
        tx.init(problem.params),
        problem.params,
        loss_fn=problem.loss_fn,
        batch=batch_with(problem, np.nan),
        present=jnp.arange(5) != 2,
    )
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(updates))
    assert state.nonfinite[2] == 1


def test_weights_that_overflow_are_not_taken():
    problem = problems.mlp()
    tx = transform.weighted(weighting.group_dro(1e38), 5)
    updates, state = tx.update(
        None,
        tx.init(problem.params),
        problem.params,
        loss_fn=lambda params, task: 10 * problem.loss_fn(params, task),
        batch=problem.batch,
    )
    np.testing.assert_allclose(state.weights, 0.2, rtol=1e-6)
    assert jnp.isfinite(state.weighting.log_weights).all()
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(updates))


N = 5


def update(updates=None, *, weights=None, pass_params=True, **arguments):
    problem = problems.mlp()
    tx = transform.weighted(
        weights or weighting.lookahead_online(0.1, 0.5), N, interaction_interval=1
    )
    state, params = tx.init(problem.params), problem.params if pass_params else None
    return problems.update(tx, updates, state, params, **arguments)


def given(form="tasks"):
    problem = problems.mlp()
    return problems.form_arguments(form, problem, problem.params)[1]


def changed_batch(name, change):
    batch = problems.mlp().batch
    return given() | {"batch": batch | {name: change(batch[name])}}


@pytest.mark.parametrize(
    "arguments, message",
    [
        # No form, half a form, two forms, and what belongs to another form.
        (dict, "one of these forms: .*given: none of these .does an Optax wrapper keep them back"),
        (lambda: {"batch": given()["batch"]}, "given: batch"),
        (lambda: {"loss_fn": given()["loss_fn"]}, "given: loss_fn"),
        (lambda: given() | given("layout"), "given: batch, loss_fn, losses_fn"),
        (lambda: given() | {"losses": jnp.ones(N)}, "given: batch, loss_fn, losses"),
        (lambda: given() | {"interaction_fn": abs}, "given: batch, interaction_fn, loss_fn"),
        (
            lambda: given("layout") | {"interaction_batch": given()["batch"]},
            "given: interaction_batch, losses_fn",
        ),
        # Batches.
        (
            lambda: changed_batch("y", lambda y: y[:3]),
            r"batch\['y'\] must have a leading task axis, \[5 tasks, .*\(3, 8\)",
        ),
        (lambda: changed_batch("y", jnp.sum), r"batch\['y'\] must have a leading task axis.*\(\)"),
        (
            lambda: changed_batch("x", lambda x: x[:, :0]),
            r"batch\['x'\] holds no examples: its shape is \(5, 0, 4\).*`present`",
        ),
        (lambda: given() | {"batch": {}}, "batch holds no arrays"),
        (
            lambda: given() | {"interaction_batch": given()["batch"]["x"][:4]},
            r"interaction_batch must have a leading task axis.*\(4, 8, 4\)",
        ),
        # Losses.
        (
            lambda: given() | {"loss_fn": lambda params, task: task["y"]},
            r"loss_fn must return one number.*\(8,\)|loss_fn must return one number.*\[8\]",
        ),
        (
            lambda: given() | {"loss_fn": lambda params, task: (jnp.float32(0), {})},
            "loss_fn must return one number.*auxiliary outputs",
        ),
        (lambda: {"losses_fn": lambda params: params["b"]}, r"one loss for each of the 5.*\(8,\)"),
        (lambda: {"losses_fn": lambda params: params["b"].sum()}, r"one loss for each.*\(\)"),
        (
            lambda: given("forward") | {"losses": jnp.ones((N, 1))},
            r"one loss for each of the 5 tasks, shape \(5,\).*\(5, 1\)",
        ),
        # Interactions.
        (
            lambda: {k: v for k, v in given("forward").items() if k != "interaction_fn"},
            r"uses the interaction matrix.*Pass interaction_fn.*\[5, 5\]",
        ),
        (
            lambda: given("forward") | {"interaction_fn": lambda: jnp.ones(N)},
            r"interaction matrix must have shape \(5, 5\).*\(5,\)",
        ),
        # Gradients and masks.
        (
            lambda: given("forward") | {"pullback": lambda w: {"w": w}},
            r"The gradient must have .* shapes of the parameters, but it has no leaf \['b'\]\.",
        ),
        (lambda: given() | {"present": jnp.ones(3, bool)}, r"present must .* 5 tasks.*\(3,\)"),
        (
            lambda: given() | {"updates": {"w": jnp.ones((4, 8))}},
            r"updates, the gradient of no task, must have the structure.*has no leaf \['b'\]\.",
        ),
        (
            # Broadcasts to the parameters, but isn't their gradient.
            lambda: given() | {"updates": jax.tree.map(lambda p: p[:1], problems.mlp().params)},
            r"updates, the gradient of no task, .* \['b'\] has shape \(1,\) instead of \(8,\)\.",
        ),
        # Stacked gradients.
        (lambda: {"losses": jnp.ones(N)}, r"each leaf \[5, \.\.\.\].*it is None"),
        (
            # An ordinary gradient, one of whose leaves happens to have N rows.
            lambda: {"losses": jnp.ones(N), "updates": problems.mlp().params},
            r"updates must be the gradients of the tasks, each leaf \[5, \.\.\.\]",
        ),
        (
            lambda: {
                "losses": jnp.ones(N),
                "updates": jax.tree.map(lambda p: jnp.stack([p[None]] * N), problems.mlp().params),
            },
            r"each leaf \[5, \.\.\.\].* \['b'\] has shape \(5, 1, 8\) instead of \(5, 8\)",
        ),
        (
            lambda: {
                "losses": jnp.ones(N),
                "updates": [jnp.stack([p] * N) for p in problems.mlp().params.values()],
            },
            r"each leaf \[5, \.\.\.\].*but it has no leaf \['b'\]\.",
        ),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    # Errors come while tracing, so nothing need be compiled or run.
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: update(**arguments()))


@pytest.mark.parametrize("form", ["tasks", "layout", "stacked"])
def test_missing_params_are_named(form):
    with pytest.raises(ValueError, match="needs params, as its third argument"):
        update(pass_params=False, **given(form))


def test_params_can_be_left_out_beside_a_pullback():
    one, two = (update(pass_params=p, **given("forward")) for p in (True, False))
    problems.assert_trees_close(one, two, 1e-6)


@pytest.mark.parametrize("num_tasks", [0, -1, 2.0, True, "3", jnp.int32(3)])
def test_a_wrong_number_of_tasks_is_named(num_tasks):
    with pytest.raises(
        TypeError, match=r"num_tasks must be a positive Python integer.*static_args"
    ):
        transform.weighted(weighting.average(), num_tasks)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"interaction_interval": 0}, "interaction_interval must be a positive integer.* 0"),
        ({"interaction_interval": 2.5}, r"interaction_interval must be .* 2\.5"),
        ({"interaction_interval": 2.0}, r"interaction_interval must be .* 2\.0"),
        ({"interaction_interval": True}, "interaction_interval must be .* True"),
        ({"interaction_interval": np.True_}, "interaction_interval must be .*True"),
        ({"interaction_interval": np.int64(0)}, "interaction_interval must be .*0"),
        ({"lagged": True, "interaction_interval": 2}, "lagged needs interaction_interval=1.* 2"),
        ({"lagged": 1}, "lagged must be True or False.* 1"),
        ({"floor": 1.5}, r"floor must be a number in \[0, 1\].* 1\.5"),
        (
            {"interaction": "nothing"},
            "interaction must be an Interaction or one of auto, .* 'nothing'",
        ),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        transform.weighted(weighting.average(), N, **options)


@pytest.mark.parametrize("interval", [1, 2])
def test_an_interval_may_be_any_integer(interval):
    problem = problems.mlp()
    weights = weighting.lookahead_online(0.1, 0.5)
    one, two = (
        transform.weighted(weights, N, interaction_interval=k, lagged=interval == 1)
        for k in (interval, np.int64(interval))
    )
    problems.assert_trees_close(
        problems.train(one, problem, 2)[-1], problems.train(two, problem, 2)[-1], 0
    )


def test_the_front_door_needs_a_weight_lr():
    with pytest.raises(ValueError, match="One of these is needed: .* Given: none of them"):
        ldro.transform(3, lookahead_lr=0.1)
    with pytest.raises(ValueError, match="Without lookahead_lr, temperature .* Given: weight_lr"):
        ldro.transform(3, weight_lr=0.1)
    with pytest.raises(ValueError, match="Without lookahead_lr, temperature .* Given: exact"):
        ldro.transform(3, exact=True)


def test_without_a_look_ahead_the_front_door_is_regularised_dro():
    losses = jnp.array([1.0, 2.0, 4.0])
    given = {"losses": losses, "pullback": lambda w: w.sum()}
    for options, rate in (({}, 0.1), ({"weight_lr": 0.5}, 0.5)):
        tx = ldro.transform(3, temperature=0.5, relative=True, **options)
        _, state = tx.update(None, tx.init(jnp.ones([])), jnp.ones([]), **given)
        moved = np.exp(rate * np.asarray(losses) / (0.5 * 7 / 3))
        np.testing.assert_allclose(ldro.weights(state), moved / moved.sum(), rtol=1e-5)


def test_errors_come_through_a_chain_and_jit():
    problem = problems.mlp()
    tx = optax.chain(transform.weighted(weighting.average(), N), optax.sgd(0.1))
    with pytest.raises(ValueError, match="one of these forms"):
        jax.jit(tx.update)(None, tx.init(problem.params), problem.params)


def softly(statistics):
    return jax.nn.softmax(jnp.diagonal(statistics.interaction))


def test_a_weighting_that_reads_what_nobody_measures_is_refused():
    problem = problems.mlp()
    tx = transform.weighted(weighting.stateless(softly), 5)
    with pytest.raises(ValueError, match=r"reads statistics.interaction.*uses_interaction=True"):
        tx.init(problem.params)
    # A function that is compiled reads what it looks at, and no more.
    jitted = weighting.stateless(jax.jit(lambda s: s.losses / jnp.sum(s.losses)))
    transform.weighted(jitted, 5).init(problem.params)


def test_a_weighting_that_says_what_it_reads_is_shown_it():
    problem = problems.mlp()
    method = weighting.stateless(softly, uses_interaction=True)
    _, state = problems.train(transform.weighted(method, 5), problem, 1)[-1]
    expected = jax.nn.softmax(np.diagonal(oracles.gram(*problem)))
    np.testing.assert_allclose(state.weights, expected, rtol=1e-5)
    assert np.ptp(state.weights) > 0.01


NEEDY = [name for name in weighting.METHODS if made(name).needs_positive_losses]


def test_some_methods_need_positive_losses():
    assert {"famo", "geometric_mean", "gradnorm", "q_ffl", "scale_invariant"} <= set(NEEDY)


@pytest.mark.parametrize("name", NEEDY)
def test_a_loss_below_zero_is_counted_and_moves_no_weight(name):
    problem = problems.mlp()
    tx = transform.weighted(made(name), 5)
    shift = jnp.array([0.0, 0.0, 1e3, 0.0, 0.0])

    @jax.jit
    def step(state, shift):
        losses, pull = jax.vjp(lambda p: problem.losses(p) - shift, problem.params)
        matrix = interaction.jacobian_gram(problem.losses, problem.params)
        given = {
            "losses": losses,
            "pullback": lambda w: pull(w)[0],
            "interaction_fn": lambda: matrix,
        }
        return tx.update(None, state, problem.params, **given)

    _, good = step(tx.init(problem.params), 0 * shift)
    updates, state = step(good, shift)
    np.testing.assert_array_equal(good.negative, 0)
    np.testing.assert_array_equal(state.negative, [0, 0, 1, 0, 0])
    for field in ("weights", "weighting"):
        jax.tree.map(np.testing.assert_array_equal, getattr(state, field), getattr(good, field))
    # It still trains, with these weights.
    assert any((leaf != 0).any() for leaf in jax.tree.leaves(updates))


def test_a_weighting_in_numpy_works_outside_of_a_jit():
    problem = problems.mlp()
    method = weighting.stateless(
        lambda s: jnp.asarray(np.asarray(s.losses) == np.max(s.losses), float)
    )
    tx = transform.weighted(method, 5)
    arguments = {"loss_fn": problem.loss_fn, "batch": problem.batch}
    _, state = tx.update(None, tx.init(problem.params), problem.params, **arguments)
    np.testing.assert_array_equal(state.weights, np.eye(5)[np.argmax(state.losses)])


def test_a_newcomer_and_a_bad_loss_leave_the_sum_of_the_weights():
    problem = problems.mlp()
    tx = transform.weighted(weighting.mgda(), 5, interaction_interval=9, total=1.0)

    @jax.jit
    def step(state, present, batch):
        arguments = {"loss_fn": problem.loss_fn, "batch": batch}
        return tx.update(None, state, problem.params, present=present, **arguments)[1]

    state = step(tx.init(problem.params), np.arange(5) != 2, problem.batch)
    for batch in (problem.batch, batch_with(problem, np.nan), batch_with(problem, np.nan)):
        state = step(state, np.ones(5, bool), batch)
        np.testing.assert_allclose(jnp.abs(state.weights).sum(), 1, rtol=1e-5)

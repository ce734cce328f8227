"""The transformation: four forms of statistics, the papers' algorithms, and what a step costs."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import oracles, problems
from jax.extend import core

from ldro_jax import games, interaction, ldro, transform, weighting

WEIGHTINGS = {
    "average": weighting.average(),
    "group_dro": weighting.group_dro(0.1),
    "interpolated": weighting.interpolated(0.3),
    "lookahead_exact": weighting.lookahead_exact(0.1),
    "lookahead_online": weighting.lookahead_online(0.1, 0.5),
}


def test_tasks_that_are_normalised_together_need_the_form_with_all_losses():
    problem = problems.mlp()

    def loss_fn(params, task):
        hidden = task["x"] @ params["w"]
        mean = jax.lax.pmean(hidden.mean(0), "tasks")
        square = jax.lax.pmean(jnp.mean((hidden - mean[None]) ** 2, 0), "tasks")
        normed = (hidden - mean[None]) / jnp.sqrt(square + 1e-5)[None]
        return jnp.mean((jnp.tanh(normed).sum(1) - task["y"]) ** 2)

    def losses_fn(params):
        return jax.vmap(loss_fn, (None, 0), axis_name="tasks")(params, problem.batch)

    tx = transform.weighted(weighting.lookahead_online(0.1, 0.5), 5, interaction_interval=1)
    params = {"w": problem.params["w"]}
    rows = [jax.grad(lambda p, i=i: losses_fn(p)[i])(params)["w"].ravel() for i in range(5)]
    expected = np.stack(rows).astype(np.float64)
    gram = expected @ expected.T
    updates, state = jax.jit(lambda s: tx.update(None, s, params, losses_fn=losses_fn))(
        tx.init(params)
    )
    np.testing.assert_allclose(state.interaction, gram, atol=1e-5 * gram.max())
    np.testing.assert_allclose(updates["w"].ravel(), state.weights @ expected, atol=1e-4)
    # What vmap gives adds up to the same, and is something else at each place.
    apart = jax.vmap(jax.grad(loss_fn), (None, 0), axis_name="tasks")(params, problem.batch)
    apart = np.asarray(apart["w"]).reshape(5, -1)
    np.testing.assert_allclose(apart.sum(0), expected.sum(0), atol=1e-4)
    assert np.abs(apart @ apart.T - gram).max() > 0.01 * gram.max()


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_the_four_forms_agree(name):
    problem = problems.mlp()
    tx = transform.weighted(WEIGHTINGS[name], 5, interaction_interval=1)

    def two_steps(form):
        # Without jit here, so that the game solver is compiled once for all forms.
        params, state = problem.params, tx.init(problem.params)
        for _ in range(2):
            updates, arguments = problems.form_arguments(form, problem, params)
            updates, state = tx.update(updates, state, params, **arguments)
            params = jax.tree.map(lambda p, u: p - 0.1 * u, params, updates)
        return params, state

    reference = two_steps("tasks")
    for form in problems.FORMS[1:]:
        # float32 rounding, after two steps.
        problems.assert_trees_close(two_steps(form), reference, 1e-5)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("interval, lagged", [(1, False), (7, False), (1, True)])
def test_is_algorithm_3(interval, lagged, normalize):
    problem = problems.least_squares()
    # Rates at which the best response changes hands and the weights leave the uniform ones, but not
    # so large that rounding decides which task is the worst.
    lookahead_lr, weight_lr = (0.05, 1.0) if normalize else (0.01, 0.5)
    tx = optax.chain(
        ldro.transform(
            3,
            lookahead_lr=lookahead_lr,
            weight_lr=weight_lr,
            interaction_interval=interval,
            normalize_interaction=normalize,
            lagged=lagged,
        ),
        optax.sgd(0.02),
    )
    trajectory = problems.train(tx, problem, 100)
    weights, params = oracles.lookahead_dro(
        problems.least_squares_oracle(problem),
        np.asarray(problem.params["w"], np.float64),
        lookahead_lr=lookahead_lr,
        weight_lr=weight_lr,
        interval=interval,
        learning_rate=0.02,
        steps=100,
        normalize=normalize,
        lagged=lagged,
    )
    # 100 steps in float32, each with a relative rounding of 1e-7.
    np.testing.assert_allclose([ldro.weights(s) for _, s in trajectory], weights, atol=1e-5)
    np.testing.assert_allclose([p["w"] for p, _ in trajectory], params, rtol=1e-5, atol=1e-5)
    assert np.ptp(weights[-1]) > 0.1


def test_what_needs_no_interaction_takes_a_pullback_that_gives_it():
    problem = problems.least_squares()
    losses, pull = interaction.layerwise().pullback(problem.loss_fn, problem.params, problem.batch)
    tx = transform.weighted(weighting.average(), 3, interaction_interval=1, lagged=True)
    state = tx.init(problem.params)
    found, _ = tx.update(None, state, problem.params, losses=losses, pullback=pull)
    expected, _ = tx.update(
        None, state, problem.params, loss_fn=problem.loss_fn, batch=problem.batch
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, expected)


@pytest.mark.parametrize("lagged", [False, True])
def test_the_fused_step_is_the_plain_one(lagged):
    problem = problems.mlp()
    weights = weighting.lookahead_online(0.1, 0.5)
    plain_strategy = interaction.Interaction(interaction.vmap().matrix)
    fused, plain = (
        transform.weighted(weights, 5, interaction=strategy, interaction_interval=1, lagged=lagged)
        for strategy in (interaction.vmap(), plain_strategy)
    )
    problems.assert_trees_close(
        problems.train(optax.chain(fused, optax.sgd(0.1)), problem, 5)[-1],
        problems.train(optax.chain(plain, optax.sgd(0.1)), problem, 5)[-1],
        1e-5,
    )


@pytest.mark.parametrize("strategy", ["auto", *interaction.STRATEGIES])
def test_any_strategy_does(strategy):
    problem = problems.mlp()
    tx = ldro.transform(5, lookahead_lr=0.1, weight_lr=0.5, interaction=strategy)
    _, state = problems.train(tx, problem, 1)[-1]
    expected = oracles.gram(*problem)
    np.testing.assert_allclose(
        ldro.interaction(state), expected, rtol=0, atol=1e-5 * np.abs(expected).max()
    )


def test_the_update_is_the_gradient_of_the_weighted_loss():
    problem = problems.mlp()
    tx = transform.weighted(weighting.group_dro(1.0), 5)
    updates, state = tx.update(
        None, tx.init(problem.params), problem.params, loss_fn=problem.loss_fn, batch=problem.batch
    )
    losses = problem.losses(problem.params)
    np.testing.assert_allclose(ldro.losses(state), losses, rtol=1e-6)
    # The weights of this step, not those of the last one: the losses come first.
    weights = oracles.group_dro_step(losses, np.full(5, 0.2), 1.0)
    np.testing.assert_allclose(ldro.weights(state), weights, rtol=1e-5)
    expected = oracles.weighted_gradient(*problem, weights)
    flat = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(updates)])
    np.testing.assert_allclose(flat, expected, atol=1e-5 * np.abs(expected).max())


def count_primitive(jaxpr, name):
    """How often a primitive runs; of a conditional, its cheapest branch."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == name:
            total += 1
        elif equation.primitive.name == "cond":
            total += min(count_primitive(b.jaxpr, name) for b in equation.params["branches"])
        else:
            for value in equation.params.values():
                if isinstance(value, core.ClosedJaxpr):
                    value = value.jaxpr
                if isinstance(value, core.Jaxpr):
                    total += count_primitive(value, name)
    return total


@pytest.mark.parametrize("form", problems.FORMS[:3])
def test_one_forward_and_one_backward_pass_when_nothing_is_due(form):
    problem = problems.mlp()

    def plain(params, batch):
        return jax.value_and_grad(lambda p: problem._replace(batch=batch).losses(p).mean())(params)

    def step(interval):
        # Looking ahead with the old weights and the new ones takes two products of a matrix and a
        # vector more.
        tx = ldro.transform(
            5, lookahead_lr=0.1, weight_lr=0.1, interaction_interval=interval, interaction="scan"
        )

        def step(params, batch):
            updates, arguments = problems.form_arguments(form, problem, params, batch)
            return tx.update(updates, tx.init(params), params, **arguments)

        return step

    products, hyperbolics = (
        {
            k: count_primitive(jax.make_jaxpr(f)(problem.params, problem.batch).jaxpr, name)
            for k, f in {"plain": plain, "not due": step(2), "due": step(1)}.items()
        }
        for name in ("dot_general", "tanh")
    )
    assert products["not due"] == products["plain"] + 2
    assert hyperbolics["not due"] == hyperbolics["plain"] == 1
    # So that the count can fail: a measurement does show.
    assert products["due"] > products["not due"]


def test_the_interaction_is_measured_when_due():
    problem = problems.mlp()
    tx = optax.chain(
        ldro.transform(5, lookahead_lr=0.1, weight_lr=0.5, interaction_interval=3), optax.sgd(0.1)
    )
    matrices = [np.asarray(ldro.interaction(state)) for _, state in problems.train(tx, problem, 5)]
    changed = [not np.array_equal(a, b) for a, b in itertools.pairwise(matrices)]
    assert np.any(matrices[0]) and changed == [False, False, True, False]


@pytest.mark.parametrize("interval", [1, 3])
def test_the_interaction_can_be_measured_elsewhere(interval):
    problem = problems.mlp()
    other = problem.batch | {"x": problem.batch["x"] + 1}
    tx = ldro.transform(5, lookahead_lr=0.1, weight_lr=0.5, interaction_interval=interval)
    _, state = problems.train(tx, problem, 1, interaction_batch=other)[-1]
    expected = oracles.gram(problem.loss_fn, problem.params, other)
    np.testing.assert_allclose(
        ldro.interaction(state), expected, rtol=0, atol=1e-5 * np.abs(expected).max()
    )
    np.testing.assert_allclose(ldro.losses(state), problem.losses(problem.params), rtol=1e-6)


def test_the_interaction_of_any_layout_can_be_given():
    problem = problems.mlp()
    tx = ldro.transform(5, lookahead_lr=0.1, weight_lr=0.5)
    # Any function of the parameters will do.
    _, state = problems.train(
        tx,
        problem,
        1,
        "layout",
        interaction_fn=lambda params: jnp.diag(params["heads"][:, 0]),
    )[-1]
    np.testing.assert_array_equal(ldro.interaction(state), np.diag(problem.params["heads"][:, 0]))


def test_measures_nothing_for_a_weighting_that_does_not_ask():
    def fail(*_):
        raise AssertionError("measured")

    problem = problems.mlp()
    strategy = interaction.Interaction(fail, fail)
    tx = transform.weighted(weighting.group_dro(0.1), 5, interaction=strategy)
    _, state = problems.train(tx, problem, 1)[-1]
    np.testing.assert_array_equal(ldro.interaction(state), 0)


@pytest.mark.parametrize("form", problems.FORMS[:3])
def test_a_gradient_of_no_task_is_added(form):
    problem = problems.mlp()
    tx = transform.weighted(weighting.group_dro(0.1), 5)
    _, arguments = problems.form_arguments(form, problem, problem.params)
    state = tx.init(problem.params)
    decay = jax.tree.map(lambda p: 0.1 * p, problem.params)
    plain, added = jax.jit(
        lambda state, params: [
            tx.update(updates, state, params, **arguments)[0] for updates in (None, decay)
        ]
    )(state, problem.params)
    problems.assert_trees_close(added, jax.tree.map(jnp.add, plain, decay), 1e-6)


@pytest.mark.parametrize("form, interval", [("tasks", 2), *((form, 1) for form in problems.FORMS)])
def test_an_absent_task_keeps_its_statistics_and_adds_nothing(form, interval):
    problem = problems.mlp()
    present = jnp.array([True, False, True, True, True])
    tx = ldro.transform(5, lookahead_lr=0.1, weight_lr=0.5, interaction_interval=interval)
    state = tx.init(problem.params)._replace(
        losses=jnp.arange(5.0), interaction=jnp.full((5, 5), 7.0)
    )
    updates, arguments = problems.form_arguments(form, problem, problem.params)
    # Other interaction functions may well use another batch, in which all tasks are present.
    arguments.pop("interaction_fn", None)
    if form == "forward":
        tx = transform.weighted(weighting.group_dro(0.1), 5)
        state = state._replace(weighting=tx.init(problem.params).weighting)
    updates, state = jax.jit(
        lambda state, params: tx.update(updates, state, params, **arguments, present=present)
    )(state, problem.params)

    losses = np.array(problem.losses(problem.params))
    losses[1] = 1.0
    np.testing.assert_allclose(ldro.losses(state), losses, rtol=1e-6)
    if form != "forward":
        kept = np.asarray(ldro.interaction(state)) == 7
        np.testing.assert_array_equal(kept, ~np.outer(present, present))
    weights = np.where(present, ldro.weights(state), 0)
    expected = oracles.weighted_gradient(*problem, weights)
    flat = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(updates)])
    np.testing.assert_allclose(flat, expected, atol=1e-5 * np.abs(expected).max())
    assert (updates["heads"][1] == 0).all()


def test_find_state():
    params = problems.mlp().params
    tx = transform.weighted(weighting.average(), 5)
    assert transform.find_state({"opt": (tx.init(params), ())}) is not None
    for state, found in [(optax.sgd(0.1).init(params), 0), ([tx.init(params)] * 2, 2)]:
        with pytest.raises(ValueError, match=f"one WeightedState.*found {found}"):
            ldro.weights(state)


def test_equal_and_unseen_weights_before_the_first_step():
    state = ldro.transform(4, lookahead_lr=0.1, weight_lr=0.1).init(problems.mlp().params)
    np.testing.assert_array_equal(ldro.weights(state), 0.25)
    assert not ldro.interaction(state).any() and not ldro.losses(state).any()


def test_exact_solves_the_game_of_this_step():
    problem = problems.mlp()
    tx = ldro.transform(5, lookahead_lr=0.1, exact=True)
    _, state = problems.train(tx, problem, 1)[-1]
    payoff = np.asarray(ldro.losses(state))[:, None] - 0.1 * oracles.normalized(
        ldro.interaction(state)
    )
    # No strategy of the other player gets more out of these weights than out of the solver's.
    solution = games.max_entropy_nash(jnp.asarray(payoff, jnp.float32))
    np.testing.assert_allclose(max(payoff @ ldro.weights(state)), solution.value, rtol=1e-5)


def test_unknown_extra_arguments_are_ignored():
    problem = problems.mlp()
    tx = transform.weighted(weighting.average(), 5)
    problems.assert_trees_close(
        problems.train(tx, problem, 1, value=1.0, key=None)[-1],
        problems.train(tx, problem, 1)[-1],
        0,
    )

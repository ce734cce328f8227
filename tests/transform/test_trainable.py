"""Frozen parameters: they count in no interaction, cost no gradient, and stay as they are."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import problems

from ldro_jax import interaction, ldro, transform, weighting

FROZEN = {"w": True, "b": False, "heads": True}


def trained_alone(problem):
    """The same problem with the frozen parameters as constants."""
    part = {name: x for name, x in problem.params.items() if FROZEN[name]}
    return problem._replace(
        params=part, loss_fn=lambda part, task: problem.loss_fn(problem.params | part, task)
    )


def make(trainable=None, optimizer=None, **options):
    options = {"lookahead_lr": 0.1, "weight_lr": 0.5, "interaction_interval": 2} | options
    optimizer = optax.sgd(0.1, momentum=0.9) if optimizer is None else optimizer
    return optax.chain(ldro.transform(5, trainable=trainable, **options), optimizer)


# In the form "forward" what the interaction is measured on is the user's own.
CASES = [(form, "vmap", 2, False) for form in problems.FORMS if form != "forward"]
CASES += [("tasks", name, 2, False) for name in ("auto", "split", "columns", "tiled")]
CASES += [
    pytest.param("tasks", name, 2, False, marks=pytest.mark.heavy)
    for name in sorted({*interaction.STRATEGIES} - {"columns", "tiled"})
]
CASES += [
    ("tasks", "vmap", 1, False),
    ("tasks", "layerwise", 1, True),
    ("stacked", "vmap", 1, True),
]


@pytest.mark.parametrize("form, strategy, interval, lagged", CASES)
def test_trains_as_if_they_were_constants(form, strategy, interval, lagged):
    problem = problems.mlp()
    options = {"interaction": strategy, "interaction_interval": interval, "lagged": lagged}
    params, state = problems.train(make(FROZEN, **options), problem, 3, form)[-1]
    expected, other = problems.train(make(**options), trained_alone(problem), 3, form)[-1]
    np.testing.assert_array_equal(params.pop("b"), problem.params["b"])
    mine, theirs = transform.find_state(state), transform.find_state(other)
    assert np.ptp(mine.weights) > 1e-3
    problems.assert_trees_close((params, mine), (expected, theirs), 1e-6)


def test_no_gradient_is_taken_of_them():
    problem = problems.mlp()
    tx = ldro.transform(5, lookahead_lr=0.1, weight_lr=0.5, trainable=FROZEN)
    seen = []

    @jax.custom_vjp
    def watched(x):
        return x

    watched.defvjp(lambda x: (x, None), lambda _, g: (seen.append(g), (g,))[1])

    def loss_fn(params, task):
        return problem.loss_fn(params | {"b": watched(params["b"])}, task)

    # Which gradients are taken shows where it is traced.
    given = {"loss_fn": loss_fn, "batch": problem.batch}
    jax.eval_shape(lambda: tx.update(None, tx.init(problem.params), problem.params, **given))
    assert not seen


def test_upgrad_makes_no_task_worse():
    # Along x the tasks conflict: nothing helps both. In y they agree, but y is frozen.
    def loss_fn(params, task):
        return task["x"] * params["x"] + params["y"]

    params = {"x": jnp.zeros([]), "y": jnp.zeros([])}
    batch = {"x": jnp.array([1.0, -1.0])}
    labels = {"x": "train", "y": "freeze"}
    frozen = optax.partition({"train": optax.sgd(1.0), "freeze": optax.set_to_zero()}, labels)

    def moved(trainable):
        tx = transform.weighted(weighting.upgrad(), 2, trainable=trainable)
        tx = optax.chain(tx, frozen)
        given = {"loss_fn": loss_fn, "batch": batch}
        updates, state = problems.update(tx, None, tx.init(params), params, **given)
        return updates, transform.find_state(state)

    updates, state = moved(ldro.moved_by(frozen, params))
    np.testing.assert_allclose(state.interaction, [[1, -1], [-1, 1]])
    np.testing.assert_allclose([updates["x"], updates["y"]], 0, atol=1e-6)


def test_the_gradient_of_no_task_is_not_added_to_them():
    problem = problems.mlp()
    tx = ldro.transform(5, lookahead_lr=0.1, weight_lr=0.5, trainable=lambda params: FROZEN)
    ones = jax.tree.map(jnp.ones_like, problem.params)

    def update(updates):
        arguments = {"loss_fn": problem.loss_fn, "batch": problem.batch}
        state = tx.init(problem.params)
        return problems.update(tx, updates, state, problem.params, **arguments)[0]

    more, plain = update(ones), update(None)
    np.testing.assert_allclose(more["w"] - plain["w"], 1, rtol=1e-5)
    np.testing.assert_array_equal(more["b"], 0)


def test_a_pullback_may_give_holes_or_all():
    problem = problems.mlp()
    tx = transform.weighted(weighting.average(), 5, trainable=FROZEN)
    losses, pull = jax.vjp(problem.losses, problem.params)
    whole = {"losses": losses, "pullback": lambda w: pull(w)[0]}
    holes = whole | {"pullback": lambda w: pull(w)[0] | {"b": None}}
    state = tx.init(problem.params)
    results = [tx.update(None, state, problem.params, **given)[0] for given in (whole, holes)]
    problems.assert_trees_close(*results, 0)
    assert np.abs(results[0]["w"]).max() > 0 and not results[0]["b"].any()


# Optax leaves conversions to JAX.
@jax.numpy_dtype_promotion("standard")
def test_in_the_geometry_of_a_partitioned_optimizer():
    problem = problems.mlp()
    labels = {name: "train" if on else "freeze" for name, on in FROZEN.items()}
    adam = {"train": optax.adam(0.01), "freeze": optax.set_to_zero()}

    def matrix(tx, problem):
        params, state = problem.params, tx.init(problem.params)
        for _ in range(2):
            arguments = {"loss_fn": problem.loss_fn, "batch": problem.batch}
            known = ldro.preconditioner(state)
            arguments["preconditioner"] = known
            updates, state = problems.update(tx, None, state, params, **arguments)
            params = optax.apply_updates(params, updates)
        return ldro.interaction(state)

    options = {"interaction_interval": 1}
    found = matrix(make(FROZEN, optax.partition(adam, labels), **options), problem)
    expected = matrix(make(None, optax.adam(0.01), **options), trained_alone(problem))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


LABELS = {"a": "train", "b": {"c": "freeze", "d": "train"}}
PARTITIONED = optax.partition({"train": optax.adamw(0.1), "freeze": optax.set_to_zero()}, LABELS)
ZERO = optax.masked(optax.set_to_zero(), {"a": False, "b": {"c": True, "d": False}})
COSINE = optax.cosine_decay_schedule(0.1, 100)


@pytest.mark.parametrize(
    "optimizer, moves",
    [
        (optax.sgd(0.1), True),
        (optax.adafactor(0.1), True),
        # A rate of zero today is one tomorrow.
        (optax.sgd(optax.warmup_cosine_decay_schedule(0.0, 0.1, 10, 100)), True),
        (PARTITIONED, False),
        (optax.chain(optax.clip_by_global_norm(1.0), optax.adam(COSINE), ZERO), False),
        (optax.chain(ZERO, optax.sgd(COSINE, momentum=0.9)), False),
        # Weight decay moves what has no gradient.
        (optax.chain(ZERO, optax.adamw(0.1)), True),
    ],
)
@jax.numpy_dtype_promotion("standard")
def test_what_an_optimizer_moves(optimizer, moves):
    params = {"a": jnp.ones((2, 3)), "b": {"c": jnp.ones(2), "d": jnp.ones(3)}}
    shapes = jax.eval_shape(lambda: params)
    expected = {"a": True, "b": {"c": moves, "d": True}}
    assert ldro.moved_by(optimizer, params) == ldro.moved_by(optimizer, shapes) == expected
    # It is what becomes of the parameters.
    state, now = optimizer.init(params), params
    for _ in range(3):
        updates, state = optimizer.update(jax.tree.map(jnp.ones_like, params), state, now)
        now = optax.apply_updates(now, updates)
    assert jax.tree.map(lambda x, y: bool((x != y).any()), now, params) == expected


def test_what_is_decided_while_it_runs_counts_as_moved():
    params = {"a": jnp.ones((2, 3)), "b": {"c": jnp.ones(2), "d": jnp.ones(3)}}
    moved = ldro.moved_by(optax.apply_if_finite(PARTITIONED, 3), params)
    assert all(jax.tree.leaves(moved))


@pytest.mark.parametrize(
    "trainable, message",
    [
        ({"w": True, "b": True}, "trainable must be a tree of bools.*doesn't fit"),
        ({"w": 1, "b": 0, "heads": 1}, "trainable must be a tree of bools"),
        ("w", "trainable must be a tree of bools"),
        (lambda params: False, "trainable marks no parameter"),
    ],
)
def test_another_filter_is_refused_at_once(trainable, message):
    tx = ldro.transform(5, lookahead_lr=0.1, weight_lr=0.5, trainable=trainable)
    with pytest.raises(ValueError, match=message):
        tx.init(problems.mlp().params)


def test_a_prefix_is_enough():
    tx = transform.weighted(weighting.average(), 5, trainable=True)
    problem = problems.mlp()
    plain = transform.weighted(weighting.average(), 5)
    found, expected = (problems.train(t, problem, 1)[-1][0] for t in (tx, plain))
    problems.assert_trees_close(found, expected, 0)

"""The table of docs/optax.md: with each transformation it works, or says what to write instead."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest

from ldro_jax import ldro, transform

DOCS = pathlib.Path(__file__).parents[1] / "docs" / "optax.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(autouse=True)
def implicit_promotion():
    # Adam and MultiSteps multiply their int32 counts with floats.
    with jax.numpy_dtype_promotion("standard"):
        yield


def weighted(**options):
    options = {"lookahead_lr": 0.1, "weight_lr": 0.5, "interaction_interval": 2} | options
    return ldro.transform(3, **options)


def problem():
    """Two parameters, so that one of them can be masked."""
    base = problems.least_squares()

    def loss_fn(params, task):
        return base.loss_fn({"w": params["w"]}, {"x": task["x"], "y": task["y"] - params["b"]})

    return base._replace(loss_fn=loss_fn, params=base.params | {"b": jnp.float32(0.5)})


def weights_after(tx, steps=3):
    return ldro.weights(problems.train(tx, problem(), steps)[-1][1])


@pytest.mark.parametrize("code", EXAMPLES)
def test_the_examples_of_the_documentation_train(code):
    names = {
        "jnp": jnp,
        "ldro": ldro,
        "optax": optax,
        "labels": {"w": "train", "b": "freeze"},
        "mask": {"w": True, "b": False},
    }
    exec(code, names)
    trajectory = problems.train(names["tx"], problem(), 20)
    losses = [ldro.losses(state).mean() for _, state in trajectory]
    assert losses[-1] < losses[0]
    assert ldro.weights(trajectory[-1][1]).shape == (3,)
    if "labels" in code:
        assert trajectory[-1][0]["b"] == 0.5


def test_first_in_a_chain_before_what_works_on_gradients():
    # Clipping sees the weighted gradient, not one of the tasks.
    tx = optax.chain(weighted(), optax.clip_by_global_norm(1e-3))
    params = problem().params
    updates, state = tx.update(
        None, tx.init(params), params, loss_fn=problem().loss_fn, batch=problem().batch
    )
    np.testing.assert_allclose(optax.tree.norm(updates), 1e-3, rtol=1e-5)
    np.testing.assert_array_equal(optax.tree.get(state, "weights"), ldro.weights(state))


def test_what_comes_before_it_is_added():
    p = problem()
    arguments = {"loss_fn": p.loss_fn, "batch": p.batch}
    alone, _ = weighted().update(None, weighted().init(p.params), p.params, **arguments)
    tx = optax.chain(optax.add_decayed_weights(0.1), weighted())
    zeros = jax.tree.map(jnp.zeros_like, p.params)
    both, _ = tx.update(zeros, tx.init(p.params), p.params, **arguments)
    expected = jax.tree.map(lambda g, w: g + 0.1 * w, alone, p.params)
    problems.assert_trees_close(both, expected, 1e-6)


def test_named_chain():
    tx = optax.named_chain(("tasks", weighted()), ("optimizer", optax.sgd(0.1)))
    np.testing.assert_array_equal(
        weights_after(tx), weights_after(optax.chain(weighted(), optax.sgd(0.1)))
    )


def injected(**options):
    make = optax.inject_hyperparams(
        ldro.transform, static_args=("num_tasks", "interaction_interval")
    )
    options = {"lookahead_lr": 0.1, "weight_lr": 0.5} | options
    return optax.chain(make(num_tasks=3, interaction_interval=2, **options), optax.sgd(0.1))


def test_inject_hyperparams_changes_nothing_by_itself():
    np.testing.assert_allclose(
        weights_after(injected()), weights_after(optax.chain(weighted(), optax.sgd(0.1))), rtol=1e-6
    )


@pytest.mark.parametrize("name", ["lookahead_lr", "weight_lr"])
def test_injected_hyperparameters_change_without_recompilation(name):
    p = problem()
    tx = injected()
    step = problems.make_step(tx, p)
    params, state = step(p.params, tx.init(p.params), p.batch)
    _, same = step(params, state, p.batch)
    state[0].hyperparams[name] = jnp.float32(0.0)
    _, frozen = step(params, state, p.batch)
    assert step._cache_size() == 1
    # With eta lambda = 0 the weights stay where they are.
    np.testing.assert_allclose(ldro.weights(frozen), ldro.weights(state), rtol=1e-6)
    assert np.abs(ldro.weights(same) - ldro.weights(state)).max() > 1e-3


def test_injected_schedules():
    schedule = optax.linear_schedule(0.0, 1.0, 4)
    np.testing.assert_allclose(
        weights_after(injected(weight_lr=schedule)),
        weights_after(optax.chain(weighted(weight_lr=schedule), optax.sgd(0.1))),
        rtol=1e-6,
    )


def test_inject_hyperparams_without_static_arguments_is_refused():
    make = optax.inject_hyperparams(ldro.transform)
    tx = make(num_tasks=3, lookahead_lr=0.1, weight_lr=0.5)
    with pytest.raises(TypeError, match=r"num_tasks.*static_args=.*'num_tasks'"):
        tx.init(problem().params)


MASK = {"w": True, "b": False}


@pytest.mark.parametrize(
    "wrap, advice",
    [
        (lambda tx: optax.masked(tx, MASK), r"optax\.masked\(optimizer, mask\)"),
        (lambda tx: optax.masked(tx, {"w": True, "b": True}), r"optax\.masked\(optimizer, mask\)"),
        (
            lambda tx: optax.partition({True: tx, False: optax.sgd(0.1)}, MASK),
            "optax.partition hide parameters",
        ),
        (
            lambda tx: optax.MultiSteps(tx, 2).gradient_transformation(),
            r"optax\.MultiSteps\(optimizer, k\)",
        ),
        (lambda tx: optax.apply_if_finite(tx, 5), r"optax\.apply_if_finite\(optimizer, n\)"),
    ],
)
@pytest.mark.parametrize("chained", [False, True])
@pytest.mark.parametrize("jitted", [False, True])
def test_a_wrapper_that_would_hold_back_something_is_refused(wrap, advice, chained, jitted):
    tx = optax.chain(weighted(), optax.sgd(0.1)) if chained else weighted()
    init = wrap(tx).init
    pattern = rf"doesn't work inside this wrapper.*optax\.chain\(ldro\.transform.*{advice}"
    if "partition" in advice:
        pattern = f"doesn't work inside this wrapper.*{advice}"
    with pytest.raises(ValueError, match=pattern):
        (jax.jit(init) if jitted else init)(problem().params)


def test_masked_parameters_are_refused_from_any_wrapper():
    params = problem().params | {"b": optax.MaskedNode()}
    with pytest.raises(ValueError, match=r"Some parameters are masked.*optax\.chain"):
        weighted().init(params)


def test_schedule_free_inside_and_before():
    inside = optax.contrib.schedule_free(optax.chain(weighted(), optax.sgd(0.1)), 0.1)
    before = optax.chain(weighted(), optax.contrib.schedule_free(optax.sgd(0.1), 0.1))
    (one, state), (two, _) = (problems.train(tx, problem(), 4)[-1] for tx in (inside, before))
    problems.assert_trees_close(one, two, 1e-6)
    assert transform.find_state(state).count == 4


def test_multi_steps_after_it_weighs_every_mini_batch():
    tx = optax.chain(weighted(), optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation())
    (first, state), (second, _) = problems.train(tx, problem(), 2)
    assert transform.find_state(state).count == 1
    problems.assert_trees_close(first, problem().params, 0)
    assert np.abs(second["w"] - first["w"]).max() > 0


def test_tree_get_and_set():
    tx = optax.chain(weighted(), optax.adam(0.1))
    _, state = problems.train(tx, problem(), 1)[-1]
    for name in ("weights", "losses", "interaction"):
        np.testing.assert_array_equal(optax.tree.get(state, name), getattr(ldro, name)(state))
    changed = optax.tree.set(state, weights=jnp.array([1.0, 0.0, 0.0]))
    np.testing.assert_array_equal(ldro.weights(changed), [1, 0, 0])


def test_tree_map_params_leaves_its_state_alone():
    # Trainers use this to find the parts of the state that are sharded like the parameters.
    tx = optax.chain(weighted(), optax.adam(0.1))
    state = tx.init(problem().params)
    marked = optax.tree.map_params(tx, lambda x: x + 1, state)
    jax.tree.map(
        np.testing.assert_array_equal, transform.find_state(marked), transform.find_state(state)
    )
    np.testing.assert_array_equal(optax.tree.get(marked, "mu")["w"], 1)

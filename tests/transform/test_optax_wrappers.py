"""The table of docs/optax.md: with each transformation it works, or says what to write instead."""

import inspect
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from helpers import problems
from helpers.wrapped import (
    ALL,
    AS_ANY,
    CONDITIONAL,
    LINE_SEARCHES,
    MASK,
    ONLY_AROUND,
    REFUSED,
    WITH_VALUE,
    one_update,
    problem,
    weighted,
)

from ldro_jax import interaction, ldro, transform
from ldro_jax.transform import forms

DOCS = pathlib.Path(__file__).parents[2] / "docs" / "optax.md"
TEXT = DOCS.read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
LOOPS = [code for code in EXAMPLES if "for batch in batches" in code]
# These are run in test_statistics.py, and in test_means.py and test_tap.py.
STEPS = [code for code in EXAMPLES if "ldro.statistics" in code or "ldro.Rows" in code]
CHAINS = [code for code in EXAMPLES if code not in LOOPS + STEPS]
NNX_LOOPS = [code for code in LOOPS if "nnx" in code]


@pytest.fixture(autouse=True)
def implicit_promotion():
    # Adam and MultiSteps multiply their int32 counts with floats.
    with jax.numpy_dtype_promotion("standard"):
        yield


def weights_after(tx, steps=3):
    return ldro.weights(problems.train(tx, problem(), steps)[-1][1])


@pytest.mark.parametrize("code", CHAINS)
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


def after_loop(code, model, batches):
    """What there is after the code of a loop, from the parameters of `problem` or a model on."""
    needs_newer = (
        "nnx.Optimizer" in code
        and "model" not in inspect.signature(nnx.Optimizer.update).parameters
    )
    if needs_newer:
        pytest.skip("nnx.Optimizer.update takes no model in this Flax")
    p = problem()
    names = {"jax": jax, "jnp": jnp, "ldro": ldro, "nnx": nnx, "optax": optax}
    names |= {"interaction": interaction, "loss_fn": p.loss_fn, "params": p.params, "model": model}
    names["batches"] = batches
    exec(code, names)
    return names


@pytest.mark.parametrize("code", LOOPS)
def test_the_loops_of_the_documentation_train(code):
    p = problem()

    def linear():
        return nnx.Linear(4, 1, rngs=nnx.Rngs(0))

    def loss(params, model):
        if "nnx" not in code:
            return p.losses(params).mean()
        return jnp.mean((model(p.batch["x"])[..., 0] - p.batch["y"]) ** 2)

    names = after_loop(code, linear(), [p.batch] * 10)
    assert loss(names["params"], names["model"]) < loss(p.params, linear())
    # None compiles anew in every step.
    assert ".jit\n" in code


class Noisy(nnx.Module):
    """Statistics of the inputs, and dropout."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.hidden = nnx.Linear(4, 16, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.output = nnx.Linear(16, 1, rngs=rngs)

    def __call__(self, x):
        return self.output(self.dropout(nnx.relu(self.hidden(self.norm(x)))))


@pytest.mark.parametrize("code", NNX_LOOPS)
def test_each_step_has_its_own_keys_and_moves_the_statistics_once(code):
    batch = problem().batch
    steps = 2
    once, twice = (after_loop(code, Noisy(), [batch] * count) for count in (steps - 1, steps))
    # The model after one step, called without jit, uses its keys and statistics up as NNX does.
    called = once["model"](batch["x"].reshape(-1, 4)).reshape(batch["y"].shape)
    expected = np.mean((np.asarray(called) - np.asarray(batch["y"])) ** 2, axis=1)
    np.testing.assert_allclose(ldro.losses(twice["opt_state"]), expected, rtol=1e-5)
    x = np.asarray(batch["x"], np.float64).reshape(-1, 4)
    old = 0.99**steps  # what is left of the mean 0 and the variance 1 that it begins with
    state = nnx.to_pure_dict(nnx.state(twice["model"]))["norm"]
    np.testing.assert_allclose(state["mean"], (1 - old) * x.mean(axis=0), rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(state["var"], old + (1 - old) * x.var(axis=0), rtol=1e-5)
    # What the two steps used is what two calls use.
    fresh = Noisy()
    for _ in range(steps):
        fresh(batch["x"].reshape(-1, 4))
    jax.tree.map(
        np.testing.assert_array_equal,
        nnx.to_pure_dict(nnx.state(twice["model"].dropout, nnx.RngCount)),
        nnx.to_pure_dict(nnx.state(fresh.dropout, nnx.RngCount)),
    )


@pytest.mark.skipif(not hasattr(nnx.Variable, "get_value"), reason="older Flax")
def test_the_state_of_an_nnx_optimizer_is_read_as_arrays():
    p = problem()

    def linear():
        return nnx.Linear(4, 1, rngs=nnx.Rngs(0))

    def loss_fn(params, task):
        outputs = nnx.merge(nnx.graphdef(linear()), params)(task["x"])
        return jnp.mean((outputs[:, 0] - task["y"]) ** 2)

    def one_step(gradient):
        model = linear()
        tx = optax.chain(weighted(), optax.sgd(0.1))
        optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
        optimizer.update(model, gradient, loss_fn=loss_fn, batch=p.batch)
        return model.kernel[...], optimizer.opt_state

    kernel, state = one_step(None)
    for read, shape in [(ldro.weights, (3,)), (ldro.losses, (3,)), (ldro.interaction, (3, 3))]:
        assert isinstance(read(state), jax.Array) and read(state).shape == shape
    leaves = jax.tree.leaves(transform.find_state(state), is_leaf=lambda x: hasattr(x, "get_value"))
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)
    assert not np.array_equal(kernel, linear().kernel[...])
    # A tree of zeros, as for the wrappers of Optax, is the same.
    zeros = jax.tree.map(jnp.zeros_like, nnx.state(linear()))
    np.testing.assert_array_equal(one_step(zeros)[0], kernel)


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


@pytest.mark.parametrize(
    "text",
    [
        TEXT.partition("## Which wrappers work")[0],
        ldro.transform.__doc__,
        transform.weighted.__doc__,
    ],
    ids=["docs", "ldro.transform", "transform.weighted"],
)
def test_the_keyword_arguments_of_update_are_named_where_a_user_looks(text):
    assert set(forms.Arguments._fields) <= set(re.findall(r"`(\w+)[^`]*`", text))


def test_every_row_of_the_table_is_tested():
    cells = re.findall(r"^\| (`.*?) \|", TEXT, re.MULTILINE)
    names = {name for cell in cells for name in re.findall(r"`(.*?)`", cell)}
    tested_by_name = {
        "chain",
        "named_chain",
        "inject_hyperparams",
        "contrib.schedule_free",
        "contrib.differentially_private_aggregate",
        "contrib.schedule_free_eval_params",
        "contrib.sophia",
        "experimental.aggregating.process",
        "flax.nnx.Optimizer",
        'tree.get(state, "weights")',
    }
    tables = [REFUSED, ONLY_AROUND, CONDITIONAL, AS_ANY, WITH_VALUE, LINE_SEARCHES]
    assert names == tested_by_name.union(*tables)


def test_what_is_refused_around_the_weighting_works_behind_it():
    start = problem().losses(problem().params).mean()
    for name, (wrap, _) in REFUSED.items():
        # Mechanize starts with tiny steps.
        steps = 100 if name == "contrib.mechanize" else 4
        if name == "partition":
            wrapped = optax.partition({True: optax.sgd(0.1), False: optax.sgd(0.1)}, MASK)
        else:
            wrapped = wrap(optax.sgd(0.1))
        params, state = problems.train(optax.chain(weighted(), wrapped), problem(), steps)[-1]
        assert problem().losses(params).mean() < start, name
        assert transform.find_state(state).count == steps


def test_a_mask_that_hides_nothing_works():
    expected, _ = one_update(weighted())
    for tx in (optax.masked(weighted(), ALL), optax.partition({True: weighted()}, ALL)):
        problems.assert_trees_close(one_update(tx)[0], expected, 1e-6)


@pytest.mark.parametrize("name", CONDITIONAL)
@pytest.mark.parametrize("jitted", [False, True])
def test_conditional_wrappers_take_a_tree_of_zeros(name, jitted):
    tx = CONDITIONAL[name](weighted())

    def update(state, updates="zeros"):
        return one_update(tx, state, updates)

    if jitted:
        update = jax.jit(update, static_argnames="updates")
    state = tx.init(problem().params)
    with pytest.raises(ValueError, match=r"conditionally_mask and .* Pass a tree of zeros"):
        update(state, None)
    expected, _ = one_update(weighted())
    taken, state = update(state)
    problems.assert_trees_close(taken, expected, 1e-6)
    left_out, state = update(state)
    problems.assert_trees_close(left_out, jax.tree.map(jnp.zeros_like, expected), 0)
    assert transform.find_state(state).count == 1


@pytest.mark.parametrize("name", [*CONDITIONAL, *WITH_VALUE, *AS_ANY])
def test_works_behind_the_weighting(name):
    behind = {
        **{
            key: optax.chain(wrap(optax.clip(1.0)), optax.sgd(0.1))
            for key, wrap in CONDITIONAL.items()
        },
        **WITH_VALUE,
        **AS_ANY,
    }
    tx = optax.chain(weighted(), behind[name])
    params, _ = problems.train(tx, problem(), 3, value=jnp.float32(2.0))[-1]
    assert problem().losses(params).mean() < problem().losses(problem().params).mean()


@pytest.mark.parametrize("name", LINE_SEARCHES)
def test_a_line_search_wants_the_gradient_beforehand(name):
    with pytest.raises(TypeError, match="'value', 'grad', and 'value_fn'"):
        one_update(optax.chain(weighted(), LINE_SEARCHES[name]))


def test_sophia_wants_a_function_whose_hessian_it_takes():
    with pytest.raises(ValueError, match="obj_fn must be provided"):
        one_update(optax.chain(weighted(), optax.contrib.sophia(0.1)))


def test_private_aggregation_takes_the_first_axis_for_examples():
    p = problems.least_squares()
    private = optax.contrib.differentially_private_aggregate(1.0, 0.1, key=0)
    tx = optax.chain(weighted(), private)
    updates, _ = tx.update(None, tx.init(p.params), p.params, loss_fn=p.loss_fn, batch=p.batch)
    assert updates["w"].shape != p.params["w"].shape


def test_as_the_aggregator_of_stacked_gradients():
    p = problem()
    gradients, arguments = problems.form_arguments("stacked", p, p.params)
    aggregating = pytest.importorskip("optax.experimental.aggregating")
    tx = aggregating.process(
        optax.with_extra_args_support(optax.identity()),
        weighted(),
        optax.with_extra_args_support(optax.sgd(1.0)),
    )
    found, _ = tx.update(gradients, tx.init(p.params), p.params, **arguments)
    expected, _ = one_update(weighted())
    problems.assert_trees_close(found, jax.tree.map(jnp.negative, expected), 1e-6)


def test_schedule_free_inside_and_before():
    inside = optax.contrib.schedule_free(optax.chain(weighted(), optax.sgd(0.1)), 0.1)
    before = optax.chain(weighted(), optax.contrib.schedule_free(optax.sgd(0.1), 0.1))
    (one, state), (two, other) = (problems.train(tx, problem(), 4)[-1] for tx in (inside, before))
    problems.assert_trees_close(one, two, 1e-6)
    assert transform.find_state(state).count == 4
    average = optax.contrib.schedule_free_eval_params
    problems.assert_trees_close(average(state, one), average(other[1], two), 1e-6)
    assert np.abs(average(state, one)["w"] - one["w"]).max() > 1e-3
    with pytest.raises(AttributeError, match="no attribute 'b1'"):
        average(other, two)


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

"""Parameters and gradients as other libraries hold them, with stand-ins for those not installed."""

import collections
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import core, nnx, serialization
from helpers import oracles, problems

from ldro_jax import interaction, ldro, transform, weighting

PROBLEM = problems.mlp()
N = 5


@functools.cache
def task_gradients():
    return oracles.task_gradients(*PROBLEM)


class Variable:
    """As a variable of Keras is seen from outside: no array, though it looks like one."""

    def __init__(self, value):
        self.value, self.shape, self.dtype = value, value.shape, str(value.dtype)

    def __repr__(self):
        return f"<Variable shape={self.shape}>"


class Parameter:
    """As a parameter of Penzai."""


Variable.__module__ = "keras.src.backend.common.variables"
Parameter.__module__ = "penzai.core.variables"

NO_ARRAYS = [
    (jax.nn.relu, r"\['act'\] must be an array, but it is of type .*eqx\.filter\(model, "),
    (Variable(jnp.ones(2)), r"\['act'\] .*Variable shape=\(2,\).*\[v\.value for v in model"),
    (Parameter(), r"\['act'\] .*type Parameter.*pz\.unbind_params\(model, freeze=True\)"),
    ("relu", r"\['act'\] .*of type str: 'relu'"),
    (0.5, r"\['act'\] must be an array, but it is the Python number 0\.5. Write jnp\.asarray"),
]


def arguments(form):
    updates, given = problems.form_arguments(form, PROBLEM, PROBLEM.params)
    return {"updates": updates} | given


def at_init(params):
    transform.weighted(weighting.average(), N).init(params)


def in_update(form):
    def update(params):
        tx = transform.weighted(weighting.lookahead_online(0.1, 0.5), N)
        tx.update(state=tx.init(PROBLEM.params), params=params, **arguments(form))

    return update


def measured_by(name):
    def measure(params):
        strategy = interaction.get(name)
        for function in (strategy.matrix, strategy.gradients, strategy.pullback):
            if function is not None:
                with pytest.raises(ValueError) as error:
                    function(PROBLEM.loss_fn, params, PROBLEM.batch)
        raise error.value

    return measure


PLACES = {
    "init": at_init,
    "jacobian_gram": lambda params: interaction.jacobian_gram(PROBLEM.losses, params),
    "choose": lambda params: interaction.choose(PROBLEM.loss_fn, params, PROBLEM.batch),
    **{form: in_update(form) for form in problems.FORMS},
    **{name: measured_by(name) for name in ("auto", "split", *interaction.STRATEGIES)},
}


@pytest.mark.parametrize("place", PLACES)
def test_a_leaf_that_is_no_array_is_named(place):
    for leaf, message in NO_ARRAYS:
        with pytest.raises(ValueError, match=f"^params{message}") as error:
            PLACES[place](PROBLEM.params | {"act": leaf})
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("place", ["init", *problems.FORMS])
def test_what_no_gradient_flows_to_is_named(place):
    for leaf in (jnp.arange(3), jnp.array(True), jax.random.key(0)):
        with pytest.raises(ValueError, match=r"params\['n'\] must hold floating.*`trainable`"):
            PLACES[place](PROBLEM.params | {"n": leaf})


def test_an_integer_that_is_not_trained_may_stay():
    params = PROBLEM.params | {"n": jnp.arange(3)}
    mask = {name: name != "n" for name in params}
    tx = ldro.transform(N, lookahead_lr=0.1, weight_lr=0.5, trainable=mask)
    given = arguments("layout")
    updates, state = problems.update(tx, state=tx.init(params), params=params, **given)
    np.testing.assert_array_equal(updates["n"], 0)
    expected = task_gradients() @ task_gradients().T
    np.testing.assert_allclose(
        ldro.interaction(state), expected, atol=1e-5 * np.abs(expected).max()
    )


@pytest.mark.parametrize(
    "params", [PROBLEM.params, (PROBLEM.params,), ((PROBLEM.params["w"],),), (jnp.ones(2),) * 2]
)
def test_the_pullback_of_jax_is_taken_as_it_is(params):
    def losses_fn(params):
        total = sum(map(jnp.sum, jax.tree.leaves(params)))
        return jnp.stack([total, 3 * total])

    losses, pullback = jax.vjp(losses_fn, params)
    tx = transform.weighted(weighting.average(), 2)
    for pull in (pullback, lambda weights: pullback(weights)[0]):
        found, _ = tx.update(None, tx.init(params), params, losses=losses, pullback=pull)
        problems.assert_trees_close(found, jax.tree.map(lambda x: 0 * x + 2, params), 1e-6)


Fields = collections.namedtuple("Fields", ["w", "heads", "b"])
CONTAINERS = {
    "dict": dict,
    "FrozenDict": core.freeze,
    "NamedTuple": lambda tree: Fields(**tree),
    "nnx.State": lambda tree: nnx.State(jax.tree.map(nnx.Param, tree)),
}


def as_dict(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {getattr(path[0], "key", None) or path[0].name: leaf for path, leaf in leaves}


@pytest.mark.parametrize("outer, inner", list(itertools.permutations(CONTAINERS, 2)))
def test_trees_of_the_same_leaves_may_mix(outer, inner):
    params, wrap = CONTAINERS[outer](PROBLEM.params), CONTAINERS[inner]
    tx = transform.weighted(weighting.lookahead_online(0.1, 0.5), N, interaction_interval=1)
    extra = wrap(jax.tree.map(jnp.ones_like, PROBLEM.params))
    for form in ("layout", "forward", "stacked"):
        updates, given = problems.form_arguments(form, PROBLEM, PROBLEM.params)
        if form == "layout":
            given = {
                "losses_fn": lambda params: PROBLEM.losses(as_dict(params)),
                "preconditioner": extra,
            }
        if form == "forward":
            given["pullback"] = lambda weights, pull=given["pullback"]: wrap(pull(weights))
        updates = extra if updates is None else wrap(updates)
        found, state = problems.update(tx, updates, tx.init(params), params, **given)
        assert jax.tree.structure(found) == jax.tree.structure(params)
        gradient = np.asarray(state.weights, np.float64) @ task_gradients()
        flat = np.concatenate([np.ravel(as_dict(found)[name]) for name in sorted(PROBLEM.params)])
        expected = gradient if form == "stacked" else gradient + 1
        np.testing.assert_allclose(flat, expected, atol=1e-5)


def test_losses_in_a_list_and_keys_in_a_batch_are_taken():
    mine = [jax.tree.map(lambda x: x[i], PROBLEM.batch) for i in range(N)]  # noqa: B023
    keys = jax.random.split(jax.random.key(0), N)
    tx = transform.weighted(weighting.lookahead_online(0.1, 0.5), N, interaction="vmap")
    expected = task_gradients() @ task_gradients().T
    in_a_list = lambda p: [PROBLEM.loss_fn(p, task) for task in mine]  # noqa: E731
    for given in (
        {"losses_fn": in_a_list},
        ldro.statistics(in_a_list, PROBLEM.params),
        {
            "loss_fn": lambda p, task: PROBLEM.loss_fn(p, task[0]) + 0 * jax.random.normal(task[1]),
            "batch": (PROBLEM.batch, keys),
        },
    ):
        _, state = problems.update(tx, None, tx.init(PROBLEM.params), PROBLEM.params, **given)
        found = ldro.interaction(state)
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_shapes_with_a_frozen_key_are_parameters():
    params = jax.eval_shape(lambda: PROBLEM.params | {"key": jax.random.key(0)})
    mask = {name: name != "key" for name in params}
    transform.weighted(weighting.average(), N, trainable=mask).init(params)


def test_what_differs_is_named():
    params = {"a": {"w": jnp.ones((2, 3)), "b": jnp.ones(2)}}
    tx = transform.weighted(weighting.average(), 2)

    def update(gradient):
        given = {"losses": jnp.ones(2), "pullback": lambda weights: gradient}
        return tx.update(None, tx.init(params), params, **given)

    for gradient, message in (
        (
            {"a": {"w": jnp.ones((3, 2)), "b": jnp.ones(2)}},
            r"leaf \['a'\]\['w'\] has shape \(3, 2\) ",
        ),
        ({"a": {"w": jnp.ones((2, 3))}}, r"it has no leaf \['a'\]\['b'\]"),
        (params | {"c": jnp.ones(2)}, r"they have no leaf \['c'\]"),
        (jnp.ones(2), r"it has no leaf \['a'\]"),
    ):
        with pytest.raises(ValueError, match=f"The gradient must .* parameters, but .*{message}"):
            update(gradient)


@pytest.mark.parametrize("interval", [1, 2])
def test_a_masked_preconditioner_needs_a_mask_of_the_interaction(interval):
    mask = {"w": True, "b": False, "heads": True}
    labels = {name: "train" if trained else "freeze" for name, trained in mask.items()}
    parts = {"train": optax.rmsprop(0.1), "freeze": optax.set_to_zero()}
    gradients = jax.grad(lambda p: PROBLEM.losses(p).sum())(PROBLEM.params)
    optimizer = optax.partition(parts, labels)
    _, state = optimizer.update(gradients, optimizer.init(PROBLEM.params))

    def update(**options):
        options |= {"lookahead_lr": 0.1, "weight_lr": 0.5, "interaction_interval": interval}
        tx = ldro.transform(N, **options)
        given = {"preconditioner": ldro.preconditioner(state), **arguments("tasks")}
        return problems.update(tx, state=tx.init(PROBLEM.params), params=PROBLEM.params, **given)

    with pytest.raises(ValueError, match=r"\['b'\] is masked; mark it False in `trainable`"):
        update()
    squares = {name: g**2 / 10 for name, g in gradients.items()}
    factors = [np.ravel(mask[k] / (np.sqrt(squares[k]) + 1e-8)) for k in sorted(mask)]
    rows = task_gradients()
    expected = (rows * np.concatenate(factors)) @ rows.T
    found = ldro.interaction(update(trainable=mask)[1])
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    strategy = interaction.preconditioned(interaction.get("vmap"), ldro.preconditioner(state))
    with pytest.raises(ValueError, match=r"\['b'\] is masked"):
        strategy.matrix(*PROBLEM)


class NamedArray:
    """As an array of Haliax is seen from outside."""

    def __init__(self, array):
        self.array = array


jax.tree_util.register_pytree_node(
    NamedArray, lambda x: ((x.array,), None), lambda _, parts: NamedArray(*parts)
)


def test_losses_in_a_container_are_named():
    tx = transform.weighted(weighting.average(), N)
    state = tx.init(PROBLEM.params)
    tasks = {
        "loss_fn": lambda *both: NamedArray(PROBLEM.loss_fn(*both)),
        "batch": PROBLEM.batch,
    }
    layout = {"losses_fn": lambda params: NamedArray(PROBLEM.losses(params))}
    for given in (tasks, layout):
        with pytest.raises(
            ValueError, match=r"must return one .*NamedArray.* Return its `\.array`"
        ):
            tx.update(None, state, PROBLEM.params, **given)
    with pytest.raises(ValueError, match=r"must return one array.* it returns a dict"):
        tx.update(None, state, PROBLEM.params, losses_fn=lambda p: {"a": PROBLEM.losses(p)})


def test_a_state_restored_without_its_types_says_how_to_restore_it():
    # Orbax makes dicts of named tuples and lists of others; Flax dicts of all.
    tx = optax.chain(transform.weighted(weighting.group_dro(0.5), N), optax.adam(0.1))
    state = tx.init(PROBLEM.params)
    by_flax = serialization.msgpack_restore(serialization.to_bytes(state))
    weighted, (adam, *_) = state
    by_orbax = [weighted._asdict(), [adam._asdict(), None]]
    how = r"StandardRestore\(target\).*from_state_dict\(target"
    for restored in (by_flax, by_orbax, {"opt_state": by_flax}):
        for read in (ldro.weights, ldro.diagnose, ldro.preconditioner, transform.find_state):
            with pytest.raises(ValueError, match=f"restored without its types.*{how}"):
                read(restored)
    for restored in (by_flax, by_orbax):
        with pytest.raises(ValueError, match=f"needs the WeightedState.*{how}"):
            tx.update(state=restored, params=PROBLEM.params, **arguments("tasks"))
    whole = serialization.from_state_dict(state, by_flax)
    np.testing.assert_array_equal(ldro.weights(whole), ldro.weights(state))
    with pytest.raises(ValueError, match=r"found 0\. Was the optimizer built with"):
        ldro.weights({"weights": jnp.ones(N), "mu": {}})

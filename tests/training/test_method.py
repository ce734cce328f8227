"""Methods by name, and what a record keeps of them."""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldro_jax import ldro, transform, weighting
from ldro_jax.training import method as method_lib
from ldro_jax.training.method import Method


def test_an_unknown_method_lists_the_known():
    with pytest.raises(ValueError, match="weighting must be .*, but it is 'ldro'") as error:
        Method("L-DRO", "ldro")
    for name in weighting.METHODS:
        assert name in str(error.value)


@pytest.mark.parametrize(
    ("hyperparameters", "message"),
    [
        ({"rate": 1}, r"takes the hyperparameters \(weight_lr.*was given {'rate': 1}"),
        ({"weight_lr": 0.1, "rate": 1}, "rate is unknown"),
        ({}, "weight_lr is missing"),
        ({"weight_lr": -1.0}, "weight_lr must be a number in"),
        ({"weight_lr": "0.1"}, "weight_lr must be a number in"),
    ],
)
def test_wrong_hyperparameters_are_explained(hyperparameters, message):
    with pytest.raises(ValueError, match=message):
        weighting.create("group_dro", hyperparameters)


def test_settings_tell_methods_apart():
    assert Method("a", "average", interaction_interval=7).settings() == {}
    lookahead = Method("b", "lookahead_exact", {"lookahead_lr": 0.1}, interaction_interval=7)
    assert lookahead.settings() == {"lookahead_lr": 0.1, "interaction_interval": 7}
    floored = Method("c", "group_dro", {"weight_lr": 0.1}, floor=0.2)
    assert floored.settings() == {"weight_lr": 0.1, "floor": 0.2}


GROUP_DRO = Method("DRO", "group_dro", {"weight_lr": 1, "adjustment": 0.5, "group_sizes": [1, 2]})


def test_rates_are_the_real_numbers():
    rates = GROUP_DRO.rates()
    assert rates == {"weight_lr": 1.0, "adjustment": 0.5}
    assert all(type(value) is float for value in rates.values())
    flagged = {"lookahead_lr": 0.1, "weight_lr": 2, "normalize_interaction": False}
    assert Method("L-DRO", "lookahead_online", flagged).rates().keys() == {
        "lookahead_lr",
        "weight_lr",
    }
    assert Method("Average", "average").rates() == {}


@pytest.mark.parametrize(
    "method",
    [
        Method("PCGrad", "pcgrad", {"seed": 1}),
        Method("Mixing", "static_mixing", {"sizes": [1.0, 2.0], "exponent": 0.3}),
    ],
    ids=lambda method: method.name,
)
def test_what_is_needed_while_a_weighting_is_made_is_no_rate(method):
    assert method.rates() == {}
    changed = {name: 3 if name != "sizes" else [1.0, 3.0] for name in method.hyperparameters}
    other = dataclasses.replace(method, hyperparameters=changed)
    assert other.compile_key() != method.compile_key()


@pytest.mark.parametrize("weight_lr", [0.5, 3])
def test_rates_take_the_place_of_the_hyperparameters(weight_lr):
    method = Method("DRO", "group_dro", {"weight_lr": 1.0})
    other = dataclasses.replace(method, hyperparameters={"weight_lr": weight_lr})
    params, losses = jnp.zeros(2), jnp.array([1.0, 2.0])
    gradients = jnp.eye(2)

    def weights(tx):
        return tx.update(gradients, tx.init(params), params, losses=losses)[1].weights

    traced = jax.jit(lambda rates: weights(method.transform(2, rates)))
    found = traced({"weight_lr": np.float32(weight_lr)})
    np.testing.assert_allclose(found, weights(other.transform(2)), rtol=1e-6)


def test_a_program_is_shared_by_methods_that_differ_in_name_and_rates():
    same = dataclasses.replace(
        GROUP_DRO,
        name="another",
        hyperparameters={"group_sizes": [1, 2], "adjustment": 2, "weight_lr": 0.01},
    )
    assert same.compile_key() == GROUP_DRO.compile_key()
    assert len({same.compile_key(), GROUP_DRO.compile_key()}) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"weighting": "baselined_dro", "hyperparameters": {"weight_lr": 1.0}},
        {"interaction": "scan"},
        {"interaction_interval": 7},
        {"lagged": True},
        {"floor": 0.1},
        {"hyperparameters": {"weight_lr": 1.0}},
        {"hyperparameters": {"weight_lr": 1.0, "group_sizes": [1, 2]}},
        {"hyperparameters": {"weight_lr": 1.0, "adjustment": 0.5, "group_sizes": [1, 3]}},
    ],
    ids=str,
)
def test_everything_else_needs_a_program_of_its_own(change):
    assert dataclasses.replace(GROUP_DRO, **change).compile_key() != GROUP_DRO.compile_key()


def _tilted(strength):
    """A weighting from outside the library."""
    return weighting.interpolated(0.5)._replace(
        update=lambda statistics, state: (jax.nn.softmax(strength * statistics.losses), state)
    )


@pytest.mark.parametrize(
    ("given", "hyperparameters", "rates"),
    [(_tilted, {"strength": 2.0}, {"strength": 2.0}), (_tilted(2.0), {}, {})],
    ids=["a function that makes it", "a weighting"],
)
def test_a_weighting_of_ones_own_needs_no_name(given, hyperparameters, rates):
    method = Method("Tilted", given, hyperparameters)
    assert method.rates() == rates and method.settings() == hyperparameters
    params, losses = jnp.zeros(2), jnp.array([1.0, 2.0])
    tx = method.transform(2)
    state = tx.update(jnp.eye(2), tx.init(params), params, losses=losses)[1]
    np.testing.assert_allclose(state.weights, jax.nn.softmax(2 * losses), rtol=1e-6)
    assert dataclasses.replace(method, name="b").compile_key() == method.compile_key()
    assert method.compile_key() != Method("Average", "average").compile_key()


def test_numbers_and_arrays_of_numpy_are_as_good_as_pythons():
    sizes = np.array([1, 2])
    given = {"weight_lr": np.int64(1), "adjustment": np.float64(0.5), "group_sizes": sizes}
    method = Method("DRO", "group_dro", given)
    assert method.rates() == GROUP_DRO.rates() and method.settings() == GROUP_DRO.settings()
    assert method.compile_key() == GROUP_DRO.compile_key()


def test_a_flag_needs_a_program_of_its_own():
    one, other = (
        Method("L-DRO", "lookahead_exact", {"lookahead_lr": 0.1, "normalize_interaction": flag})
        for flag in (True, False)
    )
    assert one.compile_key() != other.compile_key()


def test_a_grid_is_every_combination():
    method = Method("L-DRO", "lookahead_online", {"lookahead_lr": 0.1, "weight_lr": 0.2})
    values = {"weight_lr": [1.0, 2.0], "interaction_interval": (1, 10), "floor": [0.3]}
    found = method_lib.grid(method, values)
    assert [(m.hyperparameters["weight_lr"], m.interaction_interval) for m in found] == [
        (1.0, 1),
        (1.0, 10),
        (2.0, 1),
        (2.0, 10),
    ]
    for each in found:
        assert each.name == "L-DRO" and each.floor == 0.3
        assert each.hyperparameters.keys() == {"lookahead_lr", "weight_lr"}
        assert each.hyperparameters["lookahead_lr"] == 0.1
    assert method.hyperparameters == {"lookahead_lr": 0.1, "weight_lr": 0.2}


def test_a_grid_may_set_what_the_method_lacks_and_may_be_empty():
    method = Method("DRO", "group_dro")
    (found,) = method_lib.grid(method, {"weight_lr": [0.1]})
    assert found == Method("DRO", "group_dro", {"weight_lr": 0.1})
    assert method_lib.grid(method, {}) == [method]


def test_every_door_has_the_same_settings_and_defaults():
    # In the signatures, where editors and optax.inject_hyperparams look for them.
    def defaults(function):
        parameters = inspect.signature(function).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}

    expected = defaults(transform.weighted)
    assert expected.items() <= defaults(ldro.transform).items()
    fields = {field.name: field.default for field in dataclasses.fields(Method)}
    del expected["trainable"]  # an argument of Method.transform
    assert expected.items() <= fields.items()


@pytest.mark.parametrize("options", [0.1, "0.1", [], (), None, {0.1, 0.2}], ids=str)
def test_a_grid_needs_values_for_each_setting(options):
    with pytest.raises(ValueError, match="weight_lr.* must be a list of values"):
        method_lib.grid(Method("DRO", "group_dro"), {"weight_lr": options})

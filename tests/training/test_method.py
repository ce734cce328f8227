"""Methods by name, and what a record keeps of them."""

import pytest

from ldro_jax import weighting
from ldro_jax.training.method import Method


def test_an_unknown_method_lists_the_known():
    with pytest.raises(ValueError, match="Unknown method 'ldro'") as error:
        Method("L-DRO", "ldro").transform(3)
    for name in weighting.METHODS:
        assert name in str(error.value)


@pytest.mark.parametrize(
    ("hyperparameters", "message"),
    [
        ({"rate": 1}, r"takes the hyperparameters \(weight_lr.*was given {'rate': 1}"),
        ({"weight_lr": 0.1, "rate": 1}, "unexpected keyword argument 'rate'"),
        ({}, "missing a required argument: 'weight_lr'"),
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

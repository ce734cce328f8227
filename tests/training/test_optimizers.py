"""Optimizers: Optax's own behaviour, and arguments that are checked before."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ldro_jax import optimizers


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (optax.sgd, {"learning_rate": 0.1, "momentum": 0.9, "nesterov": True}),
        (optax.sgd, {"learning_rate": optax.linear_schedule(0.1, 0.0, 3)}),
        (optax.adam, {"learning_rate": 0.1, "b1": 0.8}),
        (optax.adamw, {"learning_rate": 0.1, "weight_decay": 0.3}),
    ],
)
def test_a_checked_optimizer_is_optax_s(make, options):
    checked = optimizers.checked(make)
    assert checked.__name__ == make.__name__
    assert inspect.getfullargspec(checked).args == inspect.getfullargspec(make).args
    params, found = jnp.array([1.0, -2.0]), []
    with jax.numpy_dtype_promotion("standard"):
        for tx in (make(**options), checked(**options)):
            state = tx.init(params)
            for _ in range(3):
                updates, state = tx.update(params, state, params)
            found.append(np.asarray(updates))
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (optax.sgd, {"learning_rate": -0.1}, r"learning_rate must be a number in \[0, inf\)"),
        (optax.sgd, {"learning_rate": None}, "learning_rate must be a number"),
        (optax.sgd, {"learning_rate": 0.1, "momentum": 1.5}, r"momentum must be .* \[0, 1\)"),
        (optax.sgd, {"learning_rate": 0.1, "nesterov": "no"}, "nesterov must be True or False"),
        (optax.adam, {"learning_rate": 0.1, "b2": 1}, r"b2 must be a number in \[0, 1\)"),
        (optax.adamw, {"learning_rate": 0.1, "weight_decay": "0"}, "weight_decay must be"),
        (
            optax.cosine_decay_schedule,
            {"init_value": 0.1, "decay_steps": 1.5},
            "decay_steps must be a positive integer",
        ),
    ],
)
def test_arguments_out_of_range_are_named(make, options, message):
    with pytest.raises(ValueError, match=message):
        optimizers.checked(make)(**options)


def test_what_is_missing_is_named_by_optax():
    with pytest.raises(TypeError, match="sgd.. missing 1 required .*'learning_rate'"):
        optimizers.checked(optax.sgd)(momentum=0.9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": float("inf")}, "learning_rate must be a number"),
        (
            {"warmup_steps": 10},
            "warmup_steps must be less than train_steps, but they are 10 and 10",
        ),
        ({"warmup_steps": -1}, "warmup_steps must be an integer of at least 0"),
        ({"train_steps": 10.0}, "train_steps must be a positive integer"),
        ({"b1": 1.0}, "b1 must be a number"),
        ({"clip_norm": 0}, r"clip_norm must be a number in \(0, inf\)"),
        ({"final_learning_rate": -1.0}, "final_learning_rate must be a number"),
    ],
)
def test_the_optimizer_of_language_models_is_checked(options, message):
    with pytest.raises(ValueError, match=message):
        optimizers.adam(**{"learning_rate": 0.1, "warmup_steps": 1, "train_steps": 10} | options)

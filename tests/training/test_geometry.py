"""Runs that look ahead in the geometry of their optimizer."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import tiny

from ldro_jax import ldro, optimizers, transform
from ldro_jax.training import Method
from ldro_jax.training.engine import Trial

LDRO = Method(
    "L-DRO", "lookahead_online", {"lookahead_lr": 0.1, "weight_lr": 1.0}, interaction_interval=1
)
PROPORTIONAL = optax.rmsprop(0.01)


def fourfold(opt_state):
    squares = optax.tree_utils.tree_get(opt_state, "nu")
    return jax.tree.map(lambda x: jnp.full_like(x, 4), squares)


def measured(make, geometry, *, steps=3, interval=1, optimizer=PROPORTIONAL, **options):
    method = dataclasses.replace(LDRO, geometry=geometry, interaction_interval=interval)
    session = make(method, optimizer=optimizer, **options).start([Trial(method, 0)])
    session.advance(steps, lambda step: False, tiny.Progress())
    return np.asarray(transform.find_state(session.state(0).opt_state).interaction)


@pytest.mark.parametrize("make", [tiny.stacked, tiny.meshed])
@pytest.mark.parametrize("interval", [1, 2])
def test_the_interaction_is_that_of_the_geometry(make, interval):
    # In the first step the weights are made from it, and are others: compare that step alone.
    plain, four = (measured(make, g, steps=1, interval=interval) for g in ("euclidean", fourfold))
    np.testing.assert_allclose(four, 4 * plain, rtol=1e-4)


@pytest.mark.heavy  # as the test below does, whose optimizer has a decay of its own
@pytest.mark.parametrize("make", [tiny.stacked, tiny.meshed])
def test_the_optimizers_is_found(make):
    found = measured(make, "optimizer")
    np.testing.assert_array_equal(found, measured(make, ldro.preconditioner))
    assert not np.allclose(found, measured(make, "euclidean"), rtol=0.1)


@pytest.mark.parametrize("make", [tiny.stacked, tiny.meshed])
def test_with_its_own_decay(make):
    adam = optimizers.adam(0.01, warmup_steps=1, train_steps=9, b2=0.5)
    given = functools.partial(ldro.preconditioner, decay=0.5)
    options = {"optimizer": adam, "steps": 4}
    with jax.numpy_dtype_promotion("standard"):  # Optax's own schedules need it
        found, same, other = (
            measured(make, geometry, **options)
            for geometry in ("optimizer", given, ldro.preconditioner)
        )
    np.testing.assert_allclose(found, same, rtol=1e-5)
    assert not np.allclose(found, other, rtol=0.1)


def test_an_optimizer_without_one_is_refused_before_training():
    method = dataclasses.replace(LDRO, geometry="optimizer")
    with pytest.raises(ValueError, match="needs one set of running squared gradients"):
        tiny.stacked(method).check()
    with pytest.raises(ValueError, match="geometry must be"):
        dataclasses.replace(LDRO, geometry="adam")


def test_what_has_no_effect_is_not_recorded():
    method = Method("A", "average", interaction="split", interaction_rows=7, geometry="optimizer")
    assert method.settings() == {}
    measured = {name: dataclasses.replace(LDRO, interaction=name) for name in ("split", "vmap")}
    for name, other in measured.items():
        assert other.settings()["interaction"] == name


def test_records_tell_it_apart():
    assert "geometry" not in LDRO.settings()
    for geometry, name in [("optimizer", "optimizer"), (fourfold, "fourfold")]:
        method = dataclasses.replace(LDRO, geometry=geometry)
        assert method.settings()["geometry"] == name
        assert method.compile_key() != LDRO.compile_key()

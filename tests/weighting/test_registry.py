"""What is known of a method by its name is what its weighting says."""

# Annotations are strings here, which must make no difference.
from __future__ import annotations

import dataclasses
import inspect
import typing

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import tiny_lm

from ldro_jax import ldro, transform, weighting
from ldro_jax.training.method import Method
from ldro_jax.weighting import about, base

# How often the lookahead methods and the signal's are measured; all others are in every step.
INTERVALS = {"lookahead_exact": 1, "lookahead_online": 100, "signal": 20, "smooth_lookahead": 1}


def every_setting(name):
    """All hyperparameters of a method that have a value."""
    parameters = inspect.signature(weighting.METHODS[name]).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default not in (p.empty, None)}
    said = weighting.ABOUT[name]
    # An adjustment is a number only where there are sizes.
    given = said.variants["adjusted"] if name == "group_dro" else said.usual
    return defaults | about.settings(given, np.arange(1, 5))


@pytest.mark.parametrize("name", weighting.METHODS)
def test_rates_are_the_numbers_that_may_be_arrays(name):
    given = every_setting(name)
    annotated = typing.get_type_hints(weighting.METHODS[name])
    expected = {
        key
        for key, value in given.items()
        if type(value) in (int, float) and jax.Array in typing.get_args(annotated[key])
    }
    assert weighting.rates(name, given) == expected
    assert Method("a", name, given).rates().keys() == expected


@pytest.mark.parametrize("name", weighting.METHODS)
def test_the_interaction_is_measured_as_the_weighting_says(name):
    made = weighting.create(name, every_setting(name))
    method = Method("a", name, every_setting(name))
    assert method.uses_interaction == made.uses_interaction
    assert made.default_interval == INTERVALS.get(name, 1) == method.interval
    assert weighting.with_floor(made, 0.1).default_interval == made.default_interval
    recorded = method.settings().get("interaction_interval")
    assert recorded == (made.default_interval if made.uses_interaction else None)


def test_an_adjustment_without_sizes_is_no_rate():
    # Given as an array it would need the sizes.
    assert weighting.rates("group_dro", {"weight_lr": 0.1, "adjustment": 0.0}) == {"weight_lr"}


def strings(gain: optax.ScalarOrSchedule, order: int = 2, flag: bool = False) -> base.Weighting:
    return bare(gain, order, flag)


def bare(gain, order=2, flag=False):
    """Moves to the tasks whose gradients are largest; all but ``gain`` is needed in Python."""
    base.check_range("gain", gain)
    assert isinstance(order, int) and isinstance(flag, bool)

    def direction(statistics, weights):
        del weights
        return base.value_at(gain, statistics) * jnp.diagonal(statistics.interaction) ** order

    made = base.exponentiated_gradient(direction, uses_interaction=True)
    return made._replace(default_interval=7)


@pytest.fixture(params=[strings, bare], ids=["strings", "bare"])
def mine(request, monkeypatch):
    monkeypatch.setitem(weighting.METHODS, "mine", request.param)
    return "mine"


def test_annotations_make_no_difference(mine):
    given = {"gain": 2, "order": 3, "flag": True}
    assert weighting.rates(mine, given) == {"gain"}
    method = Method("Mine", mine, given)
    assert method.uses_interaction and method.interval == 7
    assert method.rates() == {"gain": 2.0}
    other = Method("Mine", mine, given | {"gain": 0.5})
    assert other.compile_key() == method.compile_key()
    assert Method("Mine", mine, given | {"order": 1}).compile_key() != method.compile_key()


def test_a_method_may_take_any_hyperparameters(monkeypatch):
    monkeypatch.setitem(weighting.METHODS, "open", lambda gain, **options: bare(gain, **options))
    assert weighting.lacking("open", {"order": 1}) == ["gain"]
    assert weighting.rates("open", {"gain": 0.1, "order": 1}) == {"gain"}


def test_a_new_method_measures_on_as_many_rows_of_each_task(mine):
    method = Method("Mine", mine, {"gain": 0.1}, sampling="weights")
    program = tiny_lm.make_program(method)
    probabilities = np.array([1, 0, 0, 0], np.float32)
    drawer = dataclasses.replace(program.feed.drawer(method, 0), probabilities=probabilities)
    draw, _ = drawer.next()
    batch, _ = program.feed.batch(program.problem.source(0), drawer)
    # All rows to train on are of one task. Those to measure on are others, of each.
    assert set(draw.tasks) == {0}
    assert batch.measured.shape == (tiny_lm.BATCH_SIZE, tiny_lm.LENGTH)
    assert not (np.asarray(batch.measured) == np.asarray(batch.rows)).all()


def measured(tx, *, steps=3):
    """In which steps the interaction of gradients that change is measured."""
    params, found = jnp.zeros(2), []
    update = jax.jit(lambda g, s: tx.update(g, s, params, losses=jnp.array([1.0, 2.0])))
    state = tx.init(params)
    for step in range(steps):
        before = transform.find_state(state).interaction
        _, state = update(jnp.eye(2) * (step + 1.0), state)
        found.append(bool((transform.find_state(state).interaction != before).any()))
    return found


# Gradients of whole tasks have no halves, whose difference is the noise.
@pytest.mark.parametrize("name", [name for name in INTERVALS if name != "signal"])
def test_every_door_has_the_same_default(name):
    hyperparameters = weighting.usual(name, 2)
    made = weighting.create(name, hyperparameters)
    expected = [True, *[INTERVALS[name] == 1] * 2]
    assert measured(transform.weighted(made, 2)) == expected
    floored = weighting.with_floor(made, 0.1)
    assert measured(transform.weighted(floored, 2)) == expected
    assert measured(Method("a", name, hyperparameters, floor=0.1).transform(2)) == expected
    fronts = {
        "lookahead_online": {"weight_lr": 0.1},
        "lookahead_exact": {"exact": True},
        "smooth_lookahead": {"temperature": 0.1},
    }
    assert measured(ldro.transform(2, lookahead_lr=0.1, **fronts[name])) == expected


def test_an_interval_of_numpy_is_an_interval():
    rates = {"lookahead_lr": 0.1, "weight_lr": 0.1}
    method = Method("a", "lookahead_online", rates, interaction_interval=np.int64(2))
    assert measured(method.transform(2)) == [True, False, True]
    assert type(method.settings()["interaction_interval"]) is int


def test_what_the_data_gives():
    assert weighting.from_data("static_mixing", {"exponent": 1.0}) == ["sizes"]
    assert weighting.from_data("static_mixing", {"sizes": (1.0, 2.0)}) == []
    assert weighting.from_data("baselined_dro", {}) == ["reference_losses"]
    assert weighting.lacking("baselined_dro", {}) == ["reference_losses", "weight_lr"]
    with pytest.raises(ValueError, match="exponent must be a number"):
        weighting.outline("static_mixing", {"exponent": "0.3"})

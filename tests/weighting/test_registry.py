"""What is known of a method by its name is what its weighting says."""

# Annotations are strings here, which must make no difference.
from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import tiny_lm

from ldro_jax import ldro, transform, weighting
from ldro_jax.training.method import Method
from ldro_jax.weighting import base

# Every method with all its numbers, and which of them one program can take many values of.
_RATE = ({"weight_lr": 0.1}, {"weight_lr"})
RATES = {
    "afl": _RATE,
    "aioli": _RATE,
    "aligned_mtl": ({"scale": "median"}, set()),
    "cagrad": ({"c": 0.5}, {"c"}),
    "config": ({}, set()),
    "cvar": ({"share": 0.5}, {"share"}),
    "db_mtl": ({}, set()),
    "doge": ({"rate": 0.1, "regularization": 0.1}, {"rate", "regularization"}),
    "doremi": ({"weight_lr": 0.1, "share": 0.01}, {"weight_lr", "share"}),
    "dualproj": ({}, set()),
    "dwa": ({"window": 3, "temperature": 2.0}, {"temperature"}),
    "erm": ({}, set()),
    "fairgrad": ({"alpha": 2.0}, {"alpha"}),
    "famo": (
        {"weight_lr": 0.1, "decay": 0.1, "learning_rate": 0.01},
        {"weight_lr", "decay", "learning_rate"},
    ),
    "geometric_mean": ({}, set()),
    "go4align": ({"num_groups": 3, "risk_lr": 0.1}, {"risk_lr"}),
    "grape": ({"weight_lr": 0.1, "adversary_lr": 0.1}, {"weight_lr", "adversary_lr"}),
    "gradnorm": ({"weight_lr": 0.1, "asymmetry": 1.5}, {"weight_lr", "asymmetry"}),
    "gradvac": ({"decay": 0.5, "seed": 1}, {"decay"}),
    "imtl_g": ({}, set()),
    "imtl_l": _RATE,
    "krum": ({"num_outliers": 1, "num_selected": 2}, set()),
    "mgda": ({"normalization": "l2"}, set()),
    "modo": ({"weight_lr": 0.1, "ridge": 0.1}, {"weight_lr", "ridge"}),
    "nash_mtl": ({"max_norm": 2.0}, {"max_norm"}),
    "pike": ({"weight_lr": 0.1, "noise_penalty": 0.1}, {"weight_lr", "noise_penalty"}),
    "q_ffl": ({"q": 2.0}, {"q"}),
    "random_loss": ({"seed": 1}, set()),
    "regularized_dro": ({"temperature": 0.1, "rate": 0.2}, {"temperature", "rate"}),
    "scalarization": ({"draw": 3, "concentration": 2.0}, {"draw", "concentration"}),
    "scale_invariant": ({}, set()),
    "sdmgrad": ({"strength": 0.3}, {"strength"}),
    "skill_it": ({"weight_lr": 0.1, "skills": ((1.0, 0.0), (0.5, 1.0))}, {"weight_lr"}),
    "smooth_lookahead": (
        {"lookahead_lr": 0.1, "temperature": 0.1, "adversary_temperature": 0.1, "relative": True},
        {"lookahead_lr", "temperature", "adversary_temperature"},
    ),
    "stch": ({"smoothing": 0.1}, {"smoothing"}),
    "term": ({"tilt": 0.1, "relative": True}, {"tilt"}),
    "uncertainty": _RATE,
    "unimax": ({"budget": 2.0, "epochs": 3.0}, set()),
    "upgrad": ({}, set()),
    "average": ({}, set()),
    "baselined_dro": ({"weight_lr": 1}, {"weight_lr"}),
    "group_dro": (
        {"weight_lr": 0.1, "adjustment": 0.5, "group_sizes": (1, 2, 3)},
        {"weight_lr", "adjustment"},
    ),
    "interpolated": ({"alpha": 0.5}, {"alpha"}),
    "lookahead_exact": ({"lookahead_lr": 0.1, "normalize_interaction": True}, {"lookahead_lr"}),
    "lookahead_online": (
        {"lookahead_lr": 0.1, "weight_lr": 1, "normalize_interaction": False},
        {"lookahead_lr", "weight_lr"},
    ),
    "pcgrad": ({"seed": 1}, set()),
    "static_mixing": ({"exponent": 0.3}, set()),
}
_LOSSES_ONLY = {
    *(
        "afl",
        "average",
        "go4align",
        "scalarization",
        "baselined_dro",
        "cvar",
        "doremi",
        "dwa",
        "erm",
        "geometric_mean",
        "group_dro",
        "imtl_l",
    ),
    *("interpolated", "q_ffl", "random_loss", "regularized_dro", "scale_invariant", "skill_it"),
    *("static_mixing", "stch", "term", "uncertainty", "unimax"),
}
INTERVALS = {n: 100 if n == "lookahead_online" else 1 for n in RATES if n not in _LOSSES_ONLY}


def test_every_method_is_here():
    assert set(RATES) == set(weighting.METHODS)


@pytest.mark.parametrize("name", RATES)
def test_rates_are_the_numbers_that_can_be_traced(name, dtype):
    hyperparameters, expected = RATES[name]
    assert weighting.rates(name, hyperparameters) == expected
    assert Method("a", name, hyperparameters).rates().keys() == expected


@pytest.mark.parametrize("name", RATES)
def test_the_interaction_is_measured_as_the_weighting_says(name):
    method = Method("a", name, RATES[name][0])
    assert method.uses_interaction == (name in INTERVALS)
    assert method.interval == INTERVALS.get(name, 1)
    assert method.settings().get("interaction_interval") == INTERVALS.get(name)


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


@pytest.mark.parametrize("name", INTERVALS)
def test_every_method_has_its_interval(name):
    made = weighting.create(name, RATES[name][0])
    assert made.default_interval == INTERVALS[name]
    assert weighting.with_floor(made, 0.1).default_interval == INTERVALS[name]
    assert Method("a", name, RATES[name][0]).interval == INTERVALS[name]


@pytest.mark.parametrize("name", ["lookahead_exact", "lookahead_online", "smooth_lookahead"])
def test_every_door_has_the_same_default(name):
    hyperparameters = RATES[name][0]
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
    method = Method("a", "lookahead_exact", {"lookahead_lr": 0.1}, interaction_interval=np.int64(2))
    assert measured(method.transform(2)) == [True, False, True]
    assert type(method.settings()["interaction_interval"]) is int


def test_what_the_data_gives():
    assert weighting.from_data("static_mixing", {"exponent": 1.0}) == ["sizes"]
    assert weighting.from_data("static_mixing", {"sizes": (1.0, 2.0)}) == []
    assert weighting.from_data("baselined_dro", {}) == ["reference_losses"]
    assert weighting.lacking("baselined_dro", {}) == ["reference_losses", "weight_lr"]
    with pytest.raises(ValueError, match="exponent must be a number"):
        weighting.outline("static_mixing", {"exponent": "0.3"})

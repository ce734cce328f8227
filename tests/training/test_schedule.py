"""How long to train: positive integers, in steps or in epochs."""

import dataclasses

import numpy as np
import pytest
from helpers import tiny

from ldro_jax.training.schedule import Schedule, epochs

INTEGERS = [f.name for f in dataclasses.fields(Schedule) if f.name not in ("test", "eval_at_start")]


@pytest.mark.parametrize("value", [0, -1, 2.0, "3", True])
@pytest.mark.parametrize("field", INTEGERS)
def test_schedules_are_positive_integers(field, value):
    with pytest.raises(
        ValueError, match=f"{field} must be a positive integer, but it is {value!r}"
    ):
        tiny.schedule(**{field: value})


def test_integers_of_numpy_are_kept_as_those_of_python():
    assert type(tiny.schedule(np.int64(3)).train_steps) is int


@pytest.mark.parametrize("value", ["first", None, True])
def test_the_test_comes_always_last_or_of_the_best(value):
    with pytest.raises(ValueError, match="test must be one of 'always', 'best', 'last'"):
        tiny.schedule(test=value)


def test_by_default_it_looks_twenty_times_and_saves_at_every_fifth():
    schedule = Schedule(300)
    assert (schedule.eval_interval, schedule.checkpoint_interval) == (15, 75)
    assert Schedule(7) == Schedule(7, 1, 5)
    assert Schedule(300, 100) == Schedule(300, 100, 500)


def test_a_schedule_in_epochs():
    assert epochs(3, 7) == Schedule(train_steps=21, eval_interval=7, checkpoint_interval=7)


@pytest.mark.parametrize("name", ["num_epochs", "steps_per_epoch", "checkpoint_epochs"])
def test_epochs_are_positive_integers(name):
    with pytest.raises(ValueError, match=f"{name} must be a positive integer, but it is 0"):
        epochs(**{"num_epochs": 3, "steps_per_epoch": 7, name: 0})

"""The best run's parameters, and runs that begin with some: a rate for each part, or none."""

import dataclasses

import jax
import numpy as np
import optax
import pytest
from helpers import tiny

import ldro_jax
from ldro_jax.records import results
from ldro_jax.training.method import grid

ONE_STEP = tiny.schedule(1, 1, 1)


def begun_with(directory, params, optimizer):
    """The parameters after one step from given ones."""
    problem = tiny.problem().with_parameters(params)
    options = {"problem": problem, "optimizer": optimizer, "schedule": ONE_STEP, "seeds": (0,)}
    return tiny.run(directory, **options).best().params


def test_the_best_run_and_what_it_was_tested_with(tmp_path, no_report):
    methods = [tiny.AVERAGE, grid(tiny.GROUP_DRO, {"weight_lr": (0.1, 0.123456789)})]
    options = {"methods": methods, "schedule": tiny.schedule(10, 5, 5, test="best")}
    record = tiny.run(tmp_path, runs_together=1, select_by="average", **options)
    read = results.load_results(tmp_path / "results.json")
    for method in (None, "Group DRO"):
        best = record.best(method)
        tested = best.run.evaluations[-1]
        # By hand: the best average on validation of the steps that were tested.
        runs = [r for r in record.runs if method in (None, r.method)]
        averages = [
            next(e.average for e in r.evaluations if e.step == r.evaluations[-1].step) for r in runs
        ]
        assert best.run is runs[int(np.argmax(averages))]
        values = tiny.problem().evaluate(best.params, "test")["accuracy"]
        np.testing.assert_allclose(list(tested.per_task.values()), values)
        jax.tree.map(np.testing.assert_array_equal, best.params, read.best(method).params)
    with pytest.raises(ValueError, match="but it is 'x'. The record has runs of 'Average', 'Group"):
        record.best("x")
    with pytest.raises(ValueError, match="which this record doesn't know"):
        _ = dataclasses.replace(record, directory=None).best().params


def test_each_part_has_the_learning_rate_of_its_own(tmp_path, no_report):
    params = tiny.problem().init(jax.random.key(7))
    plain = begun_with(tmp_path / "plain", params, optax.sgd(1.0))
    rates = {"slow": optax.sgd(0.25), "fast": optax.sgd(0.5)}
    labels = {"Dense_0": "slow", "Dense_1": "fast"}
    parts = begun_with(tmp_path / "parts", params, optax.partition(rates, labels))
    rates["slow"] = optax.set_to_zero()
    frozen = begun_with(tmp_path / "frozen", params, optax.partition(rates, labels))
    for name, rate in (("Dense_0", 0.25), ("Dense_1", 0.5)):
        for part, begun in params[name].items():
            step = plain[name][part] - begun
            assert np.abs(step).max() > 0
            np.testing.assert_allclose(parts[name][part] - begun, rate * step, atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, frozen["Dense_0"], params["Dense_0"])
    jax.tree.map(np.testing.assert_array_equal, frozen["Dense_1"], parts["Dense_1"])
    loaded = ldro_jax.load(tmp_path / "frozen", step="last")
    jax.tree.map(np.testing.assert_array_equal, loaded, frozen)

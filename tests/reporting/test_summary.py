"""Grouping, final values and the rule for a clear difference."""

import dataclasses
import math

import numpy as np
import pytest

from ldro_jax import reporting
from ldro_jax.reporting import Run, mean_spread
from ldro_jax.reporting.summary import Difference


def pair(made_up, ours, theirs):
    """Two groups whose worst values are given by seed; task 1 is always fine."""
    runs = [made_up.run("Average", seed, [value, 0.9]) for seed, value in theirs.items()]
    runs += [made_up.run("New", seed, [value, 0.9]) for seed, value in ours.items()]
    base, new = reporting.group_runs(runs)
    return reporting.paired_difference(new, base, split="test", metric="accuracy", which="worst")


def test_runs_group_by_method_and_setting_in_order_of_appearance():
    runs = [
        Run("B", 0, 1, {"lr": 0.1, "k": 1}),
        Run("A", 0, 1),
        Run("B", 1, 1, {"k": 1, "lr": 0.1}),
        Run("B", 0, 1, {"lr": 0.01, "k": 1}),
    ]
    groups = reporting.group_runs(runs)
    assert [g.label for g in groups] == ["B (lr=0.1)", "A", "B (lr=0.01)"]
    assert [r.seed for r in groups[0].runs] == [0, 1]


@pytest.mark.parametrize(
    "names, chosen",
    [
        (["L-DRO", "Average"], "Average"),
        (["L-DRO", "average_loss"], "average_loss"),
        (["L-DRO", "Uniform weights"], "Uniform weights"),
        (["L-DRO", "Group DRO"], "L-DRO"),
    ],
)
def test_the_baseline_trains_on_the_average_loss_if_any_does(names, chosen):
    groups = reporting.group_runs([Run(n, 0, 1) for n in names])
    assert reporting.default_baseline(groups).method == chosen


def test_a_named_baseline_must_exist():
    groups = reporting.group_runs([Run("A", 0, 1), Run("B", 0, 1)])
    assert reporting.default_baseline(groups, "B").method == "B"
    with pytest.raises(ValueError, match="one of 'A', 'B'; found 'C'"):
        reporting.default_baseline(groups, "C")
    with pytest.raises(ValueError, match="found none"):
        reporting.default_baseline([])


def test_the_final_evaluation_is_the_last_of_its_split_and_metric(made_up):
    entries = [
        made_up.evaluation(20, [0.2, 0.3]),
        made_up.evaluation(10, [0.1, 0.3]),
        made_up.evaluation(30, [0.9, 0.9], split="validation"),
        made_up.evaluation(30, [9, 9], metric="loss", higher=False),
    ]
    run = Run("A", 0, 30, evaluations=entries)
    assert reporting.final_evaluation(run, "test", "accuracy").step == 20
    assert reporting.final_evaluation(run, "train", "accuracy") is None
    stopped = dataclasses.replace(run, stopped="out of memory")
    assert reporting.final_evaluation(stopped, "test", "accuracy") is None


def test_mean_and_sample_standard_deviation():
    spread = mean_spread([1.0, 2.0, 3.0])
    assert (spread.mean, spread.std, spread.n) == (2.0, 1.0, 3)
    one = mean_spread([5.0])
    assert one.mean == 5.0 and math.isnan(one.std) and one.n == 1
    assert math.isnan(mean_spread([]).mean)
    assert math.isnan(mean_spread([1.0, np.nan]).mean)


def test_a_difference_is_paired_over_common_seeds(made_up):
    found = pair(made_up, {0: 0.5, 1: 0.7, 2: 0.6, 9: 0.0}, {2: 0.5, 0: 0.4, 1: 0.6, 7: 0.9})
    assert found.n == 3
    assert found.mean == pytest.approx(0.1)
    assert found.clear


def test_the_interval_is_students(made_up):
    # Differences 0.1, 0.2, 0.3: mean 0.2, standard error 0.1 / √3, t(2) = 4.303.
    found = pair(made_up, {0: 0.5, 1: 0.6, 2: 0.7}, {0: 0.4, 1: 0.4, 2: 0.4})
    assert found.half_width == pytest.approx(4.303 * 0.1 / math.sqrt(3))
    assert not found.clear


@pytest.mark.parametrize("seeds", [1, 2])
def test_fewer_than_three_seeds_are_never_clear(made_up, seeds):
    found = pair(made_up, dict.fromkeys(range(seeds), 0.8), dict.fromkeys(range(seeds), 0.1))
    assert found.mean == pytest.approx(0.7)
    assert not found.clear


def test_no_common_seed_is_no_difference(made_up):
    found = pair(made_up, {0: 0.5}, {1: 0.5})
    assert math.isnan(found.mean) and found.n == 0 and not found.clear


@pytest.mark.parametrize(
    "mean, half_width, clear",
    [(0.0, 0.0, False), (0.1, 0.1, False), (0.11, 0.1, True), (-0.11, 0.1, True)],
)
def test_clear_means_zero_is_outside(mean, half_width, clear):
    assert Difference(mean, half_width, 3).clear is clear
    assert not Difference(math.nan, half_width, 3).clear


def test_the_best_setting_is_chosen_on_validation(made_up):
    def run(rate, validation, test):
        entries = [
            made_up.evaluation(1, [validation, 0.9], split="validation"),
            made_up.evaluation(1, [test, 0.9]),
        ]
        return Run("L-DRO", 0, 1, {"rate": rate}, evaluations=entries)

    record = made_up.results([run(1, 0.3, 0.8), run(2, 0.4, 0.1), Run("Average", 0, 1)])
    best = reporting.select_best(record)
    assert [r.hyperparameters.get("rate") for r in best.runs] == [2, None]
    losses = dataclasses.replace(record, higher_is_better=False)
    assert reporting.select_best(losses).runs[0].hyperparameters["rate"] == 1


def test_a_setting_is_judged_at_the_checkpoint_that_is_tested(made_up):
    def run(rate, *validation):
        entries = [
            made_up.evaluation(step, values, split="validation")
            for step, values in enumerate(validation)
        ]
        return Run(
            "L-DRO", 0, 2, {"rate": rate}, evaluations=[*entries, made_up.evaluation(1, [0, 0])]
        )

    # At step 1 the first has the better worst task, the second the better average; at the end, and
    # on test, there is no such order.
    runs = [run(1, [0, 0], [0.4, 0.5], [0.1, 0.1]), run(2, [1, 1], [0.3, 0.9], [0.9, 0.9])]
    record = made_up.results(runs)
    assert reporting.select_best(record).runs[0].hyperparameters["rate"] == 1
    assert reporting.select_best(record, by="average").runs[0].hyperparameters["rate"] == 2
    entries = [e for e in runs[1].evaluations if (e.split, e.step) != ("validation", 1)]
    runs[1] = dataclasses.replace(runs[1], evaluations=entries)
    # Without a value at that step the last one serves.
    assert reporting.select_best(made_up.results(runs)).runs[0].hyperparameters["rate"] == 2


def test_the_reported_split_falls_back(made_up):
    validation = Run("A", 0, 1, evaluations=[made_up.evaluation(1, [0, 1], split="validation")])
    assert reporting.report_split(made_up.results([validation])) == "validation"
    both = [validation, made_up.run("A", 1, [0, 1])]
    assert reporting.report_split(made_up.results(both)) == "test"
    assert reporting.progress_split(made_up.results(both)) == "validation"

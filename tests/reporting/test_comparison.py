"""What is compared: settings, splits, final values, the baseline, the choice on validation."""

import dataclasses

import numpy as np
import pytest

from ldro_jax.records.results import Run
from ldro_jax.reporting import frame
from ldro_jax.reporting.comparison import compare


def labels(comparison):
    return [setting.label for setting in comparison.shown]


def test_runs_group_by_method_and_setting_in_order_of_appearance():
    runs = [
        Run("B", 0, 1, {"lr": 0.1, "k": 1}),
        Run("A", 0, 1),
        Run("B", 1, 1, {"k": 1, "lr": 0.1}),
        Run("B", 0, 1, {"lr": 0.01, "k": 1}),
    ]
    found = frame.settings(runs)
    assert [s.label for s in found] == ["B (lr=0.1)", "A", "B (lr=0.01)"]
    assert [s.place for s in found] == [0, 1, 2] and found[2].differing == "lr=0.01"
    assert [run.seed for run in found[0].runs] == [0, 1]
    again = Run("A", 0, 1, stopped="x")
    assert frame.settings([*runs, again])[1].runs == [again]


@pytest.mark.parametrize(
    "names, chosen",
    [
        (["L-DRO", "Average"], "Average"),
        (["L-DRO", "average_loss"], "average_loss"),
        (["L-DRO", "Uniform weights"], "Uniform weights"),
        (["L-DRO", "Group DRO"], "L-DRO"),
    ],
)
def test_the_baseline_trains_on_the_average_loss_if_any_does(made_up, names, chosen):
    record = made_up.results([Run(n, 0, 1) for n in names])
    assert compare(record).baseline.method == chosen


def test_a_named_baseline_must_exist(made_up):
    record = made_up.results([Run("A", 0, 1, {"x": x}) for x in (1, 2)] + [Run("B", 0, 1)])
    for name in ("A", "A (x=2)"):
        assert compare(record, baseline=name).baseline.method == "A"
    assert compare(record, baseline="A (x=2)", every_setting=True).baseline.label == "A (x=2)"
    with pytest.raises(ValueError, match=r"one of 'A \(x=1\)', 'A \(x=2\)', 'B'; found 'C'"):
        compare(record, baseline="C")


def test_the_final_values_are_the_last_of_their_split_and_metric(made_up):
    entries = [
        made_up.evaluation(20, [0.2, 0.3]),
        made_up.evaluation(10, [0.1, 0.3]),
        made_up.evaluation(30, [0.9, 0.9], split="validation"),
        made_up.evaluation(30, [9, 9], metric="loss", higher=False),
    ]
    runs = [
        Run("A", seed, 30, evaluations=entries, stopped=why) for seed, why in enumerate([None, "x"])
    ]
    found = compare(made_up.results(runs))
    (setting,) = found.shown
    assert found.values.split == "test" and found.progress_split == "test"
    assert found.values.overall[setting].worst.to_dict() == {0: 0.2}
    assert found.values.overall[setting].worst_task.to_dict() == {0: "task 0"}
    assert found.values.tasks[setting].loc[0].to_dict() == {"task 0": 0.2, "task 1": 0.3}


def test_the_reported_split_falls_back(made_up):
    validation = Run("A", 0, 1, evaluations=[made_up.evaluation(1, [0, 1], split="validation")])
    assert compare(made_up.results([validation])).values.split == "validation"
    both = compare(made_up.results([validation, made_up.run("A", 1, [0, 1])]))
    assert both.values.split == "test" and both.progress_split == "validation"
    stopped = dataclasses.replace(made_up.run("A", 1, [0, 1]), stopped="x")
    assert compare(made_up.results([validation, stopped])).values.split == "validation"


def test_checkpoints_are_those_that_all_finished_seeds_evaluated(made_up):
    def run(seed, *values, **options):
        entries = [made_up.evaluation(10 * (i + 1), [v, 1.0]) for i, v in enumerate(values)]
        return Run("A", seed, 30, evaluations=entries, **options)

    record = made_up.results([run(0, 0.1, 0.2, 0.3), run(1, 0.3, np.nan), run(2, 0.9, stopped="x")])
    found = compare(record)
    table = found.checkpoints(found.shown[0])
    assert table.index.tolist() == [10, 20]
    np.testing.assert_allclose(table.worst, [0.2, np.nan])
    empty = compare(made_up.results([*record.runs, Run("A", 3, 30)]))
    assert not len(empty.checkpoints(empty.shown[0]))


def test_the_best_setting_is_chosen_on_validation(made_up):
    def run(rate, validation, test):
        entries = [
            made_up.evaluation(1, [validation, 0.9], split="validation"),
            made_up.evaluation(1, [test, 0.9]),
        ]
        return Run("L-DRO", 0, 1, {"rate": rate}, evaluations=entries)

    record = made_up.results([run(1, 0.3, 0.8), run(2, 0.4, 0.1), Run("Average", 0, 1)])
    found = compare(record)
    assert [s.hyperparameters.get("rate") for s in found.shown] == [2, None]
    assert labels(found) == ["L-DRO", "Average"] and found.is_sweep
    assert len(compare(record, every_setting=True).shown) == 3
    losses = dataclasses.replace(record, higher_is_better=False)
    assert compare(losses).shown[0].hyperparameters["rate"] == 1


def test_a_setting_is_judged_at_the_checkpoint_that_is_tested(made_up):
    def run(rate, *validation):
        entries = [
            made_up.evaluation(step, values, split="validation")
            for step, values in enumerate(validation)
        ]
        entries.append(made_up.evaluation(1, [0, 0]))
        return Run("L-DRO", 0, 2, {"rate": rate}, evaluations=entries)

    def chosen(runs, by):
        record = dataclasses.replace(made_up.results(runs), select_by=by)
        return compare(record).shown[0].hyperparameters["rate"]

    # At step 1 the first has the better worst task, the second the better average; at the end, and
    # on test, there is no such order.
    runs = [run(1, [0, 0], [0.4, 0.5], [0.1, 0.1]), run(2, [1, 1], [0.3, 0.9], [0.9, 0.9])]
    assert chosen(runs, "worst") == 1 and chosen(runs, "average") == 2
    entries = [e for e in runs[1].evaluations if (e.split, e.step) != ("validation", 1)]
    runs[1] = dataclasses.replace(runs[1], evaluations=entries)
    # Without a value at that step the last one serves.
    assert chosen(runs, "worst") == 2


def test_tasks_go_from_the_baselines_worst_to_its_best(made_up):
    record = made_up.results([made_up.run("Average", 0, [0.75, 0.5, np.nan])], num_tasks=3)
    assert compare(record).task_order == ["task 2", "task 1", "task 0"]
    losses = dataclasses.replace(record, higher_is_better=False)
    assert compare(losses).task_order == ["task 2", "task 0", "task 1"]
    assert compare(made_up.results([])).task_order == ["task 0", "task 1"]


def test_relative_values_are_those_of_a_loop(made_up):
    rng = np.random.default_rng(0)
    own, values = rng.uniform(10, 300, 7), rng.uniform(10, 300, (3, 7))
    record = made_up.results([made_up.run("A", s, v) for s, v in enumerate(values)], num_tasks=7)
    own[2] = np.nan
    references = {"test": dict(zip(record.task_names, own, strict=True))}
    found = compare(dataclasses.replace(record, references=references, higher_is_better=False))
    (setting,) = found.shown
    assert found.relative.metric == "relative accuracy" and not found.relative.higher_is_better
    for seed, row in enumerate(values):
        expected = {
            f"task {i}": 100 * (v - o) / o
            for i, (v, o) in enumerate(zip(row, own, strict=True))
            if i != 2
        }
        assert found.relative.tasks[setting].loc[seed].to_dict() == pytest.approx(expected)
        overall = found.relative.overall[setting].loc[seed]
        assert overall.average == pytest.approx(sum(expected.values()) / 6)
        assert overall.worst == pytest.approx(max(expected.values()))
        assert overall.worst_task == max(expected, key=expected.get)


def test_a_reference_of_zero_is_left_out_and_a_negative_one_keeps_the_sign(made_up):
    record = made_up.results([made_up.run("A", 0, [0.1, 0.2, 0.3])], num_tasks=3)
    references = {"test": {"task 0": 0.0, "task 1": 0.5, "task 2": -1.0}}
    found = compare(dataclasses.replace(record, references=references))
    (setting,) = found.shown
    # R² rose from -1 to 0.3, by 130 % of 1.
    expected = {"task 1": -60.0, "task 2": 130.0}
    assert found.relative.tasks[setting].loc[0].to_dict() == pytest.approx(expected)

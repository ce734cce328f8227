"""Tables mark what is best, exactly, and stay readable."""

import dataclasses

import pytest

from ldro_jax import reporting
from ldro_jax.records.results import Run, summarise_evaluation
from ldro_jax.reporting import tables
from ldro_jax.reporting.comparison import compare


def two(made_up, first, second, **options):
    return made_up.results(
        [made_up.run("Average", 0, first), made_up.run("L-DRO", 0, second)], **options
    )


def marked(table):
    return {table.rows[i][j] for i, j in table.best}


def test_the_text_table_is_pinned(made_up):
    runs = [made_up.run("Average", s, [0.5, 0.75 + 0.25 * s]) for s in (0, 1)]
    runs += [made_up.run("L-DRO", s, [0.75, 0.625], seconds_per_step=0.003) for s in (0, 1)]
    assert reporting.headline_text(made_up.results(runs)).splitlines() == [
        "test accuracy (higher is better)",
        "method         average     worst task  which task        Δp %  step time     ms  seeds",
        "--------------------------------------------------------------------------------------",
        "Average  0.688 ± 0.088* 0.500 ± 0.000  task 0      0.0 ± 10.1      1.00×* 2.000*     2",
        "L-DRO    0.688 ± 0.000* 0.625 ± 0.000* task 1      10.7 ± 0.0*     1.50×  3.000      2",
        "* best of its column",
        "Δp: mean relative difference of tasks to Average, in %; higher is better.",
    ]


def test_one_seed_has_no_spread_and_ties_are_both_marked(made_up):
    text = reporting.headline_text(two(made_up, [0.25, 0.75], [0.25, 0.5]))
    assert "±" not in text
    assert text.count("0.250*") == 2
    assert "0.500*" in text and "0.375*" not in text


def test_lower_is_better_for_losses(made_up):
    record = two(made_up, [0.25, 0.75], [0.5, 0.5])
    runs = [
        dataclasses.replace(r, evaluations=[made_up.evaluation(1, v, metric="loss", higher=False)])
        for r, v in zip(record.runs, ([0.25, 0.875], [0.5, 0.75]), strict=True)
    ]
    record = dataclasses.replace(record, metric="loss", higher_is_better=False, runs=runs)
    text = reporting.headline_text(record)
    assert "0.562*" in text and "0.750*" in text and "lower is better" in text
    assert [row[3] for row in tables.headline(compare(record)).rows] == ["task 1", "task 1"]


def test_times_are_relative_to_the_named_baseline(made_up):
    runs = [
        made_up.run("Average", 0, [0, 1], seconds_per_step=0.002),
        made_up.run("L-DRO", 0, [0, 1], seconds_per_step=0.003),
        made_up.run("Untimed", 0, [0, 1], seconds_per_step=None),
    ]
    record = made_up.results(runs)
    assert [r[5] for r in tables.headline(compare(record)).rows] == ["1.00×", "1.50×", "n/a"]
    table = tables.headline(compare(record, baseline="L-DRO"))
    assert [r[5] for r in table.rows] == ["0.67×", "1.00×", "n/a"]


def test_stopped_and_missing_runs_are_counted_and_not_averaged(made_up):
    runs = [made_up.run("A", 0, [0.5, 0.7]), made_up.run("A", 1, [0.0, 0.0], stopped="killed")]
    runs += [Run("B", 0, 10, stopped="killed")]
    text = reporting.headline_text(made_up.results(runs))
    assert "1 of 2" in text and "0.600" in text
    assert "0 of 1" in text and "n/a" in text
    assert reporting.headline_text(made_up.results([])) == "no runs"


def test_a_mean_that_is_not_finite_is_never_the_best(made_up):
    text = reporting.headline_text(two(made_up, [float("nan"), 0.5], [0.1, 0.2]))
    assert "n/a*" not in text and "0.100*" not in text


def test_of_a_sweep_the_terminal_shows_all_settings_and_the_page_the_chosen_one(made_up):
    runs = [made_up.run("A", 0, [0.1, 0.2], hyperparameters={"x": x}) for x in (1, 2)]
    record = made_up.results([*runs, made_up.run("B", 0, [0.1, 0.2])])
    text = reporting.headline_text(record)
    assert "A (x=1)" in text and "A (x=2)" in text
    assert [row[0] for row in tables.headline(compare(record)).rows] == ["A", "B"]


def test_a_line_fits_in_100_columns_and_settings_stay_distinct(made_up):
    names = ["a task whose name is much too long for a table, variant " + c for c in "ab"]
    entry = summarise_evaluation(1, "test", "accuracy", names, [0.1, 0.2], True)
    runs = [
        Run(
            "A method with a long name",
            0,
            1,
            {"weight_learning_rate": rate, "interval": 100},
            0.1,
            evaluations=[entry],
        )
        for rate in (0.001, 0.0001)
    ]
    record = dataclasses.replace(made_up.results(runs), task_names=names)
    lines = reporting.headline_text(record).splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[3] != lines[4]


def test_the_task_table_runs_from_the_baselines_worst_with_the_best_marked(made_up):
    table = tables.tasks(compare(two(made_up, [0.75, 0.5], [0.625, 0.625])))
    assert table.header == ["task", "Average", "L-DRO"]
    assert table.rows == [["task 1", "0.500", "0.625"], ["task 0", "0.750", "0.625"]]
    assert table.best == {(0, 2), (1, 1)}


def test_the_paired_table_says_what_is_separated(made_up):
    runs = [made_up.run("Average", s, [0.5, 0.9]) for s in range(3)]
    runs += [made_up.run("Good", s, [0.7 + 0.001 * s, 0.9]) for s in range(3)]
    runs += [made_up.run("Noisy", s, [0.3 + 0.3 * s, 0.95]) for s in range(3)]
    runs += [made_up.run("Few", 0, [0.9, 0.9]), Run("None", 0, 1)]
    table = tables.paired(compare(made_up.results(runs)))
    assert table.header[1] == "worst, minus Average"
    good, noisy, few, none = table.rows
    # Differences 0.200, 0.201, 0.202 and 0.100, 0.1005, 0.101; t(2) = 4.3027.
    assert good == ["Good", "+0.201 ± 0.002", "better", "+0.101 ± 0.001", "better", "3"]
    assert noisy[2] == noisy[4] == "not separated"
    assert few == ["Few", "+0.400 ± –", "not separated", "+0.200 ± –", "not separated", "1"]
    assert none == ["None", "n/a", "n/a", "n/a", "n/a", "0"]


@pytest.mark.parametrize("draw", [tables.headline, tables.paired, tables.tasks])
def test_tables_survive_what_is_missing(made_up, draw):
    for runs in ([Run("A", 0, 1, stopped="x"), Run("B", 1, 1)], [Run("A", 0, 1)]):
        draw(compare(made_up.results(runs)))

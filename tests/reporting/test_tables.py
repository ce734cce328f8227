"""Tables mark what is best, exactly, and stay readable."""

import dataclasses

import pytest

from ldro_jax import reporting
from ldro_jax.reporting import Run
from ldro_jax.reporting.numbers import decimals_for, number


def two(made_up, first, second, **options):
    return made_up.results(
        [made_up.run("Average", 0, first), made_up.run("L-DRO", 0, second)], **options
    )


def test_the_text_table_is_pinned(made_up):
    runs = [made_up.run("Average", s, [0.5, 0.75 + 0.25 * s]) for s in (0, 1)]
    runs += [made_up.run("L-DRO", s, [0.75, 0.625], seconds_per_step=0.003) for s in (0, 1)]
    assert reporting.headline_text(made_up.results(runs)).splitlines() == [
        "test accuracy (higher is better)",
        "method         average     worst task  which task  step time     ms  seeds",
        "--------------------------------------------------------------------------",
        "Average  0.688 ± 0.088* 0.500 ± 0.000  task 0          1.00×* 2.000*     2",
        "L-DRO    0.688 ± 0.000* 0.625 ± 0.000* task 1          1.50×  3.000      2",
        "* best of its column",
    ]


def test_one_seed_has_no_spread_and_ties_are_both_marked(made_up):
    text = reporting.headline_text(two(made_up, [0.25, 0.75], [0.25, 0.5]))
    assert "±" not in text
    assert text.count("0.250*") == 2
    assert "0.500*" in text and "0.375*" not in text


def test_values_that_read_the_same_are_marked_the_same(made_up):
    html = reporting.headline_html(two(made_up, [0.25, 0.75], [0.2500001, 0.75]))
    assert html.count("<strong>0.250</strong>") == 2
    html = reporting.headline_html(two(made_up, [0.25, 0.75], [0.251, 0.75]))
    assert html.count("<strong>0.251</strong>") == 1
    assert "<strong>0.250</strong>" not in html


def test_lower_is_better_for_losses(made_up):
    record = two(made_up, [0.25, 0.75], [0.5, 0.5])
    runs = [
        dataclasses.replace(r, evaluations=[made_up.evaluation(1, v, metric="loss", higher=False)])
        for r, v in zip(record.runs, ([0.25, 0.875], [0.5, 0.75]), strict=True)
    ]
    record = dataclasses.replace(record, metric="loss", higher_is_better=False, runs=runs)
    text = reporting.headline_text(record)
    assert "0.562*" in text and "0.750*" in text and "lower is better" in text
    assert [r.worst_task for r in reporting.headline_rows(record)] == ["task 1", "task 1"]
    assert reporting.task_order(record) == ["task 1", "task 0"]


def test_times_are_relative_to_the_named_baseline(made_up):
    runs = [
        made_up.run("Average", 0, [0, 1], seconds_per_step=0.002),
        made_up.run("L-DRO", 0, [0, 1], seconds_per_step=0.003),
        made_up.run("Untimed", 0, [0, 1], seconds_per_step=None),
    ]
    record = made_up.results(runs)
    assert [r.time_ratio for r in reporting.headline_rows(record)][:2] == [1.0, 1.5]
    ratios = [r.time_ratio for r in reporting.headline_rows(record, baseline="L-DRO")]
    assert ratios[:2] == pytest.approx([2 / 3, 1.0])
    assert "n/a" in reporting.headline_text(record).splitlines()[5]


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


def test_a_line_fits_in_100_columns_and_settings_stay_distinct(made_up):
    runs = [
        Run("A method with a long name", 0, 1, {"weight_learning_rate": r, "interval": 100}, 0.1)
        for r in (0.001, 0.0001)
    ]
    names = ["a task whose name is much too long for a table, variant " + c for c in "ab"]
    entry = reporting.summarise_evaluation(1, "test", "accuracy", names, [0.1, 0.2], True)
    runs = [dataclasses.replace(r, evaluations=[entry]) for r in runs]
    record = dataclasses.replace(made_up.results(runs), task_names=names)
    lines = reporting.headline_text(record).splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[3] != lines[4]


def test_html_is_escaped(made_up):
    record = two(made_up, [0.1, 0.2], [0.3, 0.4])
    runs = [dataclasses.replace(r, method=f"<{r.method}> & co") for r in record.runs]
    record = dataclasses.replace(record, runs=runs, metric='a"<b>')
    runs = [
        dataclasses.replace(r, evaluations=[dataclasses.replace(r.evaluations[0], metric='a"<b>')])
        for r in runs
    ]
    record = dataclasses.replace(record, runs=runs)
    tables = [reporting.headline_html, reporting.comparison_html, reporting.task_table_html]
    for table in tables:
        html = table(record)
        assert "&lt;Average&gt; &amp; co" in html
        assert "<Average>" not in html and "<b>" not in html


def test_the_task_table_runs_from_the_baselines_worst_with_the_best_in_bold(made_up):
    html = reporting.task_table_html(two(made_up, [0.75, 0.5], [0.625, 0.625]))
    assert html.index("task 1") < html.index("task 0")
    assert html.count("<strong>") == 2
    assert "<strong>0.750</strong>" in html and "<strong>0.625</strong>" in html
    assert reporting.task_table_html(made_up.results([Run("A", 0, 1)])) == ""


def test_the_comparison_says_what_is_separated(made_up):
    runs = [made_up.run("Average", s, [0.5, 0.9]) for s in range(3)]
    runs += [made_up.run("Good", s, [0.7 + 0.001 * s, 0.9]) for s in range(3)]
    runs += [made_up.run("Noisy", s, [0.3 + 0.3 * s, 0.95]) for s in range(3)]
    html = reporting.comparison_html(made_up.results(runs))
    good, noisy = html.split("<tr>")[2:4]
    assert good.count("<td>better</td>") == 2
    assert noisy.count("<td>not separated</td>") == 2
    assert reporting.comparison_html(made_up.results(runs[:3])) == ""


@pytest.mark.parametrize(
    "values, decimals",
    [([0.91, 0.2], 3), ([5.0], 3), ([23.4], 2), ([234.0], 1), ([2345.0], 0), ([0.012], 4), ([], 3)],
)
def test_precision_follows_the_largest_value(values, decimals):
    assert decimals_for(values) == decimals


def test_numbers_as_text():
    assert number(0.1234) == "0.123"
    assert number(-0.1234, 2) == "−0.12"
    assert number(0.1234, 2, signed=True) == "+0.12"
    assert number(-0.0001, 2, signed=True) == "0.00"
    assert [number(v) for v in (None, float("nan"), float("inf"))] == ["n/a"] * 3

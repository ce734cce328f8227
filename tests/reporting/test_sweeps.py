"""Sweeps: the numbers are right, every seed is treated alike, and nothing is picked on test."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import scipy.stats

from ldro_jax.records.results import Evaluation, Run
from ldro_jax.reporting import sections, sweeps, tables
from ldro_jax.reporting.comparison import compare

T2 = scipy.stats.t.ppf(0.975, 2)


def entry(step, average, worst, split="test", metric="accuracy"):
    return Evaluation(step, split, metric, {"a": worst}, average, worst, "a")


def run(method, seed, points, rate=None, validation=None, **options):
    """A run whose checkpoints at steps 1, 2, ... have these (average, worst) values."""
    entries = [entry(i + 1, *p) for i, p in enumerate(points)]
    entries += [entry(i + 1, *p, "validation") for i, p in enumerate(validation or points)]
    setting = {} if rate is None else {"rate": rate, "depth": 3}
    return Run(method, seed, 9, setting, evaluations=entries, **options)


def areas(record, *, single=False, **options):
    found = sweeps.frontiers(compare(record), **options)
    return {m: v.to_dict() for m, v in (found.single if single else found.pooled).items()}


def table(record, *, per_setting=False, baseline=None):
    comparison = compare(record, baseline=baseline)
    found = sweeps.frontiers(comparison)
    return tables.hypervolumes(comparison, found, per_setting=per_setting)


def choose(record, by="worst"):
    """By method and seed, what was chosen: rate, step, and average and worst value on test."""
    comparison = compare(record)
    return {
        method: {
            seed: (
                comparison.settings[row.setting].hyperparameters.get("rate"),
                row.step,
                row.average,
                row.worst,
            )
            for seed, row in found.astype(object).iterrows()
        }
        for method, found in sweeps.choices(comparison, by).items()
    }


@pytest.fixture
def record(made_up):
    """Average with one setting and L-DRO with two, three seeds; seed s adds s / 10 to Average."""
    runs = [run("Average", s, [(0.5, 0.2 + s / 10)]) for s in range(3)]
    for s in range(3):
        runs.append(run("L-DRO", s, [(0.5, 0.4), (0.4, 0.5)], rate=0.1))
        runs.append(run("L-DRO", s, [(0.6, 0.1)], rate=1.0))
    return made_up.results(runs)


def test_a_sweep_has_a_method_with_several_settings(record, full):
    assert compare(record).is_sweep and not compare(full).is_sweep
    assert {m: len(g) for m, g in compare(record).methods.items()} == {"Average": 1, "L-DRO": 2}


def test_hypervolumes_by_hand(record):
    pooled = areas(record)
    assert list(pooled) == ["Average", "L-DRO"]
    assert pooled["Average"] == pytest.approx({0: 0.1, 1: 0.15, 2: 0.2})
    # 0.4 × 0.5, then 0.1 × 0.4, then 0.1 × 0.1.
    assert pooled["L-DRO"] == pytest.approx({0: 0.25, 1: 0.25, 2: 0.25})
    single = areas(record, single=True)
    assert single["Average"] == pooled["Average"]
    # The first setting alone has 0.24, the second 0.06.
    assert single["L-DRO"] == pytest.approx({0: 0.15, 1: 0.15, 2: 0.15})


def test_the_table_by_hand(record):
    found = table(record)
    half = f"{T2 * 0.05 / math.sqrt(3):.4f}"
    assert found.header == ["method", "settings", "hypervolume", "minus Average", "", "seeds"]
    assert found.rows == [
        ["Average", "1", f"0.1500 ± {half}", "", "", "3"],
        ["L-DRO", "2", "0.2500 ± 0.0000", f"+0.1000 ± {half}", "not separated", "3"],
    ]
    assert found.best == {(1, 2)}
    single = table(record, per_setting=True)
    assert single.rows[1][2:5] == ["0.1500 ± 0.0000", f"0.0000 ± {half}", "not separated"]


def test_a_difference_that_the_seeds_show_is_clear(record):
    runs = [run("Average", s, [(0.5, 0.2)]) for s in range(3)] + list(record.runs[3:])
    record = dataclasses.replace(record, runs=runs)
    assert table(record).rows[1][3:5] == ["+0.1500 ± 0.0000", "better"]
    assert table(record, baseline="L-DRO").rows[0][3:5] == ["−0.1500 ± 0.0000", "worse"]


def test_a_seed_without_all_settings_is_left_out(record):
    runs = [r for r in record.runs if (r.seed, r.hyperparameters.get("rate")) != (1, 1.0)]
    record = dataclasses.replace(record, runs=runs)
    assert list(areas(record)["L-DRO"]) == [0, 2]
    assert list(choose(record)["L-DRO"]) == [0, 2]
    row = table(record).rows[1]
    # Seeds 0 and 2: 0.15 and 0.05.
    assert row[3].startswith("+0.1000 ± ") and row[4:] == ["not separated", "2 of 3"]


def test_checkpoints_before_a_stop_count_and_a_stopped_setting_is_not_missing(record):
    runs = [
        dataclasses.replace(r, stopped="the loss was not finite", evaluations=[])
        if r.hyperparameters.get("rate") == 1.0
        else dataclasses.replace(r, stopped="killed")
        for r in record.runs
    ]
    found = areas(dataclasses.replace(record, runs=runs))
    assert found["L-DRO"] == pytest.approx({0: 0.24, 1: 0.24, 2: 0.24})


def test_one_seed_has_a_dash_for_its_interval(record):
    record = dataclasses.replace(record, runs=[r for r in record.runs if r.seed == 1])
    rows = table(record).rows
    assert rows[0][2] == "0.1500 ± –"
    assert rows[1][2:5] == ["0.2500 ± –", "+0.1000 ± –", "not separated"]
    row = tables.chosen(compare(record), "worst").rows[1]
    assert row[1:4] == ["0.400", "−0.100 ± –", "not separated"]


def test_no_complete_seed_is_no_comparison(made_up):
    runs = [run("L-DRO", s, [(0.5, 0.4)], rate=s) for s in range(2)]
    record = made_up.results([run("Average", 0, [(0.5, 0.2)]), *runs])
    row = table(record).rows[1]
    assert row[2:] == ["n/a", "n/a", "n/a", "0 of 2"]
    assert tables.chosen(compare(record), "worst").rows[1][1:] == ["n/a"] * 6 + ["0"]


def test_where_lower_is_better_the_reference_is_just_behind_the_frontiers(made_up):
    runs = [run("Average", 0, [(90.0, 99.0), (2.0, 8.0), (3.0, 6.0)])]
    runs += [run("L-DRO", 0, [(1.0, 5.0)], rate=1), run("L-DRO", 0, [(np.nan, 99.0)], rate=2)]
    record = dataclasses.replace(made_up.results(runs), higher_is_better=False)
    # The frontiers have (2, 8), (3, 6) and (1, 5): ranges 2 and 3, of which a tenth is added.
    np.testing.assert_allclose(sweeps.frontiers(compare(record)).corner, [3.2, 8.3])
    found = areas(record)
    assert found["L-DRO"][0] == pytest.approx(2.2 * 3.3)
    assert found["Average"][0] == pytest.approx(1.2 * 0.3 + 0.2 * 2.0)
    assert table(record).title.endswith("over (3.2, 8.3)")
    empty = dataclasses.replace(record, runs=[Run("A", 0, 1)])
    np.testing.assert_array_equal(sweeps.frontiers(compare(empty)).corner, [0, 0])


def test_frontiers_are_of_validation_where_a_run_is_tested_once(record):
    def split(runs):
        return sweeps.frontiers(compare(dataclasses.replace(record, runs=runs))).split

    assert split(record.runs) == "test"
    once = []
    for r in record.runs:
        kept = [e for e in r.evaluations if e.split == "validation" or e.step == 1]
        once.append(dataclasses.replace(r, evaluations=kept))
    assert split(once) == "validation"
    assert "of validation accuracy" in table(dataclasses.replace(record, runs=once)).title
    assert split([r for r in once if r.hyperparameters.get("rate") != 0.1]) == "test"


CHOICES = {
    # On validation: at step 2 the best worst value, at step 3 of the other the best sum.
    "validation": {0.1: [(0.5, 0.3), (0.5, 0.4), (0.6, 0.2)], 1.0: [(0.2, 0.1), (0.7, 0.3)]},
    "test": {0.1: [(0.9, 0.9), (0.45, 0.35), (0.9, 0.8)], 1.0: [(1.0, 1.0), (0.65, 0.25)]},
}


def choices(made_up, test=CHOICES["test"], seeds=3):
    runs = [run("Average", s, [(0.5, 0.3)]) for s in range(seeds)]
    for s, rate in itertools.product(range(seeds), (0.1, 1.0)):
        runs.append(run("L-DRO", s, test[rate], rate, CHOICES["validation"][rate]))
    return made_up.results(runs)


@pytest.mark.parametrize(
    "by, rate, values",
    [
        ("worst", 0.1, (0.45, 0.35)),
        ("average", 1.0, (0.65, 0.25)),
        ("balance", 1.0, (0.65, 0.25)),
    ],
)
def test_the_choice_is_made_on_validation_and_shown_on_test(made_up, by, rate, values):
    found = choose(choices(made_up), by)["L-DRO"]
    assert found == dict.fromkeys(range(3), (rate, 2, *values))


@pytest.mark.parametrize("by", list(sweeps.RULES))
def test_the_choice_never_looks_at_test(made_up, by):
    def picked(record):
        return {s: c[:2] for s, c in choose(record, by)["L-DRO"].items()}

    expected = picked(choices(made_up))
    for change in (lambda v: 1 - v, lambda v: 0 * v, lambda v: v * np.nan, lambda v: 100 * v):
        flipped = {
            rate: [tuple(change(v) for v in p) for p in points]
            for rate, points in CHOICES["test"].items()
        }
        assert picked(choices(made_up, flipped)) == expected


def test_the_choice_table_by_hand(made_up):
    found = tables.chosen(compare(choices(made_up)), "worst")
    assert found.title == "test accuracy of the checkpoints best on validation by the worst task"
    assert found.rows == [
        ["Average", "0.500 ± 0.000", "", "", "0.300 ± 0.000", "", "", "3"],
        [
            *("L-DRO", "0.450 ± 0.000", "−0.050 ± 0.000", "worse"),
            *("0.350 ± 0.000", "+0.050 ± 0.000", "better", "3"),
        ],
    ]
    assert found.best == {(0, 1), (1, 4)}


def test_of_equals_the_earliest_then_the_first_setting_is_chosen(made_up):
    def pick(first, second):
        runs = [run("L-DRO", 0, first, rate=1), run("L-DRO", 0, second, rate=2)]
        return choose(made_up.results(runs))["L-DRO"][0][:2]

    best, other = (0.5, 0.4), (0.5, 0.1)
    assert pick([other, best], [best, other]) == (2, 1)
    assert pick([best, best], [best, best]) == (1, 1)
    assert pick([(np.nan, np.nan), other], [other, best]) == (2, 2)


def test_what_has_no_validation_or_no_test_cannot_be_chosen(made_up):
    only = Run("A", 0, 1, evaluations=[entry(1, 0.5, 0.4), entry(2, 0.9, 0.9, "validation")])
    assert choose(made_up.results([only])) == {"A": {}}


def test_further_metrics_bring_their_direction(record):
    run = record.runs[0]
    more = [entry(1, 0.7, 0.5, metric="within-task accuracy"), entry(1, 2.0, 3.0, metric="loss")]
    run = dataclasses.replace(run, evaluations=[*run.evaluations, *more])
    record = dataclasses.replace(record, runs=[run, *record.runs[1:]])
    comparison = compare(record)
    assert sweeps.further_metrics(comparison) == ["within-task accuracy", "loss"]
    assert not sweeps.frontiers(comparison, "loss").higher_is_better
    assert sweeps.frontiers(comparison, "within-task accuracy").higher_is_better
    found = areas(record, metric="within-task accuracy")
    assert found == {"Average": {0: 0.35}, "L-DRO": {}}


def test_the_selected_setting_is_named_with_the_reason(made_up, record):
    text = sections.selection(compare(record))
    assert "for which the worst task was best on validation" in text
    assert text.endswith("at the last checkpoint that was tested: L-DRO (rate=0.1).")
    text = sections.selection(compare(dataclasses.replace(record, select_by="average")))
    assert "for which the average was best on validation" in text
    assert text.endswith(": L-DRO (rate=1).")
    untested = [
        dataclasses.replace(r, evaluations=[e for e in r.evaluations if e.split != "test"])
        for r in record.runs
    ]
    text = sections.selection(compare(dataclasses.replace(record, runs=untested)))
    assert text.endswith("at the end of training: L-DRO (rate=0.1).")
    tested = [
        dataclasses.replace(r, evaluations=[e for e in r.evaluations if e.split == "test"])
        for r in record.runs
    ]
    text = sections.selection(compare(dataclasses.replace(record, runs=tested)))
    assert "comes first in the record" in text and "best on validation" not in text

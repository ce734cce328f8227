"""Δp by hand, in NumPy, and tasks with directions of their own from a problem to the report."""

import dataclasses
import math

import numpy as np
import pytest

from ldro_jax import problems, reporting
from ldro_jax.records import results
from ldro_jax.records.results import Results, Run
from ldro_jax.reporting import sections, sweeps, tables
from ldro_jax.reporting.comparison import compare

NAMES = ("labels", "depth", "normals")
DIRECTION = {"labels": True, "depth": False, "normals": False}
# By method and seed, a row for each metric: "score" and, higher the better everywhere, "hits".
FOUND = {
    "Average": [[[0.5, 4.0, 20.0], [0.8, 0.5, 0.0]], [[0.7, 5.0, 30.0], [0.9, 0.5, 0.0]]],
    "L-DRO": [[[0.9, 3.0, 10.0], [0.85, 0.6, 0.2]], [[0.3, 4.5, 30.0], [0.8, 0.5, 0.1]]],
}
METRICS = {"score": DIRECTION, "hits": True}


def run(method, seed, values, metrics=METRICS, **options):
    entries = [
        results.summarise_evaluation(9, split, name, NAMES, row, metrics[name])
        for split in ("validation", "test")
        for name, row in zip(metrics, values, strict=True)
    ]
    return Run(method, seed, 9, evaluations=entries, **options)


def record(found=None, **options):
    runs = [run(m, i, v) for m, seeds in (found or FOUND).items() for i, v in enumerate(seeds)]
    return Results("toy", NAMES, "score", True, runs, directions=METRICS, **options)


def by_hand(values):
    """Δp over all metrics of a task: the mean of tasks of the mean over metrics."""
    base = np.mean(FOUND["Average"], axis=0)  # [2, 3]
    signs = np.array([[1, -1, -1], [1, 1, 1]])
    with np.errstate(divide="ignore", invalid="ignore"):
        gains = signs * (np.array(values) - base) / base
    labels, depth = gains[:, 0].mean(), gains[:, 1].mean()
    normals = gains[0, 2]  # hits of the baseline are zero there
    return 100 * np.mean([labels, depth, normals])


def test_delta_p_is_the_mean_over_tasks_of_the_mean_over_metrics():
    found = record().delta_p()
    assert (found.against, found.split) == ("Average", "test")
    for method, seeds in FOUND.items():
        expected = [by_hand(values) for values in seeds]
        np.testing.assert_allclose(list(found.values[method].values()), expected, rtol=1e-12)
    np.testing.assert_allclose(found.means["L-DRO"], np.mean([*map(by_hand, FOUND["L-DRO"])]))
    # The baseline's zero divides nothing.
    assert found.left_out == ["normals (hits)"]
    assert found.note.endswith("Left out, since theirs is 0 or not finite: normals (hits).")


def test_delta_p_to_models_of_one_task_each_or_a_named_baseline():
    own = {"labels": 0.6, "depth": 4.0, "normals": math.nan}
    found = record(references={"test": own}).delta_p()
    expected = 100 * np.mean([(0.9 - 0.6) / 0.6, (4.0 - 3.0) / 4.0])
    assert found.values["L-DRO"][0] == pytest.approx(expected, rel=1e-12)
    assert found.against == "models of one task each" and found.left_out == ["normals"]
    named = record().delta_p(baseline="L-DRO")
    assert named.against == "L-DRO" and named.means["L-DRO"] == pytest.approx(0, abs=1e-9)
    with pytest.raises(ValueError, match="one of 'Average', 'L-DRO'; found 'x'"):
        record().delta_p(baseline="x")


def test_what_cannot_be_compared_is_no_number_and_never_infinite():
    nothing = {"Average": [np.zeros((2, 3))], "L-DRO": FOUND["L-DRO"]}
    found = record(nothing).delta_p()
    assert len(found.left_out) == 6 and all(map(math.isnan, found.means.values()))
    assert "labels (score), depth (score), normals (score) and 3 more" in found.note
    worse = {**FOUND, "Wild": [[[0.5, math.inf, 1.0], [1.0, 1.0, 1.0]]]}
    assert math.isnan(record(worse).delta_p().means["Wild"])
    assert record({"Average": FOUND["Average"]}).delta_p() is None
    assert record({"Average": []}).delta_p() is None
    stopped = dataclasses.replace(record().runs[-1], stopped="it diverged")
    left = dataclasses.replace(record(), runs=[*record().runs[:-1], stopped])
    assert list(left.delta_p().values["L-DRO"]) == [0]


def test_values_below_zero_are_better_the_higher_they_are():
    # Of a coefficient of determination: from -2 to -1 is a gain of 50 %.
    made = [Run(m, 0, 1, evaluations=[entry]) for m, entry in (("a", r2(-2)), ("b", r2(-1)))]
    assert Results("x", ["t"], "R²", True, made).delta_p().means == {"a": 0.0, "b": 50.0}


def r2(value):
    return results.summarise_evaluation(1, "test", "R²", ["t"], [value], True)


def test_the_average_and_the_worst_of_such_tasks_have_a_minus_where_lower_is_better():
    entry = results.summarise_evaluation(1, "test", "score", NAMES, [0.5, 4.0, 20.0], DIRECTION)
    assert (entry.average, entry.worst, entry.worst_task) == ((0.5 - 24) / 3, -20.0, "normals")
    assert dict(entry.per_task) == {"labels": 0.5, "depth": 4.0, "normals": 20.0}
    lost = results.summarise_evaluation(1, "test", "score", NAMES, [0.5, math.nan, 9], DIRECTION)
    assert math.isnan(lost.worst) and lost.worst_task == "depth"


def test_the_report_honours_the_direction_of_each_task(tmp_path):
    comparison = compare(record())
    table = tables.tasks(comparison)
    # Means of the seeds: L-DRO is better in depth and normals, and shares the labels.
    assert [row[0] for row in table.rows] == ["normals ↓", "depth ↓", "labels ↑"]
    assert table.best == {(0, 2), (1, 2), (2, 1), (2, 2)}
    headline = tables.headline(comparison)
    assert "values with a minus where lower is better" in headline.title
    assert headline.header[4] == "Δp %" and (1, 4) in headline.best
    assert "Lower is better for depth, normals." in sections.introduction(comparison)
    assert sweeps.frontiers(comparison).direction == DIRECTION
    page = reporting.write_report(record(), tmp_path).read_text()
    assert "normals ↓" in page and headline.note.split(" Without")[0] in page
    file = results.save_results(record(), tmp_path / "results.json")
    assert results.load_results(file).directions == METRICS
    # A file holds seven digits.
    kept = results.load_results(file).delta_p().means["L-DRO"]
    assert kept == pytest.approx(record().delta_p().means["L-DRO"], rel=1e-6)


def test_the_setting_that_is_shown_is_the_best_by_these_values():
    worse, better = ([[0.6, d, n], [0.9, 0.5, 0.5]] for d, n in ((4.0, 20.0), (3.0, 15.0)))
    runs = [run("a", 0, v, hyperparameters={"x": i}) for i, v in enumerate((worse, better, worse))]
    for by in ("average", "worst"):
        made = Results("toy", NAMES, "score", True, runs, directions=METRICS, select_by=by)
        assert [s.place for s in compare(made).shown] == [1]


def test_a_metric_is_an_error_of_one_task_and_an_accuracy_of_another():
    labels = np.array([0, 1, 1, 0], np.int32)
    numbers = np.arange(4, dtype=np.float32)
    data = problems.Table(numbers[:, None], {"kind": labels, "height": numbers})

    def init(key, inputs):
        return {"w": np.ones(1, np.float32)}

    def apply(params, inputs):
        x = inputs[:, 0] * params["w"][0]
        return {"kind": x, "height": x}

    def error(outputs, rows):
        return (outputs - rows["targets"]) ** 2

    def is_right(outputs, rows):
        return (outputs > 0) == (rows["targets"] > 0)

    directions = {"kind": True, "height": False}
    made = problems.from_arrays(
        data,
        model=(init, apply),
        loss={"kind": lambda o, r: (o - r["targets"].astype(o.dtype)) ** 2, "height": error},
        metrics={problems.Metric("score", directions): {"kind": is_right, "height": error}},
        validation=data,
        test=data,
    )
    values = made.evaluate({"w": np.full(1, 2, np.float32)}, "test")
    np.testing.assert_allclose(values["score"], [0.75, np.mean(numbers**2)])
    assert made.score(values) == pytest.approx((0.75 - 3.5) / 2)
    # Where they are all alike, it is as one for all.
    same = problems.Metric("x", dict.fromkeys(NAMES, False))
    assert same.direction(NAMES) is False
    assert hash(same) == hash(problems.Metric("x", True)) and same != problems.Metric("x", True)

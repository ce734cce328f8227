"""Figures and report of a sweep, from a made-up record of both kinds of accuracy."""

import dataclasses
import itertools

import numpy as np
import pytest

from ldro_jax import reporting
from ldro_jax.evaluation.pareto import non_dominated
from ldro_jax.reporting import Results, Run, plots, summarise_evaluation, sweeps
from ldro_jax.reporting.plots.pareto import smoothed

STEPS = (10, 20, 30, 40)
NAMES = [f"task {i}" for i in range(5)]
METRICS = ("accuracy", "within-task accuracy")
DRAW = [plots.pareto_frontiers, plots.worst_over_time]


def sweep(num_settings=2, seeds=2):
    """Average, and L-DRO with several settings; the second metric is 0.1 higher."""
    settings = [("Average", {}, 0.0)]
    for i in range(num_settings):
        settings.append(("L-DRO", {"eta": 10.0**-i, "steps": 7}, 0.1 - 0.01 * i))
    runs = []
    for (place, (method, setting, gain)), seed in itertools.product(
        enumerate(settings), range(seeds)
    ):
        rng = np.random.default_rng([seed, place])
        entries = [
            summarise_evaluation(
                step,
                split,
                metric,
                NAMES,
                0.1 * i + gain + 0.1 * step / 40 + offset + 0.02 * rng.random(5),
                True,
            )
            for i, step in enumerate(STEPS)
            for split in ("validation", "test")
            for metric, offset in zip(METRICS, (0.0, 0.1), strict=True)
        ]
        runs.append(Run(method, seed, 40, setting, 0.01, entries))
    return Results("made-up sweep", NAMES, "accuracy", True, runs)


@pytest.fixture(scope="module")
def record():
    return sweep()


def legend_texts(legend):
    return [text.get_text() for text in legend.get_texts()]


def inked(figure):
    """The share of the picture that isn't white."""
    figure.canvas.draw()
    return float(np.mean(np.asarray(figure.canvas.buffer_rgba())[..., :3].min(axis=-1) < 250))


def test_a_panel_per_seed_with_common_axes_and_one_legend(record):
    figure = plots.pareto_frontiers(record)
    assert [axes.get_title() for axes in figure.axes] == ["seed 0", "seed 1"]
    assert len({axes.get_xlim() + axes.get_ylim() for axes in figure.axes}) == 1
    assert [legend_texts(legend) for legend in figure.legends] == [["Average", "L-DRO"]]
    assert not any(axes.get_legend() for axes in figure.axes)
    assert inked(figure) > 0.02


def test_lines_are_the_frontiers_and_all_of_them_are_in_view(record):
    figure = plots.pareto_frontiers(record, split="validation")
    for seed, axes in enumerate(figure.axes):
        lines = {str(line.get_label()): line.get_xydata() for line in axes.lines}
        runs = [r for r in record.runs if r.seed == seed and r.method == "L-DRO"]
        cloud = np.concatenate([sweeps.checkpoints(r, "validation", "accuracy") for r in runs])
        expected = non_dominated(cloud[:, 1:], True)
        np.testing.assert_array_equal(lines["L-DRO"], expected)
        for points in (lines["Average"], lines["L-DRO"]):
            assert np.all((points > [axes.get_xlim()[0], axes.get_ylim()[0]]).all(axis=1))
            assert np.all((points < [axes.get_xlim()[1], axes.get_ylim()[1]]).all(axis=1))


def test_one_seed_has_one_panel_without_a_title_and_seven_have_seven():
    (axes,) = plots.pareto_frontiers(sweep(seeds=1)).axes
    assert axes.get_title() == ""
    figure = plots.pareto_frontiers(sweep(seeds=7))
    assert sum(axes.get_title() != "" for axes in figure.axes) == 7


def test_another_metric_is_drawn_and_named(record):
    figure = plots.pareto_frontiers(record, "within-task accuracy")
    assert "within-task accuracy" in figure.get_supxlabel()
    assert figure.axes[0].get_xlim()[0] > plots.pareto_frontiers(record).axes[0].get_xlim()[0]


def test_smoothing_weighs_the_past_and_skips_missing_values():
    np.testing.assert_allclose(smoothed(np.array([1.0, 2.0, 0.0])), [1.0, 1.4, 0.84])
    np.testing.assert_allclose(smoothed(np.array([np.nan, 1.0, np.nan, 2.0])), [np.nan, 1, 1, 1.4])
    assert smoothed(np.zeros(0)).shape == (0,)


def test_methods_with_several_settings_get_a_panel_that_names_what_differs(record):
    figure = plots.worst_over_time(record)
    alone, panel = figure.axes
    assert [alone.get_title(loc="left"), panel.get_title(loc="left")] == [
        "one setting each",
        "L-DRO",
    ]
    assert legend_texts(alone.get_legend()) == ["Average"]
    assert legend_texts(panel.get_legend()) == ["eta=1", "eta=0.1"]
    assert inked(figure) > 0.02


def test_the_curve_is_the_mean_over_the_seeds_that_were_evaluated(made_up):
    entries = [made_up.evaluation(s, [v, 0.9]) for s, v in ((10, 0.2), (20, 0.4))]
    runs = [Run("A", 0, 20, {"x": 1}, evaluations=entries)]
    runs.append(Run("A", 1, 20, {"x": 1}, evaluations=[made_up.evaluation(10, [0.4, 0.9])]))
    runs.append(Run("A", 0, 20, {"x": 2}, evaluations=entries))
    raw, strong = plots.worst_over_time(made_up.results(runs)).axes[0].lines[:2]
    np.testing.assert_allclose(raw.get_xydata(), [[10, 0.3], [20, 0.4]])
    np.testing.assert_allclose(strong.get_ydata(), [0.3, 0.34])


def test_fifteen_settings_stay_apart():
    figure = plots.worst_over_time(sweep(num_settings=15, seeds=1))
    figure.canvas.draw()
    panel = figure.axes[1]
    lines = [line for line in panel.lines if not str(line.get_label()).startswith("_")]
    assert len({(str(line.get_color()), str(line.get_linestyle())) for line in lines}) == 15
    texts = panel.get_legend().get_texts()
    renderer = figure.canvas.get_renderer()
    boxes = [text.get_window_extent(renderer) for text in texts]
    assert len(boxes) == 15
    assert not any(a.overlaps(b) for a, b in itertools.pairwise(boxes))
    assert all(figure.bbox.x0 <= b.x0 and b.x1 <= figure.bbox.x1 for b in boxes)
    assert all(figure.bbox.y0 <= b.y0 and b.y1 <= figure.bbox.y1 for b in boxes)


@pytest.mark.parametrize("draw", DRAW)
def test_figures_survive_what_is_missing(made_up, draw):
    for runs in ([], [Run("A", 0, 1, stopped="x")]):
        figure = draw(made_up.results(runs))
        assert figure.axes[0].texts[0].get_text().startswith("no ")
    runs = [made_up.run("A $x$", 0, [np.nan, 0.5]), Run("A $x$", 1, 1, {"x": 1}), Run("B", 2, 1)]
    draw(made_up.results(runs)).canvas.draw()


@pytest.mark.parametrize("draw", DRAW)
def test_figures_leave_nothing_open(record, draw):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    before = dict(pyplot.rcParams)
    draw(record).canvas.draw()
    assert pyplot.get_fignums() == []
    assert dict(pyplot.rcParams) == before


@pytest.fixture(scope="module")
def written(record, tmp_path_factory):
    return reporting.write_report(record, tmp_path_factory.mktemp("sweep"), config_text="")


def titles(path):
    return [part.split("</h2>")[0] for part in path.read_text(encoding="utf-8").split("<h2>")[1:]]


def test_the_report_of_a_sweep_has_its_sections_in_order(written):
    assert titles(written) == [
        "Summary",
        "Pareto frontiers",
        "Chosen on validation",
        "Worst task over time",
        "Pareto frontiers: within-task accuracy",
        "Average against worst task",
        "Every task",
        "Over training",
        "Time per step",
        "How it was run",
        "Configuration",
    ]
    names = {"pareto_frontiers", "pareto_frontiers_within_task_accuracy", "worst_over_time"}
    figures = {path.stem: path for path in (written.parent / "figures").iterdir()}
    assert names < set(figures)
    # A white picture of this size compresses to about 5 kB.
    assert all(figures[name].stat().st_size > 15_000 for name in names)


def test_the_other_sections_show_the_setting_that_validation_prefers(written):
    source = written.read_text(encoding="utf-8")
    assert "2 methods, 3 settings, 5 tasks, 2 seeds" in source
    assert "for which the worst task was best on validation, mean over seeds" in source
    assert "at the last checkpoint that was tested: L-DRO (eta=1)." in source
    task_table = source.split('id="every-task"')[1].split("</table>")[0]
    assert '<th class="n">L-DRO</th></tr>' in task_table
    provenance = source.split('id="how-it-was-run"')[1]
    assert "L-DRO (eta=1)" in provenance and "L-DRO (eta=0.1)" in provenance


def test_a_baseline_is_a_method_with_all_its_settings(record, tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "available", lambda: False)
    for i, name in enumerate(("L-DRO", "L-DRO (eta=0.1)")):
        path = reporting.write_report(record, tmp_path / str(i), config_text="", baseline=name)
        assert "minus L-DRO</th>" in path.read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="found 'nobody'"):
        reporting.write_report(record, tmp_path, config_text="", baseline="nobody")


def test_without_matplotlib_the_tables_stay(record, tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "available", lambda: False)
    path = reporting.write_report(record, tmp_path, config_text="")
    found = titles(path)
    assert "Pareto frontiers" in found and "Chosen on validation" in found
    assert "Worst task over time" not in found and "Figures" in found
    assert not (tmp_path / "figures").exists()


def test_a_sweep_without_validation_says_so(record, tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "available", lambda: False)
    runs = [
        dataclasses.replace(r, evaluations=[e for e in r.evaluations if e.split == "test"])
        for r in record.runs
    ]
    path = reporting.write_report(dataclasses.replace(record, runs=runs), tmp_path, config_text="")
    source = path.read_text(encoding="utf-8")
    assert "No checkpoint was evaluated on both validation and test." in source
    assert "comes first in the record" in source

"""Figures: the arithmetic behind them, what they draw, and names that cover nothing."""

import dataclasses
import itertools

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("matplotlib")

from matplotlib.axis import Axis
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from ldro_jax import reporting
from ldro_jax.records.results import Results, Run, Series, summarise_evaluation
from ldro_jax.reporting import figures, sweeps
from ldro_jax.reporting.comparison import compare
from ldro_jax.reporting.figures import balance, interaction, pareto, relative, style, toy, training
from ldro_jax.reporting.pareto import non_dominated

STEPS = (10, 20, 30, 40)
NAMES = [f"task {i}" for i in range(5)]
METRICS = ("accuracy", "within-task accuracy")


def sweep(num_settings=2, seeds=2, names=NAMES):
    """Average, and L-DRO with several settings; the second metric is 0.1 higher."""
    settings = [("Average", {}, 0.0)]
    for i in range(num_settings):
        settings.append(("L-DRO", {"eta": 10.0**-i, "steps": 7}, 0.1 - 0.01 * i))
    runs = []
    for (place, (method, setting, gain)), seed in itertools.product(
        enumerate(settings), range(seeds)
    ):
        rng = np.random.default_rng([seed, place])
        entries = []
        for (i, step), split in itertools.product(enumerate(STEPS), ("validation", "test")):
            for metric, offset in zip(METRICS, (0.0, 0.1), strict=True):
                values = 0.1 * i + gain + 0.1 * step / 40 + offset + 0.02 * rng.random(len(names))
                entries.append(summarise_evaluation(step, split, metric, names, values, True))
        runs.append(Run(method, seed, 40, setting, 0.01, entries))
    return Results("made-up sweep", names, "accuracy", True, runs)


def with_references(record, **options):
    """The record next to models of one task each, whose values are all 0.5."""
    references = {"test": dict.fromkeys(record.task_names, 0.5)}
    sizes = {name: 10.0**i for i, name in enumerate(record.task_names)}
    return dataclasses.replace(record, references=references, task_sizes=sizes, **options)


def draw_interaction(comparison):
    found = interaction.last_interaction(comparison)
    return interaction.interaction_matrix(found, comparison.record.task_names)


DRAW = {
    "average_vs_worst": lambda comparison: balance.average_vs_worst(comparison).figure,
    "ranking": balance.rankings,
    "task_values": lambda comparison: balance.task_values(comparison).figure,
    "step_time": lambda comparison: balance.step_time(comparison).figure,
    "metric_over_steps": training.both_over_steps,
    "weights_over_time": training.weights_over_time,
    "signal_over_time": training.signal_over_time,
    "interaction_matrix": draw_interaction,
    "relative_by_task": relative.relative_by_task,
    "pareto_frontiers": lambda comparison: pareto.pareto_frontiers(sweeps.frontiers(comparison)),
    "worst_over_time": pareto.worst_over_time,
}


EACH_TASK = (
    *("task_values", "interaction_matrix", "weights_over_time", "signal_over_time"),
    "relative_by_task",
)


def texts(figure):
    return [t.get_text() for t in figure.findobj(Text)]


def legend_texts(legend):
    return [text.get_text() for text in legend.get_texts()]


def visible_texts(figure):
    """Everything that is written in a figure, but for the values in the cells of a matrix."""
    unseen = {text for axes in figure.axes if axes.images for text in axes.texts}
    for axis in figure.findobj(Axis):
        low, high = sorted(axis.get_view_interval())
        for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
            if not low <= tick.get_loc() <= high or not axis.axes.axison:
                unseen |= {tick.label1, tick.label2}
    found = [t for t in figure.findobj(Text) if t not in unseen and t.get_visible()]
    return [t for t in found if t.get_text().strip()]


def drawn_boxes(axes, renderer):
    """Boxes of all points, error bars and bars of an axes, in pixels, shape [B, 4]."""
    boxes = [bar.get_window_extent(renderer).extents for bar in axes.patches if axes.containers]
    for line in axes.lines:
        if line.get_marker() not in ("", "None", None):
            points = axes.transData.transform(np.column_stack(line.get_data()).astype(float))
            radius = line.get_markersize() / 2 * axes.figure.dpi / 72
            boxes += [[x - radius, y - radius, x + radius, y + radius] for x, y in points]
    for collection in axes.collections:
        for segment in getattr(collection, "get_segments", lambda: [])():
            boxes.append(Bbox(axes.transData.transform(segment)).padded(2).extents)
    found = np.array(boxes, dtype=float).reshape(-1, 4)
    # The rest is clipped.
    low, high = axes.bbox.extents[:2], axes.bbox.extents[2:]
    found = np.hstack([np.maximum(found[:, :2], low), np.minimum(found[:, 2:], high)])
    return found[(found[:, 2:] > found[:, :2]).all(axis=1)]


def crossings(figure):
    """Pairs of names that cross each other, and names that cross what is drawn."""
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    texts = visible_texts(figure)
    boxes = np.array([text.get_window_extent(renderer).extents for text in texts])
    drawn = np.concatenate([drawn_boxes(axes, renderer) for axes in figure.axes])

    def cross(a, b):
        low = np.maximum(a[:, None, :2], b[None, :, :2])
        return (np.minimum(a[:, None, 2:], b[None, :, 2:]) - low > 1).all(axis=2)

    # Names at an angle stand in boxes that are larger than they.
    straight = np.array([text.get_rotation() % 90 == 0 for text in texts])
    names = np.triu(cross(boxes, boxes), 1) & straight & straight[:, None]
    found = [
        (texts[i].get_text(), texts[j].get_text()) for i, j in zip(*np.nonzero(names), strict=True)
    ]
    return found + [texts[i].get_text() for i in np.nonzero(cross(boxes, drawn).any(axis=1))[0]]


MANY = [f"a language with a long name {i}" for i in range(40)]


@pytest.mark.parametrize("name", DRAW)
@pytest.mark.parametrize("kind", ["eight tasks", "forty tasks", "one task", "sweep"])
def test_no_name_crosses_a_point_a_bar_or_another_name(made_up, full, name, kind):
    record = {
        "eight tasks": lambda: full,
        "forty tasks": lambda: made_up.record(MANY, seeds=2),
        "one task": lambda: made_up.record(["alone"], seeds=2),
        "sweep": lambda: sweep(15, 3, MANY[:9]),
    }[kind]()
    if kind == "sweep" and name in ("weights_over_time", "signal_over_time", "interaction_matrix"):
        pytest.skip("it has none of these")
    if kind == "one task" and name == "weights_over_time":
        pytest.skip("one weight does not move")
    assert crossings(DRAW[name](compare(with_references(record)))) == []


@pytest.mark.parametrize("name", ["average_vs_worst", "task_values", "step_time"])
def test_a_name_that_crosses_something_would_be_noticed(full, name):
    figure = DRAW[name](compare(full))
    axes = figure.axes[0]
    place = axes.containers[-1][0]
    x, y = (
        (place.get_width() / 2, place.get_y())
        if hasattr(place, "get_width")
        else place.get_xydata()[0]
    )
    axes.text(x, y, "planted")
    assert "planted" in crossings(figure)


@pytest.mark.parametrize("name", DRAW)
def test_every_figure_leaves_nothing_open_or_changed(full, name):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    before = dict(pyplot.rcParams)
    figure = DRAW[name](compare(with_references(full)))
    figure.canvas.draw()
    picture = np.asarray(figure.canvas.buffer_rgba())[..., :3].min(axis=-1)
    assert np.mean(picture < 250) > 0.01
    assert pyplot.get_fignums() == [] and dict(pyplot.rcParams) == before


def test_cosines_have_a_unit_diagonal_and_no_zero_division():
    gradients = np.array([[3.0, 4.0], [0.0, 0.0], [-4.0, 3.0], [-6.0, -8.0]])
    gram = gradients @ gradients.T
    expected = [[1, 0, 0, -1], [0, 0, 0, 0], [0, 0, 1, 0], [-1, 0, 0, 1]]
    np.testing.assert_allclose(interaction.cosine_similarity(gram), expected, atol=1e-12)
    np.testing.assert_allclose(interaction.gradient_norms(gram), [5, 0, 5, 10])


@pytest.mark.parametrize("scale", [1e-15, 1.0, 1e15])
def test_cosines_do_not_depend_on_scale(scale):
    gradients = np.random.default_rng(0).normal(size=(5, 8))
    gram = gradients @ gradients.T
    found = interaction.cosine_similarity(scale * gram)
    np.testing.assert_allclose(found, interaction.cosine_similarity(gram), rtol=1e-9)


def test_similar_tasks_stand_together():
    family = np.array([0, 1, 2, 0, 1, 2, 0, 1])
    order = interaction.similarity_order((family[:, None] == family[None]).astype(float))
    assert sorted(order) == list(range(8))
    assert np.count_nonzero(np.diff(family[order])) == 2
    for size in (0, 1, 2):
        assert sorted(interaction.similarity_order(np.ones((size, size)))) == list(range(size))


def test_a_chain_is_laid_out_in_line():
    place = np.array([3, 0, 4, 1, 2])
    order = interaction.similarity_order(-np.abs(place[:, None] - place[None]).astype(float))
    assert place[order].tolist() in ([0, 1, 2, 3, 4], [4, 3, 2, 1, 0])


def test_the_last_finite_interaction_is_shown(made_up):
    runs = [
        Run("A", 0, 9),
        Run("B", 0, 9, interaction=Series([0, 9], [np.eye(2), 4 * np.eye(2)])),
        Run("B", 1, 9, interaction=Series([9], [np.full((2, 2), np.nan)])),
    ]
    found = interaction.last_interaction(compare(made_up.results(runs)))
    assert (found.label, found.step, found.seeds) == ("B", 9, 1)
    np.testing.assert_allclose(found.cosines, np.eye(2))
    np.testing.assert_allclose(found.norms, [2, 2])
    assert interaction.last_interaction(compare(made_up.results(runs[:1]))) is None


def test_values_are_written_for_few_tasks_only(made_up):
    for count in (12, 13):
        names = [f"t{i}" for i in range(count)]
        record = made_up.record(names, seeds=1, methods=["L-DRO online"])
        found = texts(draw_interaction(compare(record))).count("1.00")
        assert found >= 12 if count == 12 else not found


def test_weights_are_averaged_over_common_steps_and_known_values(made_up):
    runs = [
        Run("A", 0, 3, weights=Series([1, 2, 3], [[0.2], [0.4], [np.nan]])),
        Run("A", 1, 3, weights=Series([2, 3], [[0.6], [0.8]])),
        Run("A", 2, 3),
    ]
    (setting,) = compare(made_up.results(runs)).shown
    steps, values = training.by_task(setting)
    assert steps.tolist() == [2, 3]
    np.testing.assert_allclose(values, [[0.5], [0.8]])
    (setting,) = compare(made_up.results(runs[2:])).shown
    assert training.by_task(setting) is None


def test_only_methods_with_moving_weights_get_a_panel(full):
    found = training.moving_weights(compare(full))
    assert list(found) == ["Group DRO", "Interpolated", "L-DRO online"]


def test_signal_is_drawn_from_where_all_tasks_were_measured(full):
    ((label, (steps, values)),) = training.signal(compare(full)).items()
    logged = full.runs[-1].signal
    assert label.startswith("L-DRO") and np.isnan(logged.values[0]).any()
    assert steps.tolist() == logged.steps[1:].tolist()
    np.testing.assert_allclose(values, logged.values[1:])
    # The least at the end have colours.
    figure = training.signal_over_time(compare(full))
    least = np.argsort(values[-1])[:6]
    (legend,) = figure.legends
    assert legend_texts(legend) == [*(full.task_names[i] for i in least), "other 2 tasks"]


def test_a_missing_number_is_left_out_of_a_curve(made_up):
    entries = [made_up.evaluation(s, [v, 0.9]) for s, v in ((10, 0.2), (20, np.nan), (30, 0.4))]
    other = [made_up.evaluation(s, [v, 0.9]) for s, v in ((10, 0.4), (20, 0.3))]
    runs = [Run("A", 0, 30, evaluations=entries), Run("A", 1, 30, evaluations=other)]
    figure = training.both_over_steps(compare(made_up.results(runs)))
    np.testing.assert_allclose(
        figure.axes[1].lines[0].get_xydata(), [[10, 0.3], [20, 0.3], [30, 0.4]]
    )


def test_looks_are_distinct_and_skip_reserved_colours():
    found = style.looks(range(56))
    assert len({(k.color, k.marker) for k in found.values()}) == 56
    reserved = found[0].color
    assert all(k.color != reserved for k in style.looks("abc", without=[reserved]).values())


def test_trajectories_draw_every_panel():
    path = np.stack([np.linspace(-2, -0.3, 9), np.linspace(1, 0, 9)], axis=1)
    panels = [("a", {"Average": path}), ("b", {"L-DRO": path, "L-DRO online": path + 0.1})]
    figure = toy.trajectories(panels, path[:3], [1, 0], 1.25)
    figure.canvas.draw()
    assert [axes.get_title() for axes in figure.axes] == ["a", "b"]
    assert {"L-DRO online", "outlier task", "start"} <= set(texts(figure.legends[0]))
    assert all(axes.patches[0].radius == 1.25 for axes in figure.axes)


def test_lower_is_better_is_said_on_the_axis(full):
    losses = dataclasses.replace(full, higher_is_better=False)
    assert any(
        "lower is better" in text for text in texts(balance.task_values(compare(losses)).figure)
    )


def test_a_panel_per_seed_with_common_axes_and_one_legend():
    figure = DRAW["pareto_frontiers"](compare(sweep()))
    assert [axes.get_title() for axes in figure.axes] == ["seed 0", "seed 1"]
    assert len({axes.get_xlim() + axes.get_ylim() for axes in figure.axes}) == 1
    assert [legend_texts(legend) for legend in figure.legends] == [["Average", "L-DRO"]]
    (axes,) = DRAW["pareto_frontiers"](compare(sweep(seeds=1))).axes
    assert axes.get_title() == ""
    seven = DRAW["pareto_frontiers"](compare(sweep(seeds=7)))
    assert sum(axes.get_title() != "" for axes in seven.axes) == 7


def test_lines_are_the_frontiers_and_all_of_them_are_in_view():
    found = sweeps.frontiers(compare(sweep()))
    for seed, axes in enumerate(pareto.pareto_frontiers(found).axes):
        drawn = [line.get_xydata() for line in axes.lines if line.get_marker() != "."]
        for points, method in zip(drawn[-2:], ("Average", "L-DRO"), strict=True):
            expected = non_dominated(found.clouds[method][seed], True)
            np.testing.assert_array_equal(points, expected)
            assert np.all(points > [axes.get_xlim()[0], axes.get_ylim()[0]])
            assert np.all(points < [axes.get_xlim()[1], axes.get_ylim()[1]])


def test_smoothing_weighs_the_past_and_skips_missing_values():
    def smoothed(*values, **options):
        return pareto.smoothed(pd.Series(values, dtype=float), **options)

    np.testing.assert_allclose(smoothed(1, 2, 0), [1.0, 1.4, 0.84])
    np.testing.assert_allclose(smoothed(np.nan, 1, np.nan, 2), [np.nan, 1, 1, 1.4])
    assert len(smoothed()) == 0
    logs = np.log(smoothed(*np.exp([9.0, 4.0]), logarithms=True))
    np.testing.assert_allclose(logs, [9.0, 0.6 * 9 + 0.4 * 4])


def test_methods_with_several_settings_get_a_panel_that_names_what_differs():
    alone, panel = pareto.worst_over_time(compare(sweep())).axes
    assert alone.get_title(loc="left") == "one setting each"
    assert panel.get_title(loc="left") == "L-DRO"
    assert legend_texts(alone.get_legend()) == ["Average"]
    assert legend_texts(panel.get_legend()) == ["eta=1", "eta=0.1"]


def test_fifteen_settings_stay_apart():
    panel = pareto.worst_over_time(compare(sweep(num_settings=15, seeds=1))).axes[1]
    lines = [line for line in panel.lines if not str(line.get_label()).startswith("_")]
    assert len({(str(line.get_color()), str(line.get_linestyle())) for line in lines}) == 15


def test_relative_values_go_from_the_largest_task_to_the_smallest(made_up):
    record = with_references(made_up.results([made_up.run("A", 0, [0.6, 0.4, 0.5])], num_tasks=3))
    top, bottom = relative.relative_by_task(compare(record)).axes
    labels = [t.get_text() for t in bottom.get_xticklabels()]
    assert labels == ["task 2", "task 1", "task 0"]
    np.testing.assert_allclose(top.lines[1].get_ydata(), [0, -20, 20], atol=1e-9)
    assert bottom.get_yscale() == "log" and "%" in top.get_ylabel()
    (single,) = relative.relative_by_task(compare(dataclasses.replace(record, task_sizes={}))).axes
    assert [t.get_text() for t in single.get_xticklabels()] == list(record.task_names)


def test_values_that_fall_by_orders_of_magnitude_have_a_log_axis(made_up):
    entries = [
        made_up.evaluation(s, [v, v], metric="accuracy", higher=False)
        for s, v in ((1, 4000.0), (2, 100.0), (3, 50.0))
    ]
    for used, scale in ((entries, "log"), (entries[1:], "linear")):
        runs = [Run("A", 0, 3, {"x": x}, evaluations=used) for x in (1, 2)]
        record = dataclasses.replace(made_up.results(runs), higher_is_better=False)
        for draw in (training.both_over_steps, pareto.worst_over_time):
            figure = draw(compare(record))
            figure.canvas.draw()
            assert {axes.get_yscale() for axes in figure.axes} == {scale}
            labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
            assert "100" in labels and not any("$" in text for text in labels)


@pytest.fixture
def a_font(tmp_path, monkeypatch):
    """Installs a font that has one Chinese letter."""
    font_builder = pytest.importorskip("fontTools.fontBuilder")
    from fontTools.pens.ttGlyphPen import TTGlyphPen
    from matplotlib import font_manager

    pen = TTGlyphPen(None)
    for move, place in zip(
        (pen.moveTo, *[pen.lineTo] * 3), ((0, 0), (0, 900), (900, 900), (900, 0)), strict=True
    ):
        move(place)
    pen.closePath()
    builder = font_builder.FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "day"])
    builder.setupCharacterMap({ord("日"): "day"})
    builder.setupGlyf(dict.fromkeys((".notdef", "day"), pen.glyph()))
    builder.setupHorizontalMetrics(dict.fromkeys((".notdef", "day"), (1000, 0)))
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": "SimHei", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(tmp_path / "SimHei.ttf")

    def install():
        manager = font_manager.fontManager
        monkeypatch.setattr(manager, "ttflist", list(manager.ttflist))
        manager.addfont(tmp_path / "SimHei.ttf")
        clear()

    def clear():
        style._fonts.cache_clear()
        style._letters.cache_clear()

    yield install
    monkeypatch.undo()
    clear()


def test_names_that_no_font_has_are_numbers_in_pictures_and_names_elsewhere(
    made_up, a_font, monkeypatch, tmp_path
):
    monkeypatch.setattr(style, "_FURTHER_FONTS", ("SimHei",))
    style._fonts.cache_clear()
    names = ["clean", "日", "month 月"]
    record = with_references(made_up.record(names, seeds=1))
    page = reporting.write_report(record, tmp_path).read_text(encoding="utf-8")
    assert "task no. 2</td>" in page and "<td>month 月</td>" in page
    comparison = compare(record)
    for name in EACH_TASK:
        found = texts(DRAW[name](comparison))
        assert {"clean", "task no. 2", "task no. 3"} <= set(found), name
    assert style.short("L-月") == "L-?"
    a_font()
    assert list(style.task_labels(names).values()) == ["clean", "日", "task no. 3"]
    # Warnings are errors, and matplotlib warns of letters that the fonts of a text lack.
    figure = DRAW["task_values"](comparison)
    figure.savefig(tmp_path / "figure.png")
    assert "日" in texts(figure)


def test_figures_of_hundreds_of_tasks_name_some_of_them_and_stay_small(made_up):
    names = [f"task {i:03d}" for i in range(300)]
    record = with_references(made_up.record(names, seeds=1))
    sizes = {name: 1e6 / i for i, name in enumerate(names, 1)}
    comparison = compare(dataclasses.replace(record, task_sizes=sizes))
    for name in EACH_TASK:
        figure = DRAW[name](comparison)
        assert max(figure.get_size_inches()) < 14, name
        assert len(set(texts(figure)) & set(names)) <= style.MANY, name
        assert crossings(figure) == [], name
    # The others of the weights are two bands in each panel, not a line for each.
    figure = DRAW["weights_over_time"](comparison)
    assert all(len(axes.lines) < 10 for axes in figure.axes)


ON_AXES = {name: getattr(figures, name) for name in figures.__all__}


@pytest.mark.parametrize("name", ON_AXES)
def test_a_figure_of_one_axes_is_drawn_on_those_that_are_given(name, full):
    figure = style.new_figure(10, 5)
    ax, other = figure.subplots(1, 2)
    assert ON_AXES[name](full, ax) is ax
    alone = ON_AXES[name](full)
    # The same is drawn from a record and from what is resolved of it, there and on its own.
    again = ON_AXES[name](compare(full))
    points = [[line.get_xydata().tolist() for line in axes.lines] for axes in (ax, alone, again)]
    assert points[0] == points[1] == points[2]
    assert ax.lines or ax.patches
    # What is beside it stays as it was, and no legend lies over it.
    assert not other.has_data() and not figure.legends
    (own,) = alone.figure.axes
    assert own is alone and ax.get_xlabel() == alone.get_xlabel()
    named = [legend_texts(x) for x in (ax.get_legend(), *alone.figure.legends) if x is not None]
    assert named in ([], [list(full_labels(full))] * 2)
    figure.canvas.draw()


def full_labels(record):
    return dict.fromkeys(run.method for run in record.runs)


@pytest.mark.parametrize("draw", [figures.ranking, figures.metric_over_steps])
def test_either_of_the_average_and_the_worst_task_is_drawn(draw, full):
    titles = [draw(full, which=which).get_title() for which in ("average", "worst")]
    assert titles == ["average over tasks", "worst task"]
    with pytest.raises(ValueError, match="which must be one of 'average', 'worst', but it is 'x'"):
        draw(full, which="x")


def test_another_baseline_is_the_one_that_others_are_measured_by(full):
    base = compare(full, baseline="Group DRO")
    assert figures.step_time(base).get_xlabel().endswith("as a ratio to Group DRO")

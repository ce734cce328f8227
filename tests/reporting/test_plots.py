"""Figures: the arithmetic behind them, and that they draw anything sensible without leaks."""

import dataclasses
import itertools
import sys

import numpy as np
import pytest

from ldro_jax.reporting import Run, Series, plots
from ldro_jax.reporting.plots.balance import non_dominated
from ldro_jax.reporting.plots.interaction import (
    cosine_similarity,
    gradient_norms,
    last_interaction,
    similarity_order,
)
from ldro_jax.reporting.plots.style import looks
from ldro_jax.reporting.plots.training import mean_series, moving_weights
from ldro_jax.reporting.summary import group_runs

DRAW = [
    plots.average_vs_worst,
    plots.interaction_matrix,
    plots.metric_over_steps,
    plots.step_time,
    plots.task_values,
    plots.weights_over_time,
]


def texts(figure):
    from matplotlib.text import Text

    return [t.get_text() for t in figure.findobj(Text)]


def test_the_frontier_keeps_what_nothing_beats():
    points = [[1, 1], [2, 0], [0, 2], [0, 0], [1, 1], [0.5, 1], [np.nan, 9]]
    assert non_dominated(points, True).tolist() == [[0, 2], [1, 1], [2, 0]]
    assert non_dominated(points, False).tolist() == [[0, 0]]
    assert non_dominated(np.zeros((0, 2)), True).shape == (0, 2)


def test_cosines_have_a_unit_diagonal_and_no_zero_division():
    gradients = np.array([[3.0, 4.0], [0.0, 0.0], [-4.0, 3.0], [-6.0, -8.0]])
    gram = gradients @ gradients.T
    expected = [[1, 0, 0, -1], [0, 0, 0, 0], [0, 0, 1, 0], [-1, 0, 0, 1]]
    np.testing.assert_allclose(cosine_similarity(gram), expected, atol=1e-12)
    np.testing.assert_allclose(gradient_norms(gram), [5, 0, 5, 10])


@pytest.mark.parametrize("scale", [1e-15, 1.0, 1e15])
def test_cosines_do_not_depend_on_scale(scale):
    gradients = np.random.default_rng(0).normal(size=(5, 8))
    gram = gradients @ gradients.T
    np.testing.assert_allclose(cosine_similarity(scale * gram), cosine_similarity(gram), rtol=1e-9)


def test_similar_tasks_stand_together():
    family = np.array([0, 1, 2, 0, 1, 2, 0, 1])
    order = similarity_order((family[:, None] == family[None]).astype(float))
    assert sorted(order) == list(range(8))
    assert np.count_nonzero(np.diff(family[order])) == 2
    assert similarity_order(np.zeros((0, 0))).tolist() == []
    assert similarity_order(np.ones((1, 1))).tolist() == [0]


def test_a_chain_is_laid_out_in_line():
    place = np.array([3, 0, 4, 1, 2])
    order = similarity_order(-np.abs(place[:, None] - place[None]))
    assert place[order].tolist() in ([0, 1, 2, 3, 4], [4, 3, 2, 1, 0])


def test_series_are_averaged_over_common_steps_and_known_values(made_up):
    runs = [
        Run("A", 0, 3, weights=Series([1, 2, 3], [[0.2], [0.4], [np.nan]])),
        Run("A", 1, 3, weights=Series([2, 3], [[0.6], [0.8]])),
        Run("A", 2, 3),
    ]
    steps, values = mean_series(group_runs(runs)[0], "weights")
    assert steps.tolist() == [2, 3]
    np.testing.assert_allclose(values, [[0.5], [0.8]])
    assert mean_series(group_runs(runs[2:])[0], "weights") is None


def test_only_methods_with_moving_weights_get_a_panel(full):
    assert list(moving_weights(full)) == ["Group DRO", "Interpolated", "L-DRO online"]


def test_the_last_finite_interaction_is_shown(made_up):
    runs = [
        Run("A", 0, 9),
        Run("B", 0, 9, interaction=Series([0, 9], [np.eye(2), 4 * np.eye(2)])),
        Run("B", 1, 9, interaction=Series([9], [np.full((2, 2), np.nan)])),
    ]
    label, step, seeds, cosines, norms = last_interaction(made_up.results(runs))
    assert (label, step, seeds) == ("B", 9, 1)
    np.testing.assert_allclose(cosines, np.eye(2))
    np.testing.assert_allclose(norms, [2, 2])
    assert last_interaction(made_up.results(runs[:1])) is None


def test_looks_are_distinct_and_skip_reserved_colours():
    found = looks([str(i) for i in range(56)])
    assert len({(k.colour, k.marker) for k in found.values()}) == 56
    reserved = found["0"].colour
    assert all(k.colour != reserved for k in looks(["a", "b", "c"], without=[reserved]).values())


@pytest.mark.parametrize("draw", DRAW)
def test_every_figure_draws_a_full_record_and_leaves_nothing_open(full, draw):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    before = dict(pyplot.rcParams)
    figure = draw(full)
    figure.canvas.draw()
    assert figure.axes
    assert pyplot.get_fignums() == []
    assert dict(pyplot.rcParams) == before


@pytest.mark.parametrize("draw", DRAW)
def test_every_figure_survives_a_record_with_nothing_in_it(made_up, draw):
    for runs in ([], [Run("A", 0, 1, stopped="x")]):
        figure = draw(made_up.results(runs))
        figure.canvas.draw()
        assert any("no " in text for text in texts(figure))


@pytest.mark.parametrize("draw", DRAW)
def test_every_figure_survives_one_run_with_missing_numbers(made_up, draw):
    run = made_up.run("A $x$", 0, [np.nan, 0.5], weights=Series([0, 1], [[0.5, 0.5], [0.4, 0.6]]))
    draw(made_up.results([run])).canvas.draw()


def test_labels_do_not_collide(full):
    figure = plots.average_vs_worst(full)
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    boxes = [t.get_window_extent(renderer) for t in figure.axes[0].texts]
    assert len(boxes) == 4
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    frame = figure.axes[0].get_window_extent(renderer)
    assert all(frame.x0 <= b.x0 and b.x1 <= frame.x1 for b in boxes)


def test_forty_tasks_keep_their_names_apart(made_up):
    record = made_up.record([f"language number {i}" for i in range(40)], seeds=2)
    figure = plots.task_values(record)
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    boxes = [t.get_window_extent(renderer) for t in figure.axes[0].get_yticklabels()]
    assert len(boxes) == 40
    assert not any(a.overlaps(b) for a, b in itertools.pairwise(boxes))


def test_values_are_written_for_few_tasks_only(made_up):
    few = made_up.record([f"t{i}" for i in range(12)], seeds=1, methods=["L-DRO online"])
    many = made_up.record([f"t{i}" for i in range(13)], seeds=1, methods=["L-DRO online"])
    assert texts(plots.interaction_matrix(few)).count("1.00") >= 12
    assert "1.00" not in texts(plots.interaction_matrix(many))


def test_trajectories_draw_every_panel():
    path = np.stack([np.linspace(-2, -0.3, 9), np.linspace(1, 0, 9)], axis=1)
    panels = [("a", {"Average": path}), ("b", {"L-DRO": path, "L-DRO online": path + 0.1})]
    figure = plots.trajectories(panels, path[:3], [1, 0], [1, 0], 1.25)
    figure.canvas.draw()
    assert [axes.get_title() for axes in figure.axes] == ["a", "b"]
    assert {"L-DRO online", "outlier task", "start"} <= set(texts(figure.legends[0]))
    assert all(axes.patches[0].radius == 1.25 for axes in figure.axes)


def test_without_matplotlib_the_message_says_what_to_install(full, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert not plots.available()
    with pytest.raises(ImportError, match=r"pip install 'ldro-jax\[plots\]'"):
        plots.step_time(full)


def test_lower_is_better_is_said_on_the_axis(full):
    losses = dataclasses.replace(full, higher_is_better=False)
    assert any("lower is better" in text for text in texts(plots.task_values(losses)))

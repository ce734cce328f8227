"""Figure 2 of the paper, from the configuration that reproduces it."""

import pathlib

import gin
import jax
import numpy as np
import pytest
import tiny

from ldro_jax import configuration
from ldro_jax.records import results
from ldro_jax.tasks import synthetic as tasks
from ldro_jax.training import synthetic

_FILE = pathlib.Path(__file__).parents[2] / "gin_configs" / "experiments" / "synthetic.gin"


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    directory = tmp_path_factory.mktemp("synthetic")
    weights, ready = {}, []

    class Spy:
        def __init__(self, method, *args, **options):
            self._name, self._traced = method.name, trajectory_fn(method, *args, **options)

        def lower(self):
            return self

        def compile(self):
            follow = self._traced.lower().compile()

            def spy(key):
                path = follow(key)
                weights.setdefault(self._name, []).append(np.asarray(path[1]))
                return path

            return spy

    trajectory_fn = synthetic.trajectory_fn
    experiment = configuration.load([str(_FILE)], [])
    with pytest.MonkeyPatch.context() as context:
        context.setattr(synthetic, "trajectory_fn", Spy)
        found = experiment(
            output_dir=directory,
            data_dir=None,
            config_text=configuration.text(),
            ready=lambda: ready.append(list(directory.iterdir())),
        )
    assert ready == [[]]
    gin.clear_config()
    return found, directory, weights


def last(record, method):
    return [run.evaluations[-1] for run in record[0].runs if run.method == method]


def test_average_ends_near_the_nine_tasks(record):
    (end,) = last(record, "Average")
    assert end.per_task["outlier"] == pytest.approx(3.45, abs=0.05)


def test_dro_is_stuck_on_the_edge(record):
    (end,) = last(record, "DRO")
    assert end.per_task["outlier"] == pytest.approx(1.5625, abs=1e-3)
    assert end.average > 1.0


@pytest.mark.parametrize("method", ["L-DRO exact", "L-DRO online"])
def test_lookahead_reaches_the_same_outlier_loss_and_a_better_mean(record, method):
    (end,) = last(record, method)
    assert end.per_task["outlier"] == pytest.approx(1.5625, abs=1e-3)
    assert end.average < 0.79 and end.worst_task == "outlier"


def test_under_noise_the_online_weights_jump_less(record):
    def jumps(method):
        # The record has every 50th step only.
        weights = np.stack(record[2][method])
        assert weights.shape == (3, 3000, 10)
        return np.abs(np.diff(weights, axis=1)).sum(axis=2).mean()

    assert jumps("L-DRO online, noisy") < 0.1 * jumps("L-DRO exact, noisy")


def test_the_record_is_complete(record):
    found, directory, _ = record
    assert found.metric == "loss" and not found.higher_is_better
    assert found.task_names[-1] == "outlier" and len(found.task_names) == 10
    for run in found.runs:
        assert [e.step for e in run.evaluations] == list(range(50, 3001, 50))
        assert run.weights.values.shape == (60, 10) and run.seconds_per_step > 0
    assert len(results.load_results(directory / "results.json").runs) == len(found.runs) == 10
    page = (directory / "report.html").read_text(encoding="utf-8")
    assert "Paths over the task points" in page
    (figure,) = (directory / "figures").glob("paths*.png")
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_a_path_is_gradient_descent_on_the_average():
    points = tasks.points()
    traced = synthetic.trajectory_fn(
        tiny.AVERAGE, points, start=(1.0, 1.2), learning_rate=0.01, train_steps=20
    )
    follow = traced.lower().compile()
    params, weights = follow(jax.random.key(0))
    np.testing.assert_allclose(weights, 0.1, rtol=1e-6)
    expected = [np.array([1.0, 1.2])]
    for _ in range(20):
        r, phi = expected[-1]
        radius = 1.25 + r**2
        direction, tangent = np.array([[np.cos(phi), np.sin(phi)], [-np.sin(phi), np.cos(phi)]])
        offset = np.array([1.0, 0.0]) + radius * direction - points.mean(axis=0)
        gradient = 2 * np.array([offset @ direction * 2 * r, offset @ tangent * radius])
        expected.append(expected[-1] - 0.01 * gradient)
    np.testing.assert_allclose(params, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": -0.1}, r"noise must be a number in \[0, inf\)"),
        ({"seeds": (0, 0)}, "seeds must be seeds that are all different"),
        ({"methods": tiny.AVERAGE}, "methods must be a list of methods"),
        ({"methods": [[tiny.AVERAGE]]}, "methods must be a list of methods, without grids"),
    ],
)
def test_panels_that_cannot_be_drawn_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        synthetic.Panel(**{"title": "a", "methods": [tiny.AVERAGE]} | options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eval_interval": 11}, "eval_interval must be an integer from 1 to 10, but it is 11"),
        ({"eval_interval": 0}, "but it is 0"),
        ({"points": np.zeros((3, 3))}, r"points must be finite numbers of the shape \[N, 2\]"),
        ({"start": (1.0, float("nan"))}, r"start must be finite numbers of the shape \[2\]"),
        ({"learning_rate": 0.0}, r"learning_rate must be a number in \(0, inf\)"),
        ({"train_steps": 10.0}, "train_steps must be a positive integer"),
        ({"panels": []}, "panels must be a list of panels"),
        ({"panels": [synthetic.Panel("a", [tiny.AVERAGE])] * 2}, "their own name"),
    ],
)
def test_settings_that_cannot_be_followed_are_refused(options, message, tmp_path):
    def ready():
        raise AssertionError("It isn't.")

    options = {
        "ready": ready,
        "panels": [synthetic.Panel("a", [tiny.AVERAGE])],
        "points": tasks.points(),
        "start": (1.0, 1.2),
        "learning_rate": 0.01,
        "train_steps": 10,
        "eval_interval": 5,
    } | options
    with pytest.raises(ValueError, match=message):
        synthetic.trajectories(
            output_dir=tmp_path,
            data_dir=None,
            config_text="",
            name="synthetic",
            description="",
            **options,
        )

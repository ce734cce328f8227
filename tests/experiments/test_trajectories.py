"""Figure 2 of the paper, from the configuration that reproduces it."""

import pathlib
import sys

import gin
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import pictures, tiny

from ldro_jax import configuration, transform
from ldro_jax.experiments import trajectories
from ldro_jax.experiments.arguments import Directories, Report
from ldro_jax.problems.toy import PointTasks
from ldro_jax.records import results
from ldro_jax.tasks import synthetic as tasks
from ldro_jax.training.batches import Batches
from ldro_jax.training.engine import Trial
from ldro_jax.training.method import Method
from ldro_jax.training.stacked import StackedEngine

_FILE = pathlib.Path(__file__).parents[2] / "gin_configs" / "experiments" / "synthetic.gin"


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    directory = tmp_path_factory.mktemp("synthetic")
    ready = []

    bindings = ["Schedule.eval_interval=500", "c/Panel.seeds=(0,)"]
    # What noise does to weights is seen below.
    bindings += ["c/Panel.methods=[@noisy/Method()]", "noisy/Method.weighting='average'"]
    bindings += ["noisy/Method.name='Average, noisy'"]
    experiment = configuration.load([str(_FILE)], bindings)
    with pytest.MonkeyPatch.context() as patch:
        pictures.leave_out(patch)
        found = experiment(
            output_dir=Directories(
                directory,
                config_text=configuration.text(),
                ready=lambda: ready.append(list(directory.iterdir())),
            )
        )
    assert ready == [[]]
    gin.clear_config()
    return found, directory


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


@pytest.mark.heavy  # what methods do, and no program
def test_under_noise_the_online_weights_jump_less():
    def jumps(method):
        points = tasks.points()
        problem = PointTasks(points, start=(1.0, 1.2), noise=0.1)
        a_program = StackedEngine(problem, optax.sgd(0.01), Batches(len(points))).program(method)
        trials = [Trial(method, 0)]
        states, weights = a_program.start(trials).states, []
        settings = a_program.settings(trials)
        for _ in range(100):
            states, *_ = a_program.run(settings, states, 1)
            weights.append(np.asarray(transform.find_state(states.opt_state).weights[0]))
        return np.abs(np.diff(weights, axis=0)).sum(axis=1).mean()

    rates = {"lookahead_lr": 0.1, "weight_lr": 0.1}
    online = Method("online", "lookahead_online", rates, interaction_interval=1)
    exact = Method("exact", "lookahead_exact", {"lookahead_lr": 0.1})
    assert jumps(online) < 0.1 * jumps(exact)


def test_the_path_is_that_of_the_parameters(record):
    for run in record[0].runs:
        assert run.path.steps.tolist() == list(range(1, 3001))
        outlier = np.sum((run.path.values[499::500] - np.array([1.0, 0.0])) ** 2, axis=1)
        expected = [e.per_task["outlier"] for e in run.evaluations]
        np.testing.assert_allclose(outlier, expected, rtol=1e-4)


def test_without_matplotlib_there_is_no_figure(record, monkeypatch):
    from ldro_jax.reporting import figures

    panels = [trajectories.Panel("a", [tiny.AVERAGE])]
    drawn = [("a", {"Average": np.zeros((2, 2))})]
    assert len(trajectories._figure(drawn, np.zeros((3, 2)), panels, record[0])) == 1
    monkeypatch.delattr(figures, "toy")
    monkeypatch.setitem(sys.modules, "ldro_jax.reporting.figures.toy", None)
    assert trajectories._figure(drawn, np.zeros((3, 2)), panels, record[0]) == []


def test_the_record_is_complete(record):
    found, directory = record
    assert found.metric == "loss" and not found.higher_is_better
    assert found.task_names[-1] == "outlier" and len(found.task_names) == 10
    for run in found.runs:
        assert [e.step for e in run.evaluations] == list(range(500, 3001, 500))
        assert run.weights.values.shape == (6, 10) and run.seconds_per_step > 0
    assert len(results.load_results(directory / "results.json").runs) == len(found.runs) == 5
    page = (directory / "report.html").read_text(encoding="utf-8")
    assert "Paths over the task points" in page
    (figure,) = (directory / "figures").glob("paths*.png")
    assert figure.read_bytes().startswith(b"\x89PNG")


def program(noise=0.0, **options):
    points = tasks.points()
    problem = PointTasks(points, start=(1.0, 1.2), noise=noise)
    return StackedEngine(problem, optax.sgd(0.01), Batches(len(points)), **options).program(
        tiny.AVERAGE
    )


def test_a_path_is_gradient_descent_on_the_average():
    points = tasks.points()
    trials = [Trial(tiny.AVERAGE, 0)]
    a_program = program()
    state, _, params, _ = a_program.run(
        a_program.settings(trials), a_program.start(trials).states, 20
    )
    expected = [np.array([1.0, 1.2])]
    for _ in range(20):
        r, phi = expected[-1]
        radius = 1.25 + r**2
        direction, tangent = np.array([[np.cos(phi), np.sin(phi)], [-np.sin(phi), np.cos(phi)]])
        offset = np.array([1.0, 0.0]) + radius * direction - points.mean(axis=0)
        gradient = 2 * np.array([offset @ direction * 2 * r, offset @ tangent * radius])
        expected.append(expected[-1] - 0.01 * gradient)
    places = jax.vmap(tasks.position)(jnp.array(expected[1:], jnp.float32))
    np.testing.assert_allclose(params[0], places, atol=1e-5)
    np.testing.assert_allclose(state.params[0], expected[-1], atol=1e-5)


def test_noise_is_that_of_losses_and_of_gradients():
    problem = program(noise=0.3).problem
    everyone = jnp.arange(10, dtype=jnp.int32)
    params = jnp.array([0.7, 0.4])
    clean = jax.vmap(jax.value_and_grad(tasks.task_loss), (None, 0))

    def noise(step):
        rows = problem.on_device.take(
            jnp.asarray(problem.on_device.arrays), jax.random.key(1), step, everyone, 0 * everyone
        )
        losses = problem.row_losses(params, rows)
        gradients = jax.jacrev(problem.row_losses)(params, rows)
        exact_losses, exact_gradients = clean(params, rows["point"])
        return jnp.concatenate([(losses - exact_losses)[:, None], gradients - exact_gradients], 1)

    found = np.array(jax.jit(lambda steps: jax.lax.map(noise, steps))(jnp.arange(200)))
    # 2,000 draws each: the error of a mean is 0.007, of a standard deviation 0.005.
    np.testing.assert_allclose(found.mean(axis=(0, 1)), 0, atol=0.03)
    np.testing.assert_allclose(found.std(axis=(0, 1)), 0.3, atol=0.02)
    assert abs(np.corrcoef(found.reshape(-1, 3).T) - np.eye(3)).max() < 0.1


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
        trajectories.Panel(**{"title": "a", "methods": [tiny.AVERAGE]} | options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"points": np.zeros((3, 3))}, r"points must be finite numbers of the shape \[N, 2\]"),
        ({"start": (1.0, float("nan"))}, r"start must be finite numbers of the shape \[2\]"),
        ({"optimizer": optax.sgd}, "optimizer must be a GradientTransformation"),
        ({"schedule": 10}, "schedule must be a Schedule"),
        ({"panels": []}, "panels must be a list of panels"),
        ({"panels": [trajectories.Panel("a", [tiny.AVERAGE])] * 2}, "their own name"),
    ],
)
def test_settings_that_cannot_be_followed_are_refused(options, message, tmp_path):
    def ready():
        raise AssertionError("It isn't.")

    options = {
        "panels": [trajectories.Panel("a", [tiny.AVERAGE])],
        "points": tasks.points(),
        "start": (1.0, 1.2),
        "optimizer": optax.sgd(0.01),
        "schedule": tiny.schedule(10, 5),
    } | options
    with pytest.raises(ValueError, match=message):
        trajectories.trajectories(
            output_dir=Directories(tmp_path, ready=ready), report=Report("synthetic"), **options
        )

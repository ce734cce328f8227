"""The callback of `compare`: what it is told, and that no number depends on it."""

import collections
import pathlib
import re
import struct
import sys
import types

import gin
import numpy as np
import pytest
from absl import logging
from helpers import tiny
from tensorboardX.proto import event_pb2, layout_pb2

from ldro_jax import configuration
from ldro_jax.training.method import grid

_PAGE = (pathlib.Path(__file__).parents[2] / "docs" / "watching.md").read_text(encoding="utf-8")
_BLOCKS = {"watching.md": re.findall(r"```python\n(.*?)```", _PAGE, re.DOTALL)}["watching.md"]
pytestmark = pytest.mark.usefixtures("no_report")


class Told(dict):
    """What was told, by method, seed and step."""

    def __call__(self, **said):
        assert sorted(said) == ["method", "numbers", "seed", "step"]
        self.setdefault((said["method"], said["seed"], said["step"]), []).append(said["numbers"])


@pytest.mark.parametrize(
    "options", [{"runs_together": 2}, {"layout": tiny.ONE}], ids=["stacked", "meshed"]
)
def test_it_is_told_what_is_recorded(options, tmp_path):
    told = Told()
    record = tiny.run(tmp_path, methods=[tiny.GROUP_DRO], callback=told, **options)
    assert list(told) == [("Group DRO", seed, step) for seed, step in _order(options)]
    for run in record.runs:
        for place, step in enumerate((5, 10)):
            (numbers,) = told[run.method, run.seed, step]
            assert all(type(x) is float for x in numbers.values())
            ours = {}
            for e in (e for e in run.evaluations if e.step == step):
                named = {"average": e.average, "worst": e.worst}
                named |= {f"task/{task}": value for task, value in e.per_task.items()}
                ours |= {f"{e.split}/{e.metric}/{name}": x for name, x in named.items()}
            assert len(ours) == 2 * 5
            for name, series in (("weight", run.weights), ("train loss", run.losses)):
                of_tasks = zip(tiny.NAMES, series.values[place].tolist(), strict=True)
                ours |= {f"{name}/{task}": x for task, x in of_tasks}
            assert {name: numbers[name] for name in ours} == ours
            assert all(name.startswith("tasks/") for name in numbers.keys() - ours.keys())


def _order(options):
    if "layout" in options:
        return [(0, 5), (0, 10), (1, 5), (1, 10)]
    return [(0, 5), (1, 5), (0, 10), (1, 10)]


def test_settings_of_a_method_are_told_apart(tmp_path):
    told = Told()
    methods = [tiny.AVERAGE, grid(tiny.GROUP_DRO, {"weight_lr": [0.1, 0.5]})]
    tiny.run(tmp_path, methods=methods, seeds=(0,), callback=told)
    labels = ["Average", "Group DRO (weight_lr=0.1)", "Group DRO (weight_lr=0.5)"]
    assert list(told) == [(label, 0, step) for label in labels for step in (5, 10)]


@pytest.mark.parametrize("test", ["last", "best"])
def test_what_is_tested_once_is_told_as_well(test, tmp_path):
    calls = []
    schedule = tiny.schedule(40, 5, test=test, eval_at_start=True)
    (run,) = tiny.run(
        tmp_path, seeds=(0,), schedule=schedule, callback=lambda **said: calls.append(said)
    ).runs
    *before, tested = calls
    assert [call["step"] for call in before] == list(range(0, 45, 5))
    assert not any("test/" in name for call in before for name in call["numbers"])
    assert all("weight/left" in call["numbers"] for call in before[1:])
    at_test = run.evaluations[-1]
    assert (at_test.split, at_test.step) == ("test", tested["step"])
    assert tested["numbers"] == {
        "test/accuracy/average": at_test.average,
        "test/accuracy/worst": at_test.worst,
        **{f"test/accuracy/task/{task}": x for task, x in at_test.per_task.items()},
    }


def test_an_error_in_it_is_logged_once_and_ends_nothing(tmp_path, monkeypatch):
    logged, steps = [], []
    monkeypatch.setattr(logging, "exception", lambda *said: logged.append(said))

    def callback(method, seed, step, numbers):
        numbers.clear()
        steps.append((seed, step))
        raise OSError("no network")

    record = tiny.run(tmp_path / "failing", callback=callback)
    assert steps == [(0, 5), (0, 10), (1, 5), (1, 10)] and len(logged) == 1
    assert "The callback failed" in logged[0][0]
    for ours, other in zip(record.runs, tiny.run(tmp_path / "plain").runs, strict=True):
        assert ours.evaluations == other.evaluations
        np.testing.assert_array_equal(ours.weights.values, other.weights.values)


def test_ctrl_c_in_it_is_the_users(tmp_path):
    def callback(method, seed, step, numbers):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tiny.run(tmp_path, callback=callback)


def test_an_experiment_goes_on_with_another_one(tmp_path, trained):
    told, others = Told(), Told()
    options = {"seeds": (0,), "schedule": tiny.schedule(40, 5, 10)}
    trained.interrupt = 1, 25
    with pytest.raises(KeyboardInterrupt):
        tiny.run(tmp_path, callback=told, **options)
    assert [step for *_, step in told] == [5, 10, 15, 20]
    tiny.run(tmp_path, callback=others, **options)
    # From the checkpoint of step 20.
    assert [step for *_, step in others] == [25, 30, 35, 40]
    tiny.run(tmp_path, callback=lambda **said: pytest.fail("Nothing is left to train."), **options)
    tiny.run(tmp_path, **options)
    assert len(trained.names) == 2


@pytest.mark.parametrize(
    "callback", [3, print, lambda method, seed: None], ids=["a number", "print", "two arguments"]
)
def test_what_cant_be_called_is_refused_before_there_is_data(callback, tmp_path):
    with pytest.raises(ValueError, match="^callback must be a function of method, seed, step, num"):
        tiny.run(tmp_path, problem=lambda data_dir: pytest.fail("loaded"), callback=callback)


@pytest.fixture
def stand_ins(monkeypatch):
    """Modules in the place of wandb and mlflow, and what they were told by name of the run."""
    told = collections.defaultdict(list)

    def init(*, project, name, group, reinit):
        assert (project, reinit) == ("mine", "create_new") and name.startswith(f"{group}, seed ")
        assert name not in told
        told[name] = []
        return types.SimpleNamespace(log=lambda numbers: told[name].append(numbers))

    class Started:
        def __init__(self, run_name):
            assert run_name not in told
            told[run_name] = []
            self.info = types.SimpleNamespace(run_id=run_name)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

    def log_metrics(metrics, step, run_id):
        told[run_id].append({**metrics, "step": step})

    mlflow = types.SimpleNamespace(start_run=Started, log_metrics=log_metrics)
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    return told


@pytest.mark.parametrize("code", _BLOCKS, ids=["print", "wandb", "mlflow"])
def test_the_code_of_the_page_runs(code, stand_ins, tmp_path, capsys):
    names, told = {}, Told()
    exec(compile(code, "docs/watching.md", "exec"), names)

    def both(**said):
        told(**said)
        names["callback"](**said)

    tiny.run(tmp_path, callback=both)
    if "print" in code:
        worst = told["Average", 1, 10][0]["validation/accuracy/worst"]
        assert f"\nAverage, seed 1, step 10: {worst:.3f}\n" in capsys.readouterr().out
        return
    assert list(stand_ins) == ["Average, seed 0", "Average, seed 1"]
    for seed in (0, 1):
        ours = [{**told["Average", seed, step][0], "step": step} for step in (5, 10)]
        assert stand_ins[f"Average, seed {seed}"] == ours


def test_a_gin_file_gives_one_of_a_module(tmp_path, monkeypatch):
    code, lines = (re.search(f"```{x}\n(.*?)```", _PAGE, re.DOTALL)[1] for x in ("py", "text"))
    (tmp_path / "mine.py").write_text(code)
    (tmp_path / "mine.gin").write_text('include "gin_configs/experiments/digits.gin"\n' + lines)
    monkeypatch.syspath_prepend(tmp_path)
    experiment = configuration.load([str(tmp_path / "mine.gin")], [])
    assert "compare.callback = @mine.callback" in configuration.text()
    # It is taken: what is refused is what comes next.
    with pytest.raises(ValueError, match="seeds must be a list of seeds"):
        experiment(output_dir=tmp_path / "out", seeds=())
    gin.clear_config()


def test_tensorboard_has_all_tasks_in_one_chart(tmp_path):
    told = Told()
    tiny.run(tmp_path, seeds=(0,), callback=told)
    (file,) = (tmp_path / "tensorboard" / "Average-seed0").iterdir()
    content, layouts = file.read_bytes(), []
    while content:  # a length and its checksum, an event and its checksum
        (length,) = struct.unpack("<Q", content[:8])
        event = event_pb2.Event.FromString(content[12 : 12 + length])
        content = content[16 + length :]
        for value in event.summary.value:
            if value.tag == "custom_scalars__config__":
                assert value.metadata.plugin_data.plugin_name == "custom_scalars"
                layouts.append(layout_pb2.Layout.FromString(value.tensor.string_val[0]))
    (layout,) = layouts
    (category,) = layout.category
    charts = {chart.title: list(chart.multiline.tag) for chart in category.chart}
    (numbers,) = told["Average", 0, 10]
    for title, of in {
        "weight": "weight/",
        "train loss": "train loss/",
        "validation/accuracy": "validation/accuracy/task/",
        "test/accuracy": "test/accuracy/task/",
    }.items():
        # As TensorBoard chooses them.
        (pattern,) = charts.pop(title)
        chosen = [name for name in numbers if re.match(pattern, name)]
        assert chosen == [of + task for task in tiny.NAMES]
    assert not charts

"""Whole experiments: what is refused, what is written, and what is kept when something breaks."""

import dataclasses
import errno
import json

import jax
import jax.numpy as jnp
import optax
import pytest
import tiny

from ldro_jax import reporting
from ldro_jax.experiments import runs
from ldro_jax.models import cnn, mlp
from ldro_jax.problems import classification
from ldro_jax.records import results
from ldro_jax.training import loop
from ldro_jax.training.method import Method
from ldro_jax.training.sharding import Layout
from ldro_jax.training.stacked import StackedProgram


def _no_data(data_dir):
    raise AssertionError("The data must not be loaded for an experiment that can't run.")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": []}, "methods must be a list of methods and grids"),
        ({"seeds": ()}, "seeds must be a list of seeds"),
        ({"methods": [tiny.AVERAGE, tiny.AVERAGE]}, "their own name.*'Average', 'Average'"),
        ({"seeds": (0, 1, 0)}, r"all different, but it is \(0, 1, 0\)"),
        ({"seeds": (0.5,)}, "seeds must be an integer"),
        ({"seeds": 3}, "seeds must be a list of seeds"),
    ],
)
def test_experiments_that_cannot_run_are_refused(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        tiny.run(tmp_path, problem=_no_data, **options)


def _model(model):
    return lambda data_dir: classification(load_data=lambda data_dir: tiny.data(), model=model)


def _data(load_data):
    return lambda data_dir: classification(load_data=load_data, model=mlp.MLP)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"problem": _model("MLP")}, "model must be a function of num_classes, such as @MLP"),
        ({"problem": _model(lambda num_classes: 3)}, "model must be a flax.linen.Module"),
        (
            {"problem": _model(lambda num_classes: mlp.MLP(num_classes=5))},
            "model must give 2 logits for each input, but it gives \\(5,\\)",
        ),
        (
            {"problem": _model(lambda num_classes: cnn.CNN(num_classes=2))},
            "model must take inputs of the shape \\(2,\\), but it doesn't",
        ),
        (
            {"problem": _data(lambda data_dir: "data")},
            "load_data must be a function that gives a M",
        ),
        ({"problem": 3}, "problem must be a Problem or a function of data_dir that makes one"),
        ({"problem": lambda data_dir: 3}, "problem must be a Problem or a function"),
        ({"select_by": "best"}, "select_by must be one of 'average', 'worst', but it is 'best'"),
        (
            {"runs_together": 2, "layout": Layout(data=1)},
            "runs_together must be 1 for runs on a mesh",
        ),
        ({"references": "a.json"}, "references must be None for a problem that isn't a language"),
        ({"optimizer": optax.sgd}, "optimizer must be a GradientTransformation.*the function sgd"),
        ({"batch_size": 2}, "batch_size must be at least 3, a row of each task, but it is 2"),
        ({"batch_size": 24.0}, "batch_size must be a positive integer, but it is 24.0"),
        ({"schedule": 10}, "schedule must be a Schedule"),
        (
            {"methods": [Method("B", "baselined_dro", {"weight_lr": 0.1})]},
            "references must be a references.json, or @monolingual",
        ),
        (
            {"methods": [Method("S", "static_mixing", {"sizes": (1.0, 2.0)})]},
            "methods: 'S' can't be trained. sizes must hold one number for each of the 3 tasks",
        ),
    ],
)
def test_everything_is_checked_before_anything_is_written(options, message, tmp_path):
    def ready():
        raise AssertionError("It isn't.")

    with pytest.raises(ValueError, match=message):
        tiny.run(tmp_path, ready=ready, **options)
    assert list(tmp_path.iterdir()) == []


def test_ready_is_called_once_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(reporting, "write_report", lambda *args, **options: None)
    seen = []
    tiny.run(tmp_path, ready=lambda: seen.append(list(tmp_path.iterdir())))
    assert seen == [[]] and (tmp_path / "results.json").exists()


def _broken_start(self, seed, init=StackedProgram.init):
    state = init(self, seed)
    if seed == 1:
        state = state._replace(params=jax.tree.map(lambda p: p * jnp.nan, state.params))
    return state


def test_a_run_that_never_recovers_does_not_stop_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(StackedProgram, "init", _broken_start)
    with pytest.raises(runs.RunsStoppedError, match="Average, seed 1: stopped at step 5") as e:
        tiny.run(tmp_path, seeds=(1, 0), schedule=tiny.schedule(10, 5, max_nonfinite_steps=5))
    assert "seed 0" not in str(e.value)
    record = results.load_results(tmp_path / "results.json")
    assert [(r.seed, bool(r.stopped), r.evaluations[-1].step) for r in record.runs] == [
        (1, True, 5),
        (0, False, 10),
    ]
    assert record.runs[0].nonfinite_losses == dict.fromkeys(tiny.NAMES, 5)
    assert "stopped at step 5" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_full_disk_leaves_earlier_work(tmp_path, monkeypatch):
    save = results.save_results

    def full(record, path):
        if path.name == "Average-seed1.json":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return save(record, path)

    trained = []
    train = loop.train

    def noted(program, trials, *args, **options):
        trained.append(trials[0].seed)
        return train(program, trials, *args, **options)

    monkeypatch.setattr(loop, "train", noted)
    with monkeypatch.context() as context:
        context.setattr(results, "save_results", full)
        with pytest.raises(OSError, match="No space left"):
            tiny.run(tmp_path)
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"Average-seed0.json"}
    assert not (tmp_path / "results.json").exists()
    # With room again, the finished run is kept and the other one is where it was.
    (tmp_path / "runs" / ".Average-seed1.json.tmp").write_text("what a killed process may leave")
    record = tiny.run(tmp_path)
    assert trained == [0, 1, 1] and [r.seed for r in record.runs] == [0, 1]
    # A record that was damaged later is made again.
    text = (tmp_path / "runs" / "Average-seed0.json").read_text()
    (tmp_path / "runs" / "Average-seed0.json").write_text(text[:100])
    (tmp_path / "results.json").unlink()
    again = tiny.run(tmp_path)
    assert trained == [0, 1, 1, 0]
    assert again.runs[0].evaluations == record.runs[0].evaluations


def test_versions_and_device_are_those_of_this_machine(tmp_path):
    record = tiny.run(tmp_path, seeds=(0,))
    assert record.versions["jax"] == jax.__version__
    assert {"flax", "jaxlib", "numpy", "optax"} <= set(record.versions)
    assert record.device["platform"] == "cpu" and record.device["count"] == jax.device_count()
    saved = json.loads((tmp_path / "results.json").read_text())
    assert saved["versions"] == record.versions and saved["device"] == record.device


@pytest.mark.parametrize("name", ["a/b c", "L-DRO λ=0.1", ".."])
def test_a_method_may_have_any_name(name, tmp_path):
    file = runs.run_name(dataclasses.replace(tiny.AVERAGE, name=name), 3, several=True)
    assert file.endswith("-seed3") and "/" not in file and file.isascii()

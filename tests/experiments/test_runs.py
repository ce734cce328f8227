"""Records of finished runs: taken only if they are whole, of this run, and of this data."""

import dataclasses
import json

import numpy as np
import pytest
import tiny

from ldro_jax import processes
from ldro_jax.experiments import runs
from ldro_jax.models import mlp
from ldro_jax.problems import classifiers, models
from ldro_jax.records import results
from ldro_jax.training import loop, recording
from ldro_jax.training.engine import Trial

IDENTITY = {"task_names": list(tiny.NAMES), "sizes": [40, 32, 40], "content": "abc"}
METHOD = dataclasses.replace(tiny.GROUP_DRO, hyperparameters={"weight_lr": 1 / 3})
TRIAL = Trial(METHOD, 3)


@pytest.fixture
def file(tmp_path):
    run = recording.empty_run(TRIAL, tiny.schedule())
    record = results.Results("tiny", tiny.NAMES, "accuracy", True, [run], data=IDENTITY)
    return results.save_results(record, tmp_path / "runs" / "Group_DRO-seed3.json")


def found(file, trial=TRIAL, num_steps=40, identity=IDENTITY):
    return runs.finished_run(file, trial, num_steps, identity)


def test_a_finished_run_is_taken(file):
    # Though numbers are rounded in the record, and arrays are lists.
    assert found(file, identity=IDENTITY | {"sizes": np.array([40, 32, 40])}).seed == 3


def test_there_may_be_none(tmp_path):
    assert found(tmp_path / "none.json") is None


@pytest.mark.parametrize(
    "other",
    [
        {"trial": Trial(tiny.AVERAGE, 3)},
        {"trial": Trial(dataclasses.replace(METHOD, hyperparameters={"weight_lr": 0.3}), 3)},
        {"trial": Trial(METHOD, 4)},
        {"num_steps": 41},
    ],
    ids=["method", "setting", "seed", "length"],
)
def test_the_record_of_another_run_is_moved_aside(file, other, caplog):
    content = file.read_bytes()
    assert found(file, **other) is None
    aside = file.with_name(f"unreadable-{file.name}")
    assert aside.read_bytes() == content and not file.exists()
    assert f"{file} can't be used" in caplog.text and "that of another run" in caplog.text
    assert f"It is now {aside}." in caplog.text


def _flipped(text):
    return text.replace('"num_steps":40', '"num_steps":41')


def _without(text, name):
    record = json.loads(text)
    del record["checksum"]
    return json.dumps({k: v for k, v in record.items() if k != name})


@pytest.mark.parametrize(
    "damage",
    [
        _flipped,
        lambda text: text[:-5],
        lambda text: "",
        lambda text: "[1, 2]",
        lambda text: _without(text, "runs"),
        lambda text: _without(text, "").replace('"runs": [', '"runs": [5, '),
        lambda text: (
            _without(text, "").replace('"runs": [{', '"runs": {"a": [{').replace("}]", "}]}")
        ),
    ],
    ids=[
        "flipped",
        "cut",
        "empty",
        "a list",
        "no runs",
        "a number as a run",
        "a dictionary of runs",
    ],
)
def test_a_damaged_record_is_moved_aside(file, damage, caplog):
    damaged = damage(file.read_text())
    file.write_text(damaged)
    assert found(file) is None
    assert file.with_name(f"unreadable-{file.name}").read_text() == damaged
    assert str(file) in caplog.text


def test_only_the_first_process_moves(file, monkeypatch):
    file.write_text("")
    monkeypatch.setattr(processes, "is_first", lambda: False)
    assert found(file) is None and file.exists()


@pytest.mark.parametrize(("name", "value"), [("content", "abd"), ("sizes", [40, 32, 41])])
def test_a_run_on_other_data_is_refused_and_kept(file, name, value):
    content = file.read_bytes()
    expected = rf"{file} was made with other data: {name} was .*, now it is {value}".replace(
        "[", r"\["
    )
    with pytest.raises(ValueError, match=expected):
        found(file, identity=IDENTITY | {name: value})
    assert file.read_bytes() == content


def test_an_experiment_on_other_data_is_refused_before_it_trains(tmp_path, monkeypatch):
    tiny.run(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.setattr(loop, "train", None)

    def other(data_dir):
        data = tiny.data()
        data.test.targets[0] ^= 1
        return classifiers.from_data(data, models.as_functions(mlp.MLP(2, (4,))))

    with pytest.raises(ValueError, match="made with other data: content was"):
        tiny.run(tmp_path, problem=other, seeds=(0, 1, 2), ready=lambda: None)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before

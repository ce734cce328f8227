"""Records of finished runs: taken only if they are whole, of this run, and of this data."""

import dataclasses
import json

import pytest
from helpers import tiny

from ldro_jax.experiments import finished
from ldro_jax.models import mlp
from ldro_jax.problems import classifiers
from ldro_jax.records import files, results
from ldro_jax.runtime import processes
from ldro_jax.training import fingerprint, loop, recording
from ldro_jax.training.engine import Trial

DATA = {"task_names": list(tiny.NAMES), "sizes": [40, 32, 40], "content": "abc"}
METHOD = dataclasses.replace(tiny.GROUP_DRO, hyperparameters={"weight_lr": 1 / 3})
TRIAL = Trial(METHOD, 3)


def identity(trial=TRIAL, **data):
    run = {"method": trial.method.name, "seed": trial.seed}
    run["settings"] = fingerprint.exact(trial.method.settings())
    return {
        "runs": [run],
        "data": DATA | data,
        "settings": {"batch_size": 24},
        "programs": {"optimizer": "abc"},
        "evaluation": {"accuracy": "def"},
        "versions": {"jax": "0.10.2"},
    }


@pytest.fixture
def file(tmp_path):
    run = recording.empty_run(TRIAL, tiny.schedule())
    record = results.Results("tiny", tiny.NAMES, "accuracy", True, [run])
    path = tmp_path / "runs" / "Group_DRO-seed3.json"
    finished.save_run(record, identity(), path)
    return path


def found(file, num_steps=40, known_by=None):
    return finished.finished_run(file, num_steps, known_by or identity())


def test_a_finished_run_is_taken(file):
    # Though numbers are rounded in the record.
    assert found(file).seed == 3


def test_there_may_be_none(tmp_path):
    assert found(tmp_path / "none.json") is None


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (Trial(tiny.AVERAGE, 3), "method was Group DRO, now it is Average"),
        (
            Trial(dataclasses.replace(METHOD, hyperparameters={"weight_lr": 0.3}), 3),
            "weight_lr was 0.3333333333333333, now it is 0.3",
        ),
        # Closer than a record rounds them.
        (
            Trial(dataclasses.replace(METHOD, hyperparameters={"weight_lr": 0.33333334}), 3),
            "weight_lr was 0.3333333333333333, now it is 0.33333334",
        ),
        (Trial(METHOD, 4), "seed was 3, now it is 4"),
    ],
    ids=["method", "setting", "digits", "seed"],
)
def test_the_record_of_another_run_is_refused_and_kept(file, other, message):
    content = file.read_bytes()
    with pytest.raises(ValueError, match=f"{file} is that of another run: {message}. Give it"):
        found(file, known_by=identity(other))
    assert file.read_bytes() == content


def test_a_longer_run_goes_on_and_a_shorter_one_is_refused(file):
    content = file.read_bytes()
    assert found(file, num_steps=41) is None
    with pytest.raises(ValueError, match="has 40 steps, and train_steps is 39 now. Train at least"):
        found(file, num_steps=39)
    assert file.read_bytes() == content


def test_digests_are_compared_under_the_same_versions_alone(file, caplog):
    other = identity() | {"programs": {"optimizer": "abd"}}
    with pytest.raises(ValueError, match="another optimizer: .* was abc, now it is abd. Give it"):
        found(file, known_by=other)
    assert not caplog.text
    newer = other | {"versions": {"jax": "0.11.0"}, "evaluation": {"accuracy": "deg"}}
    assert found(file, known_by=newer).seed == 3
    assert "is taken, though it can't be told whether its optimizer, accuracy are" in caplog.text
    assert "jax was 0.10.2, now it is 0.11.0" in caplog.text
    # Settings are compared under any.
    with pytest.raises(ValueError, match="another batch_size: it was 24, now it is 12"):
        found(file, known_by=newer | {"settings": {"batch_size": 12}})
    with pytest.raises(ValueError, match="lacks gap, which is new or measured otherwise now"):
        found(file, known_by=newer | {"evaluation": {"accuracy": "deg", "gap": "hij"}})


def test_a_record_of_before_is_refused(file):
    results.save_results(results.load_results(file), file)
    # Of the format of before.
    old = json.loads(file.read_text()) | {"format": 1}
    old["runs"][0] |= {"evaluations": []}
    for record in (None, old):
        if record is not None:
            files.write_json({k: v for k, v in record.items() if k != "checksum"}, file)
        with pytest.raises(ValueError, match="was made by another version of ldro_jax"):
            found(file)
        assert file.exists()


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
        found(file, known_by=identity(**{name: value}))
    assert file.read_bytes() == content


def test_an_experiment_on_other_data_is_refused_before_it_trains(tmp_path, no_report, monkeypatch):
    tiny.run(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.setattr(loop, "train", None)

    def other(data_dir):
        data = tiny.data()
        data.test.targets[0] ^= 1
        return classifiers.from_data(data, mlp.MLP(2, (4,)))

    with pytest.raises(ValueError, match="made with other data: content was"):
        tiny.run(tmp_path, problem=other, seeds=(0, 1, 2), ready=lambda: None)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before

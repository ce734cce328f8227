"""The command line, as a user types it."""

import errno
import os
import pathlib
import struct
import sys

import gin
import numpy as np
import pytest
from helpers.command_line import DIGITS, command, fails, snapshot

from ldro_jax import configuration, main, shipped, weighting
from ldro_jax.records import results
from ldro_jax.runtime import signals
from ldro_jax.training import loop

pytest.importorskip("sklearn")

_ROOT = pathlib.Path(__file__).parents[1]
_METHODS = ["Average", "L-DRO"]
SHORT = (
    DIGITS,
    "--gin.compare.methods=[@average/Method(), @ldro/Method()]",
    "--gin.TRAIN_STEPS=20",
    "--gin.SEEDS=(0,)",
    "--gin.Schedule.eval_interval=10",
    "--gin.Schedule.checkpoint_interval=10",
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The output directory of a short experiment on the digits."""
    directory = tmp_path_factory.mktemp("finished") / "output"
    command(*SHORT, f"--output_dir={directory}")
    return directory


def test_results_hold_what_was_promised(finished):
    record = results.load_results(finished / "results.json")
    assert {"jax", "jaxlib", "flax", "optax", "numpy"} <= set(record.versions)
    assert {"platform", "kind", "count"} <= set(record.device)
    names = record.task_names
    assert len(names) == 10 and "upside down" in names
    average, lookahead = record.runs
    assert [run.method for run in record.runs] == _METHODS
    assert (average.method, average.hyperparameters, average.seed) == ("Average", {}, 0)
    assert set(lookahead.hyperparameters) == {"lookahead_lr", "weight_lr", "interaction_interval"}
    for run in record.runs:
        assert run.seconds_per_step > 0 and run.stopped is None
        steps = [(e.step, e.split) for e in run.evaluations]
        assert steps == [(s, split) for s in (10, 20) for split in ("validation", "test")]
        for evaluation in run.evaluations:
            values = evaluation.per_task
            assert list(values) == names and evaluation.metric == "accuracy"
            assert evaluation.average == pytest.approx(np.mean(list(values.values())), rel=1e-5)
            assert values[evaluation.worst_task] == min(values.values())
            assert evaluation.worst == pytest.approx(min(values.values()), rel=1e-5)
    assert average.interaction is None
    matrix = lookahead.interaction.values[-1]
    np.testing.assert_array_equal(matrix, matrix.T)
    assert (np.diag(matrix) > 0).all()


def test_the_output_is_all_there(finished):
    assert {path.name for path in finished.iterdir()} >= {
        "checkpoints",
        "config.gin",
        "figures",
        "report.html",
        "results.json",
        "runs",
        "tensorboard",
    }
    figures = {path.name for path in (finished / "figures").iterdir()}
    assert figures >= {"average_vs_worst.png", "interaction_matrix.png", "weights_over_time.png"}
    page = (finished / "report.html").read_text(encoding="utf-8")
    assert "TRAIN_STEPS = 20" in page and "data:image/png;base64," in page
    assert {path.name for path in (finished / "checkpoints" / "L-DRO-seed0").iterdir()} == {
        "10",
        "20",
    }


def test_the_saved_configuration_runs_the_same_experiment(finished):
    text = (finished / "config.gin").read_text()
    configuration.load([str(finished / "config.gin")], [])
    assert configuration.text() == text
    gin.clear_config()


def test_tensorboard_has_the_scalars(finished):
    from tensorboardX.proto import event_pb2

    (file,) = (finished / "tensorboard" / "L-DRO-seed0").iterdir()
    content, found = file.read_bytes(), {}
    while content:  # a length and its checksum, an event and its checksum
        (length,) = struct.unpack("<Q", content[:8])
        event = event_pb2.Event.FromString(content[12 : 12 + length])
        content = content[16 + length :]
        found |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
    (run,) = (
        r for r in results.load_results(finished / "results.json").runs if r.method == "L-DRO"
    )
    for evaluation in run.evaluations:
        prefix, step = f"{evaluation.split}/accuracy", evaluation.step
        assert found[f"{prefix}/average", step] == pytest.approx(evaluation.average, rel=1e-5)
        assert found[f"{prefix}/worst", step] == pytest.approx(evaluation.worst, rel=1e-5)
        for name, value in evaluation.per_task.items():
            assert found[f"{prefix}/task/{name}", step] == pytest.approx(value, rel=1e-5)
    for name, weight, loss in zip(
        run.evaluations[0].per_task, run.weights.values[-1], run.losses.values[-1], strict=True
    ):
        assert found[f"weight/{name}", 20] == pytest.approx(weight, rel=1e-5)
        assert found[f"train loss/{name}", 20] == pytest.approx(loss, rel=1e-5)


def test_a_finished_experiment_is_not_overwritten_unasked(finished):
    before = snapshot(finished)
    rate = "sgd.learning_rate"
    said = fails(*SHORT, f"--gin.optax.{rate}=0.25", f"--output_dir={finished}")
    assert "was made with another optimizer" in said and "pass --overwrite to delete" in said
    assert "another --output_dir, or" in said and "The configurations differ: " in said
    assert f"{rate} = 0.05 there, {rate} = 0.25 now." in said
    assert snapshot(finished) == before


def test_a_finished_experiment_given_again_is_well(finished, capsys, no_training):
    before = snapshot(finished)
    command(*SHORT, f"--output_dir={finished}")
    assert f"The experiment in {finished} is finished; look at" in capsys.readouterr().out
    assert snapshot(finished) == before


def test_list_prints_every_method_with_its_hyperparameters(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["ldro-jax", "list"])
    monkeypatch.setattr(signals, "end_at_once", lambda: None)
    main.run()
    listed = capsys.readouterr().out
    methods, experiments = listed.split("\n\nexperiments, for ldro-jax run\n")
    assert methods.count("\n  ") == len(weighting.METHODS)
    assert experiments.count("\n") == len(shipped.experiments())
    assert "\n  cagrad(c=0.5): best worst decrease near the mean (Liu 2021)\n" in listed


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_shows_our_flags_and_ends_well(flag, monkeypatch, capsys):
    # As an installed script, which isn't the module that defines the flags.
    monkeypatch.setattr(sys, "argv", ["/usr/bin/ldro-jax", "--gin_file=a", flag])
    monkeypatch.setattr(signals, "end_at_once", lambda: None)
    main.run()
    said = capsys.readouterr().out
    for name in ("gin_file", "gin_bindings", "output_dir", "data_dir", "[no]overwrite"):
        assert f"\n  --{name}: " in said
    assert "verbosity" not in said and "Flags:" in said


@pytest.fixture
def no_training(monkeypatch):
    def train(*args, **options):
        raise AssertionError("This must be found before training.")

    monkeypatch.setattr(loop, "train", train)


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(
    ("args", "said"),
    [
        (
            ["--gin.Schedul.train_steps=1"],
            "Known names: cifar100.load, corrupted.corrupted, digits.load",
        ),
        (
            ["--gin.ldro/Method.weighting='ldro'"],
            "ldro/Method.weighting must be a Weighting, ",
        ),
        (["--gin.ldro/Method.hyperparameters={'lr': 1}"], "(lookahead_lr, weight_lr, relative, "),
        (
            ["--gin.SEEDS=3"],
            "compare.seeds must be a list of seeds, such as (0, 1, 2), but it is",
        ),
        (["--gin.TRAIN_STEPS=0"], "Error: Schedule.train_steps must be a positive integer"),
        (["--gin_file=nope.gin"], "There is no gin file nope.gin. Known experiments: gin_configs"),
        (["--output_dir=/proc/self/nope"], "The output directory /proc/self/nope can't be written"),
    ],
)
def test_a_slip_is_one_message_without_a_traceback(args, said, tmp_path):
    found = fails(*SHORT, f"--output_dir={tmp_path}", *args)
    assert found.startswith("Error: ") and said in found
    assert " at 0x" not in found
    assert "results.json" not in os.listdir(tmp_path)


def test_a_full_disk_is_one_message(tmp_path, monkeypatch):
    def full(**options):
        raise OSError(errno.ENOSPC, "No space left on device", "results.json")

    monkeypatch.setattr(configuration, "load", lambda files, bindings: full)
    said = fails(DIGITS, f"--output_dir={tmp_path}")
    assert "No space left on device: 'results.json'" in said


def test_ctrl_c_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    def interrupted(*, output_dir):
        output_dir.ready()
        raise KeyboardInterrupt

    monkeypatch.setattr(configuration, "load", lambda files, bindings: interrupted)
    assert fails(DIGITS, f"--output_dir={tmp_path}") == "130"
    said = capsys.readouterr().err
    assert f"Interrupted. What is in {tmp_path} is kept; the same command goes on" in said
    assert (tmp_path / "config.gin").exists()


def test_developers_get_the_traceback(tmp_path, monkeypatch):
    monkeypatch.setenv("LDRO_JAX_TRACEBACK", "1")
    with pytest.raises(ValueError, match="Known names"):
        command(DIGITS, "--gin.Nope.a=1", f"--output_dir={tmp_path}")

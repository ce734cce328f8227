"""Runs of ``python -m t5x.main`` from the gin files, on 8 fake devices."""

import json
import os
import shutil
import socket
import tempfile

import jax
import numpy as np
import pytest
from helpers.t5x_runs import (
    SECONDS,
    assert_equal,
    killed,
    killed_and_resumed,
    restored,
    run,
    start,
    write_text,
)

from ldro_jax.t5x import report, summaries

pytest.importorskip(
    "helpers.tiny_t5x", reason="T5X is not installed (scripts/install_t5x.sh)", exc_type=ImportError
)
pytestmark = [pytest.mark.heavy, pytest.mark.filterwarnings("ignore")]
LANGUAGES = ("ar", "el", "fr", "he", "hi", "ka", "ru", "sw")
SHORT = ("--gin.TRAIN_STEPS=20", "--gin.WARMUP_STEPS=2", "--gin.PERIOD=10")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("text"), LANGUAGES)


def training(model_dir, data_dir, *bindings):
    return (
        f'--gin.MODEL_DIR="{model_dir}"',
        f'--gin.DATA_DIR="{data_dir}"',
        *SHORT,
        *bindings,
    )


@pytest.fixture(scope="module")
def full(tmp_path_factory, data_dir):
    model_dir = tmp_path_factory.mktemp("full")
    run("train", "text_tiny", *training(model_dir, data_dir))
    return model_dir


def test_a_run_that_was_killed_goes_on_bit_for_bit(full, data_dir, tmp_path):
    killed_and_resumed(("train", "text_tiny", *training(tmp_path, data_dir)), tmp_path)
    assert_equal(restored(tmp_path, 20), restored(full, 20))


@pytest.mark.parametrize("gin_files, rows", [(("ldro_jax/t5x/sampling.gin",), 20), ((), 20)])
def test_so_does_one_whose_rows_are_drawn_one_by_one(data_dir, tmp_path, gin_files, rows):
    whole, again = tmp_path / "whole", tmp_path / "again"
    options = (f"--gin.BATCH_SIZE={rows}", "--gin.ldro.transform.interaction_interval=3")
    arguments = ("train", "text_tiny", *training(whole, data_dir, *options))
    run(*arguments, gin_files=gin_files)
    arguments = ("train", "text_tiny", *training(again, data_dir, *options))
    killed_and_resumed(arguments, again, gin_files=gin_files)
    assert_equal(restored(again, 20), restored(whole, 20))
    weights = restored(again, 20)["state"]["param_states"]["weighting"]["weights"]
    assert np.ptp(weights) > 0
    if gin_files:
        other = ("train", "text_tiny", *training(again, data_dir, *options, "--gin.TRAIN_STEPS=30"))
        assert "Give the run the sampling it began with" in run(*other, fails=True)


def test_the_best_checkpoint_is_kept_by_a_run_that_was_killed(data_dir, tmp_path):
    files = {"gin_files": ("ldro_jax/t5x/best_checkpoint.gin",)}
    arguments = ("train", "text_tiny", *training(tmp_path, data_dir, "--gin.TRAIN_STEPS=50"))
    killed(arguments, tmp_path, 30, **files)
    # From here on it gets worse: the best checkpoint is the one that the run goes on from.
    run(*arguments, "--gin.LEARNING_RATE=20.0", **files)
    losses = summaries.scalars(f"{tmp_path}/ldro_eval")["average_loss"]
    assert sorted(losses) == [0, 10, 20, 30, 40, 50]
    best = min(losses, key=lambda step: losses[step])
    kept = {path.name for path in tmp_path.glob("checkpoint_*")}
    assert best == 30 and kept == {"checkpoint_30", "checkpoint_50"}
    record = report.read([("L-DRO", str(tmp_path))])
    assert record.runs[0].evaluations[-1].step == 30
    assert record.runs[0].hyperparameters["learning_rate"] == 20.0
    assert restored(tmp_path, 30)["state"]["step"] == 30


def test_two_hosts_evaluate_as_one(full, data_dir, tmp_path):
    model_dir = tmp_path / "run"
    shutil.copytree(full, model_dir)
    for name in ("ldro_eval", "training_eval"):
        shutil.rmtree(model_dir / name)
    (tmp_path / "evaluate.gin").write_text(
        "from __gin__ import dynamic_registration\nimport __main__ as train_script\n"
        "from t5x import utils\ntrain_script.train.run_eval_before_training = True\n"
        # The place in the data is that of one host.
        "utils.SaveCheckpointConfig.save_dataset = False\n"
    )
    arguments = ("train", "text_tiny", *training(model_dir, data_dir, "--gin.SUBMESH=(1, 1, 1, 1)"))
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
    with tempfile.TemporaryFile("w+") as output:
        options = {"gin_files": (tmp_path / "evaluate.gin",), "output": output}
        both = [start(*arguments, **options, host=(index, 2, port)) for index in range(2)]
        codes = [process.wait(SECONDS) for process in both]
        output.seek(0)
        assert codes == [0, 0], output.read()[-4000:]
    found, expected = summaries.read(str(model_dir)), summaries.read(str(full))
    assert found.file.tokens == expected.file.tokens
    assert found.file.machines[-1]["device"]["hosts"] == 2
    for task, losses in found.losses.items():
        np.testing.assert_allclose(losses[20], expected.losses[task][20], rtol=1e-5)


def test_a_run_goes_on_on_another_mesh(full, data_dir, tmp_path):
    shutil.copytree(full, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "checkpoint_20")
    mesh = "--gin.SUBMESH=(1, 1, 1, 1)"
    run("train", "text_tiny", *training(tmp_path, data_dir, mesh))
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4),
        restored(tmp_path, 20)["target"],
        restored(full, 20)["target"],
    )


def test_a_run_begins_from_a_checkpoint_without_ldro(full, data_dir, tmp_path):
    stock, warm = tmp_path / "stock", tmp_path / "warm"
    mixing = ("static_mixing",)
    run("train", "text_tiny", *training(stock, data_dir, "--gin.EXPONENT=0.3"), gin_files=mixing)
    before = restored(stock, 20)
    assert "weighting" not in before["state"]["param_states"]
    record = report.read([("Mixing", str(stock)), ("L-DRO", str(full))])
    assert record.task_names == list(LANGUAGES)
    assert record.runs[0].hyperparameters["exponent"] == 0.3
    assert record.device["count"] == 8 and "t5x" in record.versions
    output = run("train", "text_tiny", *training(stock, data_dir), fails=True)
    assert f"{stock}/checkpoint_20 is a checkpoint of a run without L-DRO" in output
    path = f'--gin.INITIAL_CHECKPOINT_PATH="{stock}/checkpoint_20"'
    run(
        "train",
        "text_tiny",
        *training(warm, data_dir, path),
        gin_files=("ldro_jax/t5x/warm_start.gin",),
    )
    assert_equal(restored(warm, 0)["target"], before["target"])
    state = restored(warm, 20)["state"]
    assert state["step"] == 20 and state["param_states"]["weighting"]["count"] == 20


@pytest.mark.parametrize("split", ["test", "validation"])
def test_a_checkpoint_is_evaluated_and_reported(full, data_dir, tmp_path, split):
    bound = tmp_path / "split.gin"
    bound.write_text(
        "from __gin__ import dynamic_registration\nfrom t5x import utils\n"
        f"utils.DatasetConfig.split = '{split}'\n"
    )
    run(
        "eval",
        "text_tiny_eval",
        f"--gin_file={bound}",
        f'--gin.DATA_DIR="{data_dir}"',
        f'--gin.CHECKPOINT_PATH="{full}/checkpoint_20"',
        f'--gin.EVAL_OUTPUT_DIR="{tmp_path}"',
    )
    record = report.read([("L-DRO", str(full))])
    assert "over the whole validation split" in record.description
    last = record.runs[0].evaluations[-1]
    # T5X scores all rows here. Random text: validation and test differ by chance alone.
    rtol = 1e-5 if split == "validation" else 0.03
    for language in LANGUAGES:
        file = tmp_path / "inference_eval" / f"ldro_text_{language}-metrics.jsonl"
        found = json.loads(file.read_text().splitlines()[-1])
        np.testing.assert_allclose(found["perplexity"], last.per_task[language], rtol=rtol)
    weights = record.runs[0].weights
    np.testing.assert_allclose(weights.values.sum(axis=1), 1, rtol=1e-5)
    saved = restored(full, 20)["state"]["param_states"]["weighting"]["weights"]
    np.testing.assert_allclose(weights.values[-1], saved, rtol=1e-6)


def test_other_tasks_are_refused(full, data_dir, tmp_path):
    shutil.copytree(full, tmp_path, dirs_exist_ok=True)
    fewer = '--gin.LANGUAGES=("ar", "fr")'
    output = run("train", "text_tiny", *training(tmp_path, data_dir, fewer), fails=True)
    assert "was begun with the tasks ldro_text_ar, ldro_text_el" in output


def test_a_damaged_checkpoint_is_moved_away(full, data_dir, tmp_path):
    shutil.copytree(full, tmp_path, dirs_exist_ok=True)
    newest = tmp_path / "checkpoint_20"
    arrays = [path for path in newest.glob("state/ocdbt.process_0/d/*") if path.is_file()]
    largest = max(arrays, key=lambda path: path.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    output = run("train", "text_tiny", *training(tmp_path, data_dir), fails=True)
    assert f"{newest}, the newest checkpoint of the run, is damaged" in output
    newest.rename(tmp_path / "moved_away")
    run("train", "text_tiny", *training(tmp_path, data_dir))
    assert_equal(restored(tmp_path, 20), restored(full, 20))


def test_t5x_own_batches_are_refused_and_leave_no_tasks(data_dir, tmp_path):
    stock = tmp_path / "stock_data.gin"
    stock.write_text(
        "from __gin__ import dynamic_registration\nimport __main__ as train_script\n"
        "from t5x import utils\ntrain_script.train.get_dataset_fn = @utils.get_dataset\n"
    )
    arguments = training(tmp_path / "run", data_dir, f"--gin_file={stock}")
    output = run("train", "text_tiny", *arguments, fails=True)
    assert "Bind train.get_dataset_fn = @data.get_dataset" in output
    assert not (tmp_path / "run" / "ldro_tasks.json").exists()


@pytest.mark.parametrize("model", ["ldro_tiny"])
def test_this_librarys_decoder_trains(data_dir, tmp_path, model):
    run(
        "train",
        "text_tiny",
        *training(tmp_path, data_dir, "--gin.CONTEXT=128"),
        gin_files=(f"models/{model}",),
    )
    record = report.read([("L-DRO", str(tmp_path))])
    first, last = record.runs[0].evaluations[0], record.runs[0].evaluations[-1]
    assert last.average < first.average

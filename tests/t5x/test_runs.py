"""Runs of ``python -m t5x.main`` from the gin files, on 8 fake devices."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from ldro_jax.t5x import report

tiny_t5x = pytest.importorskip(
    "tiny_t5x", reason="T5X is not installed (scripts/install_t5x.sh)", exc_type=ImportError
)
pytestmark = [pytest.mark.heavy, pytest.mark.filterwarnings("ignore")]
ROOT = pathlib.Path(__file__).parents[2]
LANGUAGES = ("ar", "el", "fr", "he", "hi", "ka", "ru", "sw")
SHORT = ("--gin.TRAIN_STEPS=20", "--gin.WARMUP_STEPS=2", "--gin.PERIOD=10")
SECONDS = 600


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Languages of random letters, each with more letters than the last."""
    folder = tmp_path_factory.mktemp("text")
    rng = np.random.default_rng(0)
    for number, language in enumerate(LANGUAGES):
        (folder / language).mkdir()
        letters = np.array(list("abcdefghijklmnopqrstuvwx"[: 3 * (number + 1)]))
        for split, lines in [("train", 400), ("validation", 200)]:
            text = "\n".join("".join(line) for line in rng.choice(letters, (lines, 60)))
            (folder / language / f"{split}.txt").write_text(text + "\n")
    return folder


def start(mode, file, *bindings, gin_files=(), output):
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        # With few threads simulated devices may wait for each other forever.
        "PJRT_NPROC": "64",
    }
    files = [f"--gin_file=gin_configs/t5x/{name}.gin" for name in (file, *gin_files)]
    return subprocess.Popen(
        [sys.executable, "-m", "t5x.main", f"--run_mode={mode}", *files, *bindings],
        cwd=ROOT,
        env=environment,
        # T5X writes more than a pipe that nobody reads would hold.
        stdout=output,
        stderr=subprocess.STDOUT,
    )


def run(*args, fails=False, **options):
    with tempfile.TemporaryFile("w+") as output:
        process = start(*args, **options, output=output)
        process.wait(SECONDS)
        output.seek(0)
        written = output.read()
    assert (process.returncode != 0) == fails, written[-4000:]
    return written


def training(model_dir, data_dir, *bindings):
    return (
        f'--gin.MODEL_DIR="{model_dir}"',
        f'--gin.DATA_DIR="{data_dir}"',
        *SHORT,
        *bindings,
    )


def restored(model_dir, step):
    folder = pathlib.Path(model_dir).absolute() / f"checkpoint_{step}" / "state"
    return ocp.PyTreeCheckpointer().restore(folder)


@pytest.fixture(scope="module")
def full(tmp_path_factory, data_dir):
    model_dir = tmp_path_factory.mktemp("full")
    run("train", "text_tiny", *training(model_dir, data_dir))
    return model_dir


def assert_equal(found, expected):
    def check(x, y):
        np.testing.assert_array_equal(x, y)
        assert np.asarray(x).dtype == np.asarray(y).dtype

    jax.tree.map(check, found, expected)


def killed_and_resumed(arguments, model_dir, **options):
    process = start(*arguments, **options, output=subprocess.DEVNULL)
    began = time.monotonic()
    while not (model_dir / "checkpoint_10" / "commit_success.txt").exists():
        assert process.poll() is None and time.monotonic() - began < SECONDS
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    shutil.rmtree(model_dir / "checkpoint_20", ignore_errors=True)
    run(*arguments, **options)


def test_a_run_that_was_killed_goes_on_bit_for_bit(full, data_dir, tmp_path):
    killed_and_resumed(("train", "text_tiny", *training(tmp_path, data_dir)), tmp_path)
    assert_equal(restored(tmp_path, 20), restored(full, 20))


@pytest.mark.parametrize("gin_files, rows", [(("sampling",), 20), ((), 20)])
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
    assert report.read([("Mixing", str(stock))]).task_names == list(LANGUAGES)
    output = run("train", "text_tiny", *training(stock, data_dir), fails=True)
    assert f"{stock}/checkpoint_20 is a checkpoint of a run without L-DRO" in output
    path = f'--gin.INITIAL_CHECKPOINT_PATH="{stock}/checkpoint_20"'
    run("train", "text_tiny", *training(warm, data_dir, path), gin_files=("warm_start",))
    assert_equal(restored(warm, 0)["target"], before["target"])
    state = restored(warm, 20)["state"]
    assert state["step"] == 20 and state["param_states"]["weighting"]["count"] == 20


def test_a_checkpoint_is_evaluated_and_reported(full, data_dir, tmp_path):
    run(
        "eval",
        "text_tiny_eval",
        f'--gin.DATA_DIR="{data_dir}"',
        f'--gin.CHECKPOINT_PATH="{full}/checkpoint_20"',
        f'--gin.EVAL_OUTPUT_DIR="{tmp_path}"',
    )
    record = report.read([("L-DRO", str(full))])
    last = record.runs[0].evaluations[-1]
    for language in LANGUAGES:
        file = tmp_path / "inference_eval" / f"ldro_text_{language}-metrics.jsonl"
        found = json.loads(file.read_text().splitlines()[-1])
        # Random text: validation and test differ by chance alone.
        np.testing.assert_allclose(found["perplexity"], last.per_task[language], rtol=0.03)
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

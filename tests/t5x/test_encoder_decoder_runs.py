"""Runs of a tiny mT5, and of a prefix language model, from T5X's own gin files and ours."""

import json
import pathlib

import jax
import numpy as np
import pytest
from helpers.t5x_runs import assert_equal, killed_and_resumed, restored, run, write_text

from ldro_jax.t5x import report

tiny_t5x = pytest.importorskip(
    "helpers.tiny_t5x", reason="T5X is not installed (scripts/install_t5x.sh)", exc_type=ImportError
)
pytestmark = [pytest.mark.heavy, pytest.mark.filterwarnings("ignore")]
LANGUAGES = ("el", "he", "sw")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("text"), LANGUAGES)


def training(model_dir, data_dir, *bindings):
    return (
        f'--gin.MODEL_DIR="{model_dir}"',
        f'--gin.DATA_DIR="{data_dir}"',
        *("--gin.TRAIN_STEPS=20", "--gin.PERIOD=10", *bindings),
    )


@pytest.fixture(scope="module")
def full(tmp_path_factory, data_dir):
    model_dir = tmp_path_factory.mktemp("full")
    run("train", "mt5_tiny", *training(model_dir, data_dir))
    return model_dir


def test_a_run_that_was_killed_goes_on_bit_for_bit(full, data_dir, tmp_path):
    killed_and_resumed(("train", "mt5_tiny", *training(tmp_path, data_dir)), tmp_path)
    assert_equal(restored(tmp_path, 20), restored(full, 20))


def test_a_checkpoint_is_evaluated_and_reported(full, data_dir, tmp_path):
    run(
        "eval",
        "mt5_tiny_eval",
        f'--gin.DATA_DIR="{data_dir}"',
        f'--gin.CHECKPOINT_PATH="{full}/checkpoint_20"',
        f'--gin.EVAL_OUTPUT_DIR="{tmp_path}/eval"',
    )
    report.main([f"--output_dir={tmp_path}/report", f"L-DRO={full}"])
    record = report.read([("L-DRO", str(full))])
    assert record.task_names == list(LANGUAGES)
    first, last = record.runs[0].evaluations[0], record.runs[0].evaluations[-1]
    assert last.average < first.average
    for language in LANGUAGES:
        file = tmp_path / "eval" / "inference_eval" / f"ldro_text_{language}-metrics.jsonl"
        found = json.loads(file.read_text().splitlines()[-1])
        # Random text, but T5X's validation loss has its z-loss in it, and other spans left out.
        np.testing.assert_allclose(found["perplexity"], last.per_task[language], rtol=0.1)
    saved = restored(full, 20)["state"]["param_states"]["weighting"]["weights"]
    np.testing.assert_allclose(record.runs[0].weights.values[-1], saved, rtol=1e-6)
    assert (tmp_path / "report" / "report.html").exists()


def test_a_checkpoint_decodes(full, data_dir, tmp_path):
    run(
        "infer",
        "mt5_tiny_infer",
        f'--gin.DATA_DIR="{data_dir}"',
        f'--gin.CHECKPOINT_PATH="{full}/checkpoint_20"',
        f'--gin.INFER_OUTPUT_DIR="{tmp_path}"',
    )
    for number, language in enumerate(LANGUAGES):
        (file,) = tmp_path.glob(f"ldro_text_{language}-predict.jsonl-*-of-00001")
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        predicted = "".join(row["prediction"] for row in rows)
        letters = set("abcdefghijklmnopqrstuvwx"[: 3 * (number + 1)])
        assert len(rows) > 30 and predicted and set(predicted) <= letters, predicted[:200]


@pytest.mark.parametrize("orbax", [True, False])
def test_a_stock_checkpoint_is_fine_tuned_with_frozen_parts(data_dir, tmp_path, orbax):
    # The checkpoints that T5 and mT5 were published as are from before Orbax.
    stock, tuned = tmp_path / "stock", tmp_path / "tuned"
    own = tmp_path / "own.gin"
    own.write_text(
        "from __gin__ import dynamic_registration\nimport __main__ as train_script\n"
        "include 't5x/configs/runs/pretrain.gin'\n"
        "include 'gin_configs/t5x/mt5_tiny_model.gin'\n"
        "BATCH_SIZE = 48\nUSE_CACHED_TASKS = False\nTRAIN_STEPS = 10\n"
        f"train_script.train.eval_period = 10\ntrain_script.train.use_orbax = {orbax}\n"
    )
    run("train", own, *training(stock, data_dir)[:2])
    path = f'--gin.INITIAL_CHECKPOINT_PATH="{stock}/checkpoint_10"'
    output = run("train", "mt5_tiny_finetune", *training(tuned, data_dir, path))
    assert "checkpoint_10" in output
    if orbax:
        before, begun = restored(stock, 10), restored(tuned, 10)
        assert_equal(begun["target"], before["target"])
        states = begun["state"]["param_states"]
        np.testing.assert_allclose(states.pop("weighting")["weights"], 1 / 3)
        assert_equal(states, before["state"]["param_states"])
    begun, after = (restored(tuned, step) for step in (10, 20))
    assert after["state"]["step"] == 20
    assert after["state"]["param_states"]["weighting"]["count"] == 10
    moved = jax.tree.map(lambda x, y: (x != y).any(), begun["target"], after["target"])
    assert not any(jax.tree.leaves([moved["token_embedder"], moved["encoder"]]))
    assert all(jax.tree.leaves(moved["decoder"]))


PREFIX_MODEL = """
from __gin__ import dynamic_registration
from t5x import models
from t5x import partitioning
from t5x.examples.decoder_only import network
from ldro_jax.t5x import data
include "{stock}/models/base.gin"
include "gin_configs/t5x/data/text.gin"
DROPOUT_RATE = 0.0
TASK_FEATURE_LENGTHS = {"inputs": 24, "targets": 8}
models.DecoderOnlyModel.inputs_bidirectional_attention = True
data.text_mixture.objective = "prefix_lm"
network.TransformerConfig:
  vocab_size = %VOCAB_SIZE
  dtype = "float32"
  emb_dim = 32
  num_heads = 2
  num_layers = 2
  head_dim = 16
  mlp_dim = 64
partitioning.PjitPartitioner:
  num_partitions = None
  model_parallel_submesh = (1, 2, 1, 1)
"""
PREFIX_TRAIN = """
from __gin__ import dynamic_registration
import __main__ as train_script
include "t5x/configs/runs/pretrain.gin"
include "{folder}/model.gin"
include "ldro_jax/t5x/decoder_only.gin"
TRAIN_STEPS = 20
BATCH_SIZE = 24
USE_CACHED_TASKS = False
INTERACTION_INTERVAL = 5
train_script.train:
  eval_period = 10
  eval_steps = 2
"""
PREFIX_INFER = """
include "t5x/configs/runs/infer.gin"
include "{folder}/model.gin"
"""


def test_a_prefix_language_model_trains_and_decodes(data_dir, tmp_path):
    for name, text in [
        ("model", PREFIX_MODEL),
        ("train", PREFIX_TRAIN),
        ("infer", PREFIX_INFER),
    ]:
        # By its path: T5X's folder is no package, which gin takes fright at.
        stock = str(pathlib.Path(tiny_t5x.network.__file__).parent)
        text = text.replace("{folder}", str(tmp_path)).replace("{stock}", stock)
        (tmp_path / f"{name}.gin").write_text(text)
    run("train", tmp_path / "train.gin", *training(tmp_path / "run", data_dir)[:2])
    record = report.read([("L-DRO", str(tmp_path / "run"))])
    assert record.runs[0].evaluations[-1].average < record.runs[0].evaluations[0].average
    run(
        "infer",
        tmp_path / "infer.gin",
        f'--gin.DATA_DIR="{data_dir}"',
        f'--gin.CHECKPOINT_PATH="{tmp_path}/run/checkpoint_20"',
        f'--gin.INFER_OUTPUT_DIR="{tmp_path}/out"',
    )
    (file,) = (tmp_path / "out").glob("ldro_text_sw-predict.jsonl-*-of-00001")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(rows) > 30 and all(len(row["inputs"]["inputs_pretokenized"]) > 20 for row in rows)
    assert len({row["prediction"] for row in rows}) > 1

"""The diff in docs/t5x.md fits T5X's own gin file, is short, and makes a run of it that trains."""

import pathlib
import re

import pytest
from helpers.t5x_runs import ROOT, restored, run, write_text

tiny_t5x = pytest.importorskip(
    "helpers.tiny_t5x", reason="T5X is not installed (scripts/install_t5x.sh)", exc_type=ImportError
)
pytestmark = pytest.mark.filterwarnings("ignore")
STOCK = pathlib.Path(tiny_t5x.t5_network.__file__).parent / ("t5_1_1/examples/base_c4_pretrain.gin")
LANGUAGES = ("el", "he", "sw")
# In the place of t5, which registers T5's mixtures where it is installed.
T5 = ("t5/__init__.py", "t5/data/__init__.py", "t5/data/mixtures.py")
TASKS = """
import seqio
from ldro_jax.t5x import objectives
from ldro_jax.tasks import text
words = seqio.ByteVocabulary(100)
for name in {languages}:
    task = text.seqio_task({data_dir!r}, name, words)
    seqio.TaskRegistry.add_provider(task.name, objectives.task(task, "span_corruption", []))
seqio.MixtureRegistry.add(
    "my_languages", [(f"ldro_text_{{name}}", 1.0) for name in {languages}]
)
"""
# What makes a CPU's run of it.
SMALL = """
from __gin__ import dynamic_registration
import __main__ as train_script
import seqio
from t5x import partitioning
from t5x import utils
from t5x.examples.t5 import network
VOCABULARY = @seqio.ByteVocabulary()
seqio.ByteVocabulary.extra_ids = 100
TASK_FEATURE_LENGTHS = {"inputs": 64, "targets": 24}
TRAIN_STEPS = 4
BATCH_SIZE = 24
USE_CACHED_TASKS = False
train_script.train:
  eval_period = 4
  eval_steps = 1
partitioning.PjitPartitioner:
  num_partitions = None
  model_parallel_submesh = (1, 2, 1, 1)
network.T5Config:
  vocab_size = 384
  dtype = "float32"
  emb_dim = 16
  num_heads = 2
  num_encoder_layers = 1
  num_decoder_layers = 1
  head_dim = 8
  mlp_dim = 32
"""


def diff():
    page = (ROOT / "docs" / "t5x.md").read_text(encoding="utf-8")
    return re.search(r"```diff\n(.*?)```", page, re.DOTALL).group(1).splitlines()


def patched(text, lines):
    """The text with the diff applied, whose context must be there, in a single place."""
    before = "".join(f"{line[1:]}\n" for line in lines if not line.startswith("+"))
    after = "".join(f"{line[1:]}\n" for line in lines if not line.startswith("-"))
    assert text.count(before) == 1
    return text.replace(before, after)


def test_the_diff_is_at_most_six_lines():
    changed = [line for line in diff() if line[:1] in ("+", "-")]
    assert 0 < len(changed) <= 6
    assert patched(STOCK.read_text(), diff()) != STOCK.read_text()


def test_gin_files_are_found_from_any_directory(run_python, tmp_path):
    names = sorted(path.name for path in (ROOT / "ldro_jax" / "t5x").glob("*.gin"))
    assert {"decoder_only.gin", "encoder_decoder.gin", "finetune.gin"} <= set(names)
    assert '"ldro_jax.t5x": ["*.gin"]' in (ROOT / "setup.py").read_text(encoding="utf-8")
    found = run_python(
        f"import os, gin\nos.chdir({str(tmp_path)!r})\nfrom gin import resource_reader as r\n"
        f"print(all(r.system_path_file_exists('ldro_jax/t5x/' + n) for n in {names}))"
    )
    assert found.split() == ["True"]


@pytest.mark.heavy
@pytest.mark.parametrize("family", ["t5_1_1", "mt5", "byt5"])
def test_the_file_with_the_diff_trains_from_any_directory(tmp_path, family):
    for name in T5:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    data_dir = tmp_path / "text"
    data_dir.mkdir()
    write_text(data_dir, LANGUAGES)
    (tmp_path / "my_tasks.py").write_text(TASKS.format(languages=LANGUAGES, data_dir=str(data_dir)))
    mine = patched(STOCK.read_text(), diff())
    (tmp_path / "mine.gin").write_text(mine.replace("t5/t5_1_1/base.gin", f"t5/{family}/base.gin"))
    (tmp_path / "small.gin").write_text(SMALL)
    model_dir = tmp_path / "run"
    run(
        "train",
        "mine.gin",
        f'--gin.MODEL_DIR="{model_dir}"',
        gin_files=("small.gin",),
        cwd=tmp_path,
        path=(tmp_path,),
    )
    assert (model_dir / "ldro_tasks.json").exists()
    weighting = restored(model_dir, 4)["state"]["param_states"]["weighting"]
    assert weighting["count"] == 4 and weighting["weights"].shape == (3,)

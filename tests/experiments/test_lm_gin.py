"""The experiments with language models, from their gin files to their reports."""

import pathlib

import gin
import jax
import numpy as np
import pytest
from helpers import gin_files, tiny_lm

# Importing seqio brings TensorFlow, whose packages use what is deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

_REAL = pathlib.Path(__file__).parents[2].parent / "shared" / "data" / "text"
_TINY = [
    "TRAIN_STEPS=4",
    "WARMUP_STEPS=1",
    "EVAL_INTERVAL=2",
    *tiny_lm.BINDINGS,
    "language_model.max_test_tokens=200",
    "language_model.max_validation_tokens=100",
]
# The one with references, and what it is compared with.
_METHODS = {
    "average": "Average (α = 0)",
    "baselined_dro": "Baselined-DRO",
}
_TINY_ALONE = ["alone/Batches.size=8"]


@pytest.fixture(autouse=True)
def _alone():
    # Optax's Adam is not made for strict promotion.
    with jax.numpy_dtype_promotion("standard"):
        yield
    gin.clear_config()


@pytest.fixture(scope="module")
def text_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    words = {"aa": "alpha beta gamma", "bb": "один два три четыре"}
    rng = np.random.default_rng(0)
    for number, (language, some) in enumerate(words.items()):
        (folder / language).mkdir()
        for split, lines in (("train", 60 * (number + 1)), ("validation", 40)):
            text = "".join(" ".join(rng.choice(some.split(), 5)) + "\n" for _ in range(lines))
            (folder / language / f"{split}.txt").write_text(text, encoding="utf-8")
    return folder


def _run(output_dir, data_dir, *bindings, file="multilingual_lm_small.gin"):
    output_dir.mkdir()
    return gin_files.run(file, output_dir, *_TINY, *bindings, data_dir=data_dir)


def _bytes_of_all_languages(cache_dir):
    return [
        "text.load.languages=None",
        "text.load.vocabulary_size=None",
        f"text.load.cache_dir='{cache_dir}'",
    ]


@pytest.mark.usefixtures("unpainted")
def test_it_ends_with_table_1(text_dir, tmp_path, capsys):
    pytest.importorskip("seqio")
    methods = ", ".join(f"@{scope}/Method()" for scope in _METHODS)
    bindings = [*_bytes_of_all_languages(tmp_path / "cache"), *_TINY_ALONE]
    one = _run(
        tmp_path / "one", text_dir, *bindings, "Layout.data=1", f"compare.methods=[{methods}]"
    )
    printed = capsys.readouterr().out
    assert "Monolingual" in printed and all(name[:9] in printed for name in _METHODS.values())
    report = (tmp_path / "one" / "report.html").read_text(encoding="utf-8")
    assert "Monolingual" in report and "relative_by_task.png" in {
        path.name for path in (tmp_path / "one" / "figures").iterdir()
    }
    assert list(dict.fromkeys(run.method for run in one.runs)) == list(_METHODS.values())
    assert one.task_names == ["aa", "bb"] and set(one.references) == {"validation", "test"}


@pytest.mark.heavy
@pytest.mark.usefixtures("unpainted")
def test_languages_of_which_one_can_not_be_learnt(text_dir, tmp_path):
    pytest.importorskip("seqio")
    languages = ["text.load.languages=('aa', 'bb')", f"text.load.cache_dir='{tmp_path / 'cache'}'"]
    more = ["SEEDS=(0,)", "signal_tilted/Method.interaction_rows=4", "Layout.data=1"]
    record = _run(tmp_path / "out", text_dir, *languages, *more, file="shuffled_language.gin")
    assert [run.method for run in record.runs] == ["Average (α = 0)", "Group DRO", "Signal tilted"]
    assert all(np.isfinite(run.evaluations[-1].average) for run in record.runs)


@pytest.mark.heavy  # as does tests/training/test_meshed.py
def test_a_mesh_makes_no_difference(text_dir, tmp_path):
    pytest.importorskip("seqio")
    bindings = _bytes_of_all_languages(tmp_path / "cache")
    mesh = ("Layout.data=4", "Layout.model=2", "Layout.fully_sharded=True")
    one_method = ("compare.methods=[@ldro/Method()]", "Report.references=None")
    one = _run(tmp_path / "one", text_dir, *bindings, "Layout.data=1", *one_method)
    gin.clear_config()
    eight = _run(tmp_path / "eight", text_dir, *bindings, *mesh, *one_method)
    for ours, theirs in zip(one.runs, eight.runs, strict=True):
        values = [list(run.evaluations[-1].per_task.values()) for run in (ours, theirs)]
        # Sums in another order, in float32, over four steps of Adam.
        np.testing.assert_allclose(*values, rtol=1e-3)


@pytest.mark.skipif(not _REAL.is_dir(), reason="needs the text of 40 languages in ../shared")
@pytest.mark.heavy
def test_the_real_text_of_two_languages_is_trained_on(tmp_path):
    pytest.importorskip("seqio")
    record = _run(
        tmp_path / "out",
        _REAL,
        "text.load.languages=('sw', 'af')",
        "text.load.vocabulary_size=None",
        f"text.load.cache_dir='{tmp_path / 'cache'}'",
        "compare.methods=[@average/Method(), @ldro/Method()]",
        "Report.references=None",
        "Layout.data=1",
    )
    # Bytes of both languages, and an end for each line.
    assert record.task_sizes["sw"] > 440_000 and record.task_sizes["af"] > 530_000
    assert all(np.isfinite(run.evaluations[-1].average) for run in record.runs)

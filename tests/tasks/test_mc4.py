"""mC4 as TFDS keeps it: training text is streamed, and what is held out is divided in two."""

import collections
import shutil
import sys

import gin
import jax
import numpy as np
import pytest
from helpers import tiny_mc4

from ldro_jax import configuration
from ldro_jax.experiments.arguments import Directories
from ldro_jax.records import results
from ldro_jax.tasks import mc4, token_cache
from ldro_jax.training import recording

# Importing seqio brings TensorFlow, whose packages use what is deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

END = 1
LENGTH = 32
LANGUAGES = ("zh", "he", "sw")


@pytest.fixture(scope="module")
def tfds():
    # Not when tests are collected, as it takes ten seconds.
    pytest.importorskip("seqio")
    return pytest.importorskip("tensorflow_datasets")


@pytest.fixture(scope="module")
def data_dir(tfds, tmp_path_factory):
    return tiny_mc4.make_data(tfds, tmp_path_factory.mktemp("tfds"))


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def corpus(data_dir, cache_dir):
    return load(data_dir, cache_dir)


def load(data_dir, cache_dir, languages=LANGUAGES, **options):
    return mc4.load(
        data_dir=str(data_dir), languages=languages, cache_dir=str(cache_dir), **options
    )


def pages_in(tokens):
    """Texts from tokens of the byte vocabulary, but for the last, which may be cut off."""
    text = bytes(t - 3 if t != END else 0 for t in tokens.ravel().tolist())
    return text.decode(errors="ignore").split("\0")[:-1]


def read(source, count, task=0):
    return source.rows(np.full(count, task), np.arange(count))


def test_all_languages_of_xtreme_but_tagalog_are_in_mc4(tfds):
    del tfds
    from tensorflow_datasets.text import c4

    assert len(mc4.LANGUAGES) == 40 and set(mc4.ABSENT) == {"tl"}
    names = {name: mc4._split(name) for name in mc4.LANGUAGES}
    assert [name for name in names if names[name] not in c4.MC4_LANGUAGES] == ["tl"]
    assert {name: theirs for name, theirs in names.items() if name != theirs} == {"he": "iw"}
    assert str(c4._VERSION) == mc4.VERSION


def test_training_text_is_streamed_in_every_language(corpus):
    assert corpus.task_names == LANGUAGES and corpus.vocab_size == 259
    assert corpus.sizes.tolist() == [tiny_mc4.NUM_PAGES] * 3
    source = corpus.source(LENGTH, 0)
    for task, name in enumerate(("zh", "iw", "sw")):
        counts = collections.Counter(pages_in(read(source, 300, task)))
        assert set(counts) == set(tiny_mc4.pages_of(name))


def test_validation_and_test_share_the_pages_held_out(corpus):
    for task, name in enumerate(("zh", "iw", "sw")):
        parts = [pages_in(split[task]) for split in (corpus.validation, corpus.test)]
        assert [len(part) for part in parts] in ([4, 5], [5, 4])
        assert parts[0] + parts[1] == tiny_mc4.pages_of(name, "validation")


def test_held_out_text_is_tokenised_once(corpus, data_dir, cache_dir, monkeypatch):
    def fail(*_):
        raise AssertionError("tokenised again")

    monkeypatch.setattr(token_cache, "_tokenised", fail)
    again = load(data_dir, cache_dir)
    assert again.vocabulary == corpus.vocabulary
    for split in ("validation", "test"):
        for ours, theirs in zip(getattr(again, split), getattr(corpus, split), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(AssertionError, match="tokenised again"):
        load(data_dir, cache_dir, max_heldout_tokens=50)


def test_so_much_held_out_text_is_taken(corpus, data_dir, cache_dir):
    limited = load(data_dir, cache_dir, languages=["he"], max_heldout_tokens=50)
    everything = load(data_dir, cache_dir, languages=["he"], max_heldout_tokens=None)
    for split in ("validation", "test"):
        whole = getattr(corpus, split)[1]
        np.testing.assert_array_equal(getattr(everything, split)[0], whole)
        np.testing.assert_array_equal(getattr(limited, split)[0], whole[:50])


def test_a_resumed_stream_goes_on_where_the_files_were_left(corpus, tmp_path):
    tasks = np.arange(300) % 3
    expected = corpus.source(LENGTH, 1).rows(tasks, tasks)
    interrupted = corpus.source(LENGTH, 1)
    interrupted.rows(tasks[:100], tasks[:100])
    interrupted.save(tmp_path)
    resumed = corpus.source(LENGTH, 1)
    resumed.restore(tmp_path)
    np.testing.assert_array_equal(resumed.rows(tasks[100:], tasks[100:]), expected[100:])


def test_processes_read_different_files(corpus, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: tiny_mc4.NUM_FILES)
    for process in range(tiny_mc4.NUM_FILES):
        monkeypatch.setattr(jax, "process_index", lambda number=process: number)
        found = set(pages_in(read(corpus.only(2).source(LENGTH, 0), 150)))
        assert found == set(tiny_mc4.pages_of("sw")[process :: tiny_mc4.NUM_FILES])


def test_the_task_of_a_language_serves_other_trainers(tfds, data_dir):
    import seqio

    vocab = seqio.ByteVocabulary()
    task = mc4.seqio_task("he", vocab, data_dir=str(data_dir))
    assert set(task.splits) == {"train", "validation", "test"}
    assert task.num_input_examples("train") == tiny_mc4.NUM_PAGES
    (first,) = task.get_dataset({"targets": 10}, split="train", shuffle=False).take(1)
    assert set(first) == {"targets"} and first["targets"].shape == [10]
    assert vocab.decode(first["targets"].numpy().tolist()) == "iw train 0"


def test_nothing_is_looked_for_elsewhere(tfds, data_dir, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise AssertionError("looked elsewhere")

    monkeypatch.setattr(tfds.core.DatasetInfo, "initialize_from_bucket", fail)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(FileNotFoundError):
        mc4.load(cache_dir=str(tmp_path))
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
    assert mc4.load(languages=["sw"], cache_dir=str(tmp_path)).sizes.tolist() == [
        tiny_mc4.NUM_PAGES
    ]


def test_a_directory_without_mc4_is_explained(tfds, tmp_path):
    message = (
        rf"no mC4 in {tmp_path}/c4/multilingual/3.1.0: expected dataset_info.json and "
        r"features.json there\. Pass --data_dir, the directory that holds c4/multilingual/3.1.0/\."
        rf".*tfds build c4/multilingual --data_dir={tmp_path}.*needs a cluster"
    )
    with pytest.raises(FileNotFoundError, match=message):
        load(tmp_path, tmp_path)
    with pytest.raises(FileNotFoundError, match="no mC4 in"):
        mc4.seqio_task("sw", None, data_dir=str(tmp_path))


def test_another_version_is_named(tfds, data_dir, tmp_path):
    message = "3.0.1: expected .* there, but found only 3.1.0 beside it. Pass"
    with pytest.raises(FileNotFoundError, match=message):
        load(data_dir, tmp_path, version="3.0.1")


@pytest.mark.parametrize(
    ("languages", "message"),
    [
        (["sw", "tl"], r"Tagalog \(tl\), which is absent from mC4: it has Filipino \(fil\)"),
        (["sw", "iw"], "languages must be of XTREME, but 'iw' is not. Known are af, .* he, .*, zh"),
        ([], "languages must be a list of names"),
    ],
)
def test_unknown_languages_are_an_error(languages, message):
    with pytest.raises(ValueError, match=message):
        mc4.load(data_dir="/nowhere", languages=languages)


def test_limits_out_of_range_are_an_error():
    with pytest.raises(
        ValueError, match="max_heldout_tokens must be a positive integer, but it is 0"
    ):
        mc4.load(data_dir="/nowhere", max_heldout_tokens=0)


def test_languages_that_are_missing_are_named(tfds, data_dir, tmp_path):
    message = "no text in fr, yo: expected splits such as fr and fr-validation"
    with pytest.raises(FileNotFoundError, match=message):
        load(data_dir, tmp_path, languages=["fr", "sw", "yo"])


def test_too_little_to_hold_out_is_an_error(tfds, tmp_path):
    tiny_mc4.make_data(tfds, tmp_path, names=["sw"], num_held_out=1)
    with pytest.raises(ValueError, match="but in sw it has less than two pages"):
        load(tmp_path, tmp_path, languages=["sw"])


def test_another_data_set_is_an_error(tfds, tmp_path):
    features = tfds.features.FeaturesDict({"body": tfds.features.Text()})
    tiny_mc4.make_data(tfds, tmp_path, names=["sw"], features=features)
    with pytest.raises(ValueError, match="Expected the feature text in .*, but found body"):
        load(tmp_path, tmp_path, languages=["sw"])


def test_a_damaged_description_is_an_error(tfds, data_dir, tmp_path):
    root = shutil.copytree(data_dir, tmp_path / "copy")
    (root / "c4/multilingual/3.1.0/dataset_info.json").write_text("{")
    with pytest.raises(ValueError, match=r"TFDS can't open mC4 in .*\. Copy its dataset_info.json"):
        load(root, tmp_path)


def test_files_that_are_cut_off_or_missing_are_named(tfds, data_dir, tmp_path):
    root = shutil.copytree(data_dir, tmp_path / "copy")
    held_out = root / "c4/multilingual/3.1.0/c4-sw-validation.tfrecord-00000-of-00001"
    trained = root / "c4/multilingual/3.1.0/c4-sw.tfrecord-00001-of-00003"
    whole = held_out.read_bytes()
    held_out.write_bytes(whole[:-30])
    message = r"test text of .*_sw in .*3.1.0 can't be read \(truncated record at .*\)\. Is a file"
    with pytest.raises(ValueError, match=message):
        load(root, tmp_path, languages=["sw"])
    held_out.write_bytes(whole)
    trained.unlink()
    source = load(root, tmp_path, languages=["sw"]).source(LENGTH, 0)
    with pytest.raises(ValueError, match=r"training text of .*sw can't be read \(.*cut off or mis"):
        read(source, 300)


def test_without_tfds_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'ldro-jax\[lm\]'"):
        mc4.load(data_dir="/nowhere")


@pytest.mark.heavy  # runs of other texts that are stopped are in training/test_meshed_runs.py
def test_a_run_on_mc4_that_is_stopped_goes_on_with_the_next_text(
    data_dir, cache_dir, tmp_path, monkeypatch
):
    bindings = [
        "TRAIN_STEPS=6",
        "WARMUP_STEPS=1",
        "EVAL_INTERVAL=3",
        # Not a multiple of the number of languages.
        "BATCH_SIZE=4",
        "LENGTH=8",
        "Decoder.num_layers=1",
        "Decoder.embed_dim=16",
        "Decoder.num_heads=2",
        "Decoder.mlp_dim=16",
        "Decoder.dtype='float32'",
        "Layout.data=1",
        f"mc4.load.languages={LANGUAGES}",
        f"mc4.load.cache_dir='{cache_dir}'",
        "compare.methods=[@ldro/Method()]",
        "Report.references=None",
    ]

    def run(name):
        file = "gin_configs/experiments/multilingual_lm_mc4.gin"
        experiment = configuration.load([file], bindings)
        (tmp_path / name).mkdir(exist_ok=True)
        experiment(output_dir=Directories(tmp_path / name, str(data_dir)))
        return results.load_results(tmp_path / name / "results.json").runs[0]

    write, stretches = recording.write_scalars, []

    def stop(*arguments):
        stretches.append(1)
        if len(stretches) == 2:
            raise KeyboardInterrupt
        write(*arguments)

    # Optax's Adam is not made for strict promotion.
    with jax.numpy_dtype_promotion("standard"):
        whole = run("whole")
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(recording, "write_scalars", stop)
            run("stopped")
        resumed = run("stopped")
    gin.clear_config()
    np.testing.assert_array_equal(resumed.losses.values, whole.losses.values)
    assert resumed.evaluations == whole.evaluations

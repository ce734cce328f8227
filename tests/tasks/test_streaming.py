"""A stream gives every token of every document, in the same order however often it is resumed."""

import collections
import json
import math
import resource
import shutil

import jax
import numpy as np
import pytest

from ldro_jax.tasks import streaming

# Importing seqio brings TensorFlow, whose packages use what is deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

END = 1
LENGTH = 16
NAMES = ("el", "sw")
NUM_DOCUMENTS = 23
BUFFER = 40
# An epoch of a task has about 40 sequences.
SEVERAL_EPOCHS = 200


@pytest.fixture(scope="module")
def seqio():
    # Not when tests are collected, as it takes ten seconds.
    return pytest.importorskip("seqio")


def documents_of(name):
    """Texts of many lengths, from nothing to several sequences, each with a name of its own."""
    return [f"{name}{number}:" + "λ" * (number * 7919 % 23) for number in range(NUM_DOCUMENTS)]


def make_task(seqio, name, documents=None, *, buffer=BUFFER, extra_ids=0, path=None):
    """A task whose shuffle buffer holds nearly two epochs."""
    import tensorflow as tf

    def dataset_fn(split, shuffle_files, seed=None):
        del split, shuffle_files, seed
        if path is not None:
            return tf.data.TextLineDataset(str(path)).map(lambda line: {"targets": line})
        texts = documents_of(name) if documents is None else documents
        return tf.data.Dataset.from_tensor_slices({"targets": tf.constant(texts, tf.string)})

    vocabulary = seqio.ByteVocabulary(extra_ids=extra_ids)
    return seqio.Task(
        name,
        source=seqio.FunctionDataSource(dataset_fn, splits=("train",)),
        preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
        output_features={"targets": seqio.Feature(vocabulary, add_eos=True)},
        shuffle_buffer_size=buffer,
    )


def make_source(seqio, *, names=NAMES, length=LENGTH, seed=0, **options):
    tasks = [make_task(seqio, name, **options) for name in names]
    return streaming.SeqioStream(tasks, [1] * len(tasks)).source(length, seed)


def read(source, count, task=0):
    tasks = np.full(count, task)
    return source.rows(tasks, np.zeros(count, np.int64))


def read_both(source, count):
    """Rows of both tasks in turn."""
    return source.rows(np.arange(count) % len(NAMES), np.arange(count))


def tokens_of(documents):
    """What the byte vocabulary makes of them: three marks come before the bytes."""
    return np.array([t for text in documents for t in (*(b + 3 for b in text.encode()), END)])


def complete_documents(rows):
    """All documents in rows that are one text, but for the last, which may be cut off."""
    return (
        bytes(t - 3 if t != END else 0 for t in rows.ravel().tolist())
        .decode(errors="ignore")
        .split("\0")[:-1]
    )


def run_as(monkeypatch, process, processes):
    monkeypatch.setattr(jax, "process_index", lambda: process)
    monkeypatch.setattr(jax, "process_count", lambda: processes)


def test_documents_are_put_end_to_end_and_cut(seqio):
    source = make_source(seqio, buffer=1)
    for task, name in enumerate(NAMES):
        rows = read(source, SEVERAL_EPOCHS, task)
        assert rows.dtype == np.int32 and rows.shape == (SEVERAL_EPOCHS, LENGTH)
        text = np.resize(tokens_of(documents_of(name)), rows.size)
        np.testing.assert_array_equal(rows.ravel(), text)


def test_documents_are_shuffled_whole_and_none_is_lost(seqio):
    found = complete_documents(read(make_source(seqio), SEVERAL_EPOCHS))
    counts = collections.Counter(found)
    assert set(counts) == set(documents_of("el"))
    # As often as it has been read, if no copy of it waits in the buffer.
    assert max(counts.values()) <= math.ceil((len(found) + BUFFER) / NUM_DOCUMENTS)


def test_rows_are_the_next_of_their_tasks_whatever_the_indices(seqio):
    one, other = make_source(seqio), make_source(seqio)
    first, second = read(one, 3, task=0), read(one, 2, task=1)
    mixed = other.rows(np.array([1, 0, 0, 1, 0]), np.array([9, 9, 0, 5, -1]))
    np.testing.assert_array_equal(mixed[[1, 2, 4]], first)
    np.testing.assert_array_equal(mixed[[0, 3]], second)
    assert other.rows(np.zeros(0, int), np.zeros(0, int)).shape == (0, LENGTH)


def test_the_seed_gives_the_order(seqio):
    rows = [read(make_source(seqio, seed=seed), SEVERAL_EPOCHS) for seed in (3, 3, 4)]
    np.testing.assert_array_equal(rows[0], rows[1])
    assert (rows[0] != rows[2]).any()


# At 0 the shuffle buffer is being filled.
@pytest.mark.parametrize("before", [0, 1, 7, 151])
def test_a_resumed_stream_goes_on_as_if_it_had_not_stopped(seqio, tmp_path, before):
    expected = read_both(make_source(seqio), before + 2 * SEVERAL_EPOCHS)
    interrupted = make_source(seqio)
    np.testing.assert_array_equal(read_both(interrupted, before), expected[:before])
    interrupted.save(tmp_path)
    resumed = make_source(seqio)
    resumed.restore(tmp_path)
    for source in (resumed, interrupted):
        rest = np.arange(before, len(expected))
        np.testing.assert_array_equal(source.rows(rest % len(NAMES), rest), expected[before:])
    resumed.restore(tmp_path)
    rest = rest[:50]
    np.testing.assert_array_equal(resumed.rows(rest % len(NAMES), rest), expected[rest])


def test_processes_read_and_save_shards_of_their_own(seqio, tmp_path, monkeypatch):
    found, rest = [], []
    for process in range(2):
        run_as(monkeypatch, process, 2)
        source = make_source(seqio)
        found.append(set(complete_documents(read(source, SEVERAL_EPOCHS))))
        source.save(tmp_path)
        rest.append(read(source, 30))
    assert not found[0] & found[1] and found[0] | found[1] == set(documents_of("el"))
    for process in range(2):
        run_as(monkeypatch, process, 2)
        source = make_source(seqio)
        source.restore(tmp_path)
        np.testing.assert_array_equal(read(source, 30), rest[process])


@pytest.fixture(scope="module")
def saved(seqio, tmp_path_factory):
    """A saved state, to copy."""
    folder = tmp_path_factory.mktemp("saved")
    source = make_source(seqio)
    read_both(source, 9)
    source.save(folder)
    return folder


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"names": ("el", "de")}, r"task_names was \['el', 'sw'\], now it is \['el', 'de'\]"),
        ({"names": ("el",)}, r"task_names was \['el', 'sw'\], now it is \['el'\]"),
        ({"length": 8}, "length was 16, now it is 8"),
        ({"seed": 5}, "seed was 0, now it is 5"),
        ({"extra_ids": 10}, "vocabulary was .*, now it is .*"),
    ],
)
def test_the_state_of_another_stream_is_refused(seqio, saved, changed, message):
    with pytest.raises(ValueError, match=f"another run: {message}.*begin a new one"):
        make_source(seqio, **changed).restore(saved)


def test_the_state_of_more_or_fewer_processes_is_refused(seqio, saved, monkeypatch):
    run_as(monkeypatch, 0, 2)
    with pytest.raises(ValueError, match="another run: processes was 1, now it is 2"):
        make_source(seqio).restore(saved)


def cut_off(file):
    file.write_bytes(file.read_bytes()[:-20])


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


DATA, INDEX, RECORD = (
    f"stream-00000-of-00001.{s}" for s in ("data-00000-of-00001", "index", "json")
)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        (DATA, cut_off),
        (DATA, flip),
        (DATA, lambda file: file.unlink()),
        (INDEX, cut_off),
        (INDEX, lambda file: file.unlink()),
        (RECORD, cut_off),
        (RECORD, lambda file: file.write_bytes(b"\xff\xfe")),
        (RECORD, lambda file: file.write_text("[]")),
        (RECORD, lambda file: file.write_text('{"text": {}, "files": 3}')),
    ],
)
def test_a_damaged_state_is_an_error(seqio, saved, tmp_path, name, damage):
    folder = shutil.copytree(saved, tmp_path / "copy")
    damage(folder / name)
    with pytest.raises(ValueError, match=rf"{name} is damaged \(.*\)\. Go on from another"):
        make_source(seqio).restore(folder)


def test_a_state_that_does_not_fit_the_pipelines_is_an_error(seqio, saved, tmp_path):
    folder = tmp_path / "other"
    folder.mkdir()
    make_source(seqio, names=("el",)).save(folder)
    record = json.loads((folder / RECORD).read_text())
    record["text"] = json.loads((saved / RECORD).read_text())["text"]
    (folder / RECORD).write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"is damaged \(.*; written by TensorFlow \d.*, read by"):
        make_source(seqio).restore(folder)


def test_a_state_that_lacks_a_process_or_everything_is_an_error(
    seqio, saved, tmp_path, monkeypatch
):
    with pytest.raises(ValueError, match=r"no state of a stream of text in .*not completed\?"):
        make_source(seqio).restore(tmp_path)
    run_as(monkeypatch, 0, 2)
    make_source(seqio).save(tmp_path)
    run_as(monkeypatch, 1, 2)
    with pytest.raises(ValueError, match=r"00001-of-00002.json is damaged \(it is missing\)"):
        make_source(seqio).restore(tmp_path)


@pytest.mark.parametrize("room", [0, 1000])
def test_a_full_disk_is_an_error_that_says_so(seqio, tmp_path, room):
    source = make_source(seqio)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # No file can grow beyond it, as if the disk were full.
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        with pytest.raises(OSError, match=r"can't be written to .*\)\. Is the disk full\?"):
            source.save(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_one_task_of_a_stream(seqio):
    tasks = [make_task(seqio, name) for name in NAMES]
    stream = streaming.SeqioStream(tasks, [7, 5])
    alone = stream.only(1)
    assert stream.sizes.tolist() == [7, 5] and alone.sizes.tolist() == [5]
    expected = read(stream.source(LENGTH, 0), 9, task=1)
    np.testing.assert_array_equal(read(alone.source(LENGTH, 0), 9), expected)


def test_tasks_that_do_not_go_together_are_an_error(seqio):
    with pytest.raises(ValueError, match="Every task needs a size, but 1 have 2 sizes"):
        streaming.SeqioStream([make_task(seqio, "el")], [1, 2])
    other = make_task(seqio, "sw", extra_ids=10)
    with pytest.raises(ValueError, match="same vocabulary, but they have 2"):
        streaming.SeqioStream([make_task(seqio, "el"), other], [1, 2])


def test_text_that_is_missing_is_an_error_when_it_is_read(seqio, tmp_path, monkeypatch):
    source = make_source(seqio, names=("yo",), path=tmp_path / "none.txt")
    with pytest.raises(
        ValueError, match=r"text of yo can't be read \([^\[{]*none.txt[^\[{]*\)\. Is a file"
    ):
        read(source, 1)
    with pytest.raises(ValueError, match="no training text of yo for this one of 1 processes"):
        read(make_source(seqio, names=("yo",), documents=[]), 1)
    run_as(monkeypatch, 1, 2)
    with pytest.raises(ValueError, match="no training text of yo for this one of 2 processes"):
        read(make_source(seqio, names=("yo",), documents=["one"]), 1)


def test_what_a_user_has_set_for_tfds_stays(seqio):
    import tensorflow_datasets as tfds

    for config in (None, tfds.ReadConfig(interleave_cycle_length=2)):
        seqio.utils.set_tfds_read_config_override(config)
        try:
            make_source(seqio, names=("el",))
            assert seqio.utils._TFDS_DATA_READ_CONFIG_OVERRIDE is config
        finally:
            seqio.utils.set_tfds_read_config_override(None)

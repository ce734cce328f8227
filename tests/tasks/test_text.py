"""Text becomes the tokens of its lines, once, and none is lost between the splits."""

import gzip
import os

import numpy as np
import pytest

from ldro_jax.tasks import text, text_files, token_cache, vocabulary

END = 1
# Five runs of ten, the last cut short, for validation and test in turn.
NUM_HELD_OUT = 45
WORDS = {"el": "λόγος", "de": "Größe", "zh": "世界 \u2028 你好"}


def lines_of(language, split):
    # More in one language than are tokenised at a time.
    count = NUM_HELD_OUT if split == "validation" else 1500 if language == "de" else 30
    return [f"{WORDS[language]} {split} {number * 7919 % 97}" for number in range(count)]


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)


def make_data(folder):
    for language, suffix in (("el", ".txt"), ("de", ".txt.gz"), ("zh", ".txt")):
        # Empty lines are no documents, and don't count in the runs.
        end = {"el": "\n", "de": "\r\n", "zh": "\n\n"}[language]
        for split in ("train", "validation"):
            content = end.join(["", *lines_of(language, split)]).encode()
            write(folder / language / f"{split}{suffix}", content)
    return folder


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def seqio():
    # Not when tests are collected, as it takes ten seconds.
    return pytest.importorskip("seqio")


@pytest.fixture(scope="module")
def cache_dir(seqio, data_dir, tmp_path_factory):
    """A cache that holds all tokens of the data."""
    folder = tmp_path_factory.mktemp("cache")
    text.load(data_dir=str(data_dir), cache_dir=str(folder))
    return folder


def bytes_of(lines):
    """What the byte vocabulary makes of lines: three marks come before the bytes."""
    return np.array([token for line in lines for token in (*(b + 3 for b in line.encode()), END)])


def documents(tokens):
    """Lines from tokens of the byte vocabulary."""
    *parts, rest = bytes(t - 3 if t != END else 0 for t in tokens.tolist()).split(b"\0")
    assert rest == b""
    return [part.decode() for part in parts]


@pytest.fixture
def tokenised(monkeypatch):
    """What is tokenised from here on: names of tasks and splits."""
    calls, original = [], token_cache._tokenised

    def tokenise(task, split, *rest):
        calls.append((task.name.removeprefix("ldro_text_"), split))
        return original(task, split, *rest)

    monkeypatch.setattr(token_cache, "_tokenised", tokenise)
    return calls


SPLITS = ("train", "validation", "test")


def test_tokens_are_the_lines_with_an_end_of_document_after_each(data_dir, cache_dir):
    corpus = text.load(data_dir=str(data_dir), cache_dir=str(cache_dir))
    assert corpus.task_names == ("de", "el", "zh")
    assert corpus.vocab_size == 259 and corpus.vocabulary == "c59eb882bd50696e"
    for name, tokens in zip(corpus.task_names, corpus.train, strict=True):
        np.testing.assert_array_equal(tokens, bytes_of(lines_of(name, "train")))
        # Half the size of int32, and not read before it is used.
        assert tokens.dtype == np.uint16 and isinstance(tokens, np.memmap)


def test_validation_and_test_are_dealt_the_lines_in_runs_of_ten(data_dir, cache_dir):
    corpus = text.load(data_dir=str(data_dir), cache_dir=str(cache_dir))
    for task, name in enumerate(corpus.task_names):
        lines = lines_of(name, "validation")
        validation, test = documents(corpus.validation[task]), documents(corpus.test[task])
        assert validation == lines[:10] + lines[20:30] + lines[40:]
        assert test == lines[10:20] + lines[30:40]
        assert not set(validation) & set(test)
        assert sorted(validation + test) == sorted(lines)


def test_every_line_that_is_read_is_tokenised(seqio, tmp_path):
    # What TensorFlow and Python could take for the end of a line or of a file: both read the same.
    lines = ["one\rtwo", "\x0b\x0c\x1c\x85\u2029", " ", "\ufeff", "end\x00"]
    content = "".join(f"{line}\n" for line in lines).encode()
    write(tmp_path / "a" / "train.txt", content)
    # Two archives, one behind the other, are one.
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "train.txt.gz").write_bytes(gzip.compress(content) * 2)
    for name in "ab":
        write(tmp_path / name / "validation.txt", b"line\n" * 11)
    corpus = text.load(data_dir=str(tmp_path), cache_dir=str(tmp_path / "cache"))
    read = list(text_files.read_lines(tmp_path / "a" / "train.txt"))
    assert read == [line.replace("\r", "") for line in lines]
    np.testing.assert_array_equal(corpus.train[0], bytes_of(read))
    np.testing.assert_array_equal(corpus.train[1], bytes_of(read * 2))


def test_languages_come_in_the_order_given(data_dir, cache_dir):
    corpus = text.load(data_dir=str(data_dir), languages=["zh", "de"], cache_dir=str(cache_dir))
    assert corpus.task_names == ("zh", "de") and corpus.num_tasks == 2
    for name, tokens in zip(corpus.task_names, corpus.train, strict=True):
        np.testing.assert_array_equal(tokens, bytes_of(lines_of(name, "train")))


def test_text_is_tokenised_once(data_dir, cache_dir, tokenised, tmp_path):
    before = sorted(cache_dir.iterdir())
    text.load(data_dir=str(data_dir), cache_dir=str(cache_dir))
    # Neither the directory nor the other languages matter, only the text.
    copy = make_data(tmp_path / "elsewhere")
    text.load(data_dir=str(copy), languages=["el"], cache_dir=str(cache_dir))
    assert not tokenised and sorted(cache_dir.iterdir()) == before


@pytest.mark.parametrize("split", ["train", "validation"])
def test_text_that_has_changed_is_tokenised_again(cache_dir, tokenised, tmp_path, split):
    changed = make_data(tmp_path)
    lines = [line.replace("1", "2") for line in lines_of("zh", split)]
    write(tmp_path / "zh" / f"{split}.txt", "\n".join(lines).encode())
    corpus = text.load(data_dir=str(changed), cache_dir=str(cache_dir))
    # Of that language alone.
    assert {name for name, _ in tokenised} == {"zh"} and ("zh", split) in tokenised
    found = documents(getattr(corpus, split)[2])
    assert found == (lines if split == "train" else lines[:10] + lines[20:30] + lines[40:])
    assert documents(corpus.train[0]) == lines_of("de", "train")


def test_tokens_of_another_vocabulary_are_not_taken_for_these(
    data_dir, cache_dir, tokenised, tmp_path
):
    model = vocabulary.train_sentencepiece(data_dir, tmp_path / "pieces", vocab_size=290)
    options = {"data_dir": str(data_dir), "cache_dir": str(cache_dir)}
    corpus = text.load(**options, vocabulary_path=str(model))
    assert sorted(tokenised) == sorted((n, s) for n in ("de", "el", "zh") for s in SPLITS)
    in_bytes = text.load(**options)
    assert corpus.vocabulary != in_bytes.vocabulary
    assert (corpus.vocab_size, in_bytes.vocab_size) == (290, 259)
    decode = vocabulary.load(model).decode
    for task, name in enumerate(corpus.task_names):
        tokens = np.asarray(corpus.train[task], int)
        *parts, rest = np.split(tokens, np.flatnonzero(tokens == END) + 1)
        assert [decode(part.tolist()) for part in parts] == lines_of(name, "train")
        assert not rest.size and tokens.size < in_bytes.train[task].size


def test_a_vocabulary_of_a_size_is_trained_once(seqio, data_dir, monkeypatch, tmp_path):
    options = {"data_dir": str(data_dir), "cache_dir": str(tmp_path), "vocabulary_size": 290}
    first = text.load(**options)
    assert first.vocab_size == 290
    monkeypatch.delattr(vocabulary, "train_sentencepiece")
    assert text.load(**options, languages=["zh", "el", "de"]).vocabulary == first.vocabulary
    with pytest.raises(ValueError, match="vocabulary_size must be None where vocabulary_path"):
        text.load(**options, vocabulary_path="a.model")


def test_a_full_disk_is_one_clear_error_and_leaves_nothing(seqio, data_dir, monkeypatch, tmp_path):
    def fsync(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match=r"\(No space left on device\)\. Make room, or") as raised:
        text.load(data_dir=str(data_dir), cache_dir=str(tmp_path / "cache"))
    assert str(tmp_path / "cache") in str(raised.value)
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize("damage", ["flip", "cut", "no checksum"])
def test_damaged_tokens_are_made_again(data_dir, tokenised, tmp_path, caplog, damage):
    options = {"data_dir": str(data_dir), "cache_dir": str(tmp_path)}
    expected = text.load(**options).identity
    tokenised.clear()
    (file,) = tmp_path.glob("zh-train-*.npy")
    content = file.read_bytes()
    if damage == "flip":
        file.write_bytes(content[:-5] + bytes([content[-5] ^ 4]) + content[-4:])
    elif damage == "cut":
        file.write_bytes(content[:-5])
    else:
        file.with_name(f"{file.name}.sha256").unlink()
    assert text.load(**options).identity == expected
    assert tokenised == [("zh", "train")] and file.read_bytes() == content
    assert (f"{file} is not what was written" in caplog.text) == (damage != "no checksum")


def test_a_damaged_vocabulary_is_made_again(seqio, data_dir, tmp_path, caplog):
    options = {"data_dir": str(data_dir), "cache_dir": str(tmp_path), "vocabulary_size": 290}
    expected = text.load(**options).identity
    (file,) = tmp_path.glob("vocabulary-*.model")
    content = file.read_bytes()
    file.write_bytes(content[:-5] + bytes([content[-5] ^ 4]) + content[-4:])
    assert text.load(**options).identity == expected
    assert file.read_bytes() == content and f"{file} is not what was written" in caplog.text


def test_text_that_is_not_utf8_is_an_error_with_its_place(seqio, tmp_path):
    write(tmp_path / "de" / "train.txt", "gut\nGrüße\n".encode("latin-1"))
    write(tmp_path / "de" / "validation.txt", b"line\n" * 20)
    # Of one kind, whoever reads the file.
    with pytest.raises(ValueError, match=r"UTF-8 text in .*de/train\.txt, but line 2 is not"):
        text.load(data_dir=str(tmp_path), cache_dir=str(tmp_path / "cache"))
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_file_without_text_is_an_error_that_names_the_language(seqio, tmp_path):
    for name, content in (("de", b"line\n" * 20), ("el", b"\n\n")):
        write(tmp_path / name / "train.txt", b"line\n")
        write(tmp_path / name / "validation.txt", content)
    options = {"data_dir": str(tmp_path), "cache_dir": str(tmp_path / "cache")}
    with pytest.raises(ValueError, match="el.validation.txt has no text for validation"):
        text.load(**options)
    # It is no matter to a run without it.
    assert text.load(**options, languages=["de"]).num_tasks == 1


def test_a_task_of_seqio_has_all_splits(seqio, data_dir):
    task = text.seqio_task(data_dir, "el", seqio.ByteVocabulary())
    assert sorted(task.splits) == sorted(SPLITS)
    assert task.output_features["targets"].add_eos
    # seqio cuts and shuffles as it does for any task.
    dataset = task.get_dataset({"targets": 4}, split="train", shuffle=True, seed=0)
    examples = [example["targets"].tolist() for example in dataset.as_numpy_iterator()]
    firsts = [bytes_of([line])[:4].tolist() for line in lines_of("el", "train")]
    assert sorted(examples) == sorted(firsts)


NAMED = ("sr-Latn", "sr-Cyrl", "sr.Latn", "sr_Latn", "de-x 1", "日本語")


def test_languages_may_have_any_name(seqio, tmp_path):
    for number, name in enumerate(NAMED):
        write(tmp_path / name / "train.txt", f"{name}\n".encode() * (number + 1))
        write(tmp_path / name / "validation.txt", f"{name}\n".encode() * 20)
    options = {"data_dir": str(tmp_path), "cache_dir": str(tmp_path / "cache")}
    corpus = text.load(**options, languages=("sr-Latn", "sr-Cyrl"))
    assert corpus.task_names == ("sr-Latn", "sr-Cyrl")
    for number, name in enumerate(corpus.task_names):
        assert documents(corpus.train[number]) == [name] * (number + 1)
    tasks = [text.seqio_task(tmp_path, name, seqio.ByteVocabulary()).name for name in NAMED]
    assert tasks[:2] == ["ldro_text_sr.Latn", "ldro_text_sr.Cyrl"]
    assert tasks[3] == "ldro_text_sr_Latn" and len(set(tasks)) == len(NAMED)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"languages": "sr"}, "languages must be a list of names"),
        ({"languages": ()}, "languages must be a list of names"),
        ({"languages": ("sr", "sr")}, "a list of names that all differ, but it is"),
        ({"languages": (1, 2)}, "languages must be a text in quotes, but it is 1"),
        ({"vocabulary_size": 259}, "vocabulary_size must be an integer of at least 260"),
        ({"vocabulary_size": "1000"}, "vocabulary_size must be an integer"),
        ({"vocabulary_path": 3}, "vocabulary_path must be a path in quotes, or None"),
        ({"cache_dir": ""}, "cache_dir must be a path in quotes, or None"),
    ],
)
def test_arguments_are_checked_first(no_tensorflow, options, message):
    with pytest.raises(ValueError, match=message):
        text.load(data_dir="/nowhere", **options)


def no_vocabulary(path):
    raise AssertionError("Errors in the arguments are found before TensorFlow is imported.")


@pytest.fixture
def no_tensorflow(monkeypatch):
    monkeypatch.setattr(vocabulary, "load", no_vocabulary)


def test_no_data_dir_is_an_error_that_says_what_is_expected(no_tensorflow):
    with pytest.raises(FileNotFoundError, match="--data_dir .*<language>/train.txt"):
        text.load(data_dir=None)


def test_an_unknown_language_is_an_error(no_tensorflow, data_dir, tmp_path):
    with pytest.raises(FileNotFoundError, match="no language 'fr' in .* Found: de, el, zh."):
        text.load(data_dir=str(data_dir), languages=["de", "fr"], cache_dir=str(tmp_path))


def test_a_missing_file_is_an_error_before_anything_is_done(no_tensorflow, tmp_path):
    data_dir = make_data(tmp_path / "text")
    (data_dir / "zh" / "validation.txt").unlink()
    with pytest.raises(FileNotFoundError, match="zh/validation.txt"):
        text.load(data_dir=str(data_dir), cache_dir=str(tmp_path / "cache"))
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("given", [True, False])
def test_tokens_are_kept_where_caches_are(monkeypatch, tmp_path, given):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches") if given else "")
    folder = token_cache.folder(None)
    assert folder == tmp_path / ("caches" if given else ".cache") / "ldro_jax" / "tokens"
    assert folder.is_dir() and token_cache.folder("~/own") == tmp_path / "own"

import gzip
import io
import os
import pathlib
import random
import subprocess
import sys
import types

import pytest

from ldro_jax.tasks import vocabulary

sentencepiece = pytest.importorskip("sentencepiece")

ALPHABETS = {
    "am": "ሀሁለመሰረቀበተነአከ",
    "de": "abcdefghäöüß",
    "el": "αβγδεζηθικλμ",
    "zh": "的一是不了人我在有他这中",
}
VOCAB_SIZE = 340


def text(language, num_lines, seed=0):
    """Lines of words that a language uses again and again."""
    rng = random.Random(f"{language} {seed}")
    words = ["".join(rng.choices(ALPHABETS[language], k=rng.randint(2, 5))) for _ in range(25)]
    return [" ".join(rng.choices(words, k=rng.randint(1, 6))) for _ in range(num_lines)]


def write(folder, lines):
    folder.mkdir(parents=True, exist_ok=True)
    for split, part in (("train", lines), ("validation", lines[-20:])):
        (folder / f"{split}.txt").write_text("".join(f"{line}\n" for line in part), "utf-8")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    for language in ALPHABETS:
        write(folder / language, text(language, 120))
    return folder


@pytest.fixture(scope="module")
def model(data_dir, tmp_path_factory):
    output = tmp_path_factory.mktemp("model") / "tiny"
    return vocabulary.train_sentencepiece(data_dir, output, vocab_size=VOCAB_SIZE)


@pytest.fixture(scope="module")
def processor(model):
    return sentencepiece.SentencePieceProcessor(model_file=str(model))


@pytest.fixture
def trained_on(monkeypatch):
    """What SentencePiece would have been given; it is not run."""
    calls = []

    def train(*, sentence_iterator, model_writer, **options):
        calls.append((list(sentence_iterator), options))
        model_writer.write(b"a model")

    monkeypatch.setattr(sentencepiece.SentencePieceTrainer, "train", train)
    return calls


def test_marks_are_where_t5_has_them(processor):
    assert processor.get_piece_size() == VOCAB_SIZE
    assert (processor.pad_id(), processor.eos_id(), processor.unk_id()) == (0, 1, 2)
    assert processor.bos_id() == -1


@pytest.mark.parametrize("language", ALPHABETS)
def test_text_of_every_language_survives_in_fewer_tokens(processor, language):
    # Other words than those trained on, of the same characters.
    for lines in (text(language, 30), text(language, 30, seed=1)):
        encoded = processor.encode(lines)
        assert processor.decode(encoded) == lines
    ids = processor.encode(text(language, 120))
    assert not any(processor.is_byte(i) for line in ids for i in line)


@pytest.mark.parametrize(
    "line",
    [
        "",
        " ",
        "  two  spaces  everywhere  ",
        "a tab\tand a\x01control",
        "unseen: ꙮ 😀👩‍🔬 Ж",
        "composed é, decomposed e\u0301, ligature ﬁ, half ½, wide Ａ",
        "marks </s> <pad> <unk> <0x41> ⁇",
        "\ufeff\u200b\u2028\ufffd",
    ],
)
def test_what_was_never_seen_survives(processor, line):
    ids = processor.encode(line)
    assert processor.decode(ids) == line
    assert not {0, 1, 2} & set(ids)


def test_the_same_text_gives_the_same_file(data_dir, model, tmp_path):
    again = vocabulary.train_sentencepiece(
        str(data_dir), str(tmp_path / "again"), vocab_size=VOCAB_SIZE, languages=[*ALPHABETS][::-1]
    )
    assert again.read_bytes() == model.read_bytes()


def test_the_seed_chooses_the_lines(data_dir):
    taken = [
        vocabulary.sample_lines(data_dir, "de", max_bytes=500, seed=seed) for seed in (0, 0, 1)
    ]
    assert taken[0] == taken[1] != taken[2]


def test_languages_choose_apart(tmp_path):
    # The same file under two names: the seed must not give both the same lines.
    for name in ("de", "other"):
        write(tmp_path / name, text("de", 120))
    one, other = (
        vocabulary.sample_lines(tmp_path, n, max_bytes=500, seed=0) for n in ("de", "other")
    )
    assert one != other


def test_no_language_gets_more_than_its_share(tmp_path, trained_on):
    small, large = text("el", 40), text("de", 2000)
    limit = 2 * sum(len(line.encode()) for line in small)
    write(tmp_path / "el", small)
    vocabulary.train_sentencepiece(tmp_path, tmp_path / "alone", bytes_per_language=limit)
    write(tmp_path / "de", large)
    vocabulary.train_sentencepiece(tmp_path, tmp_path / "both", bytes_per_language=limit)
    (alone, _), (both, options) = trained_on
    # The small language is taken whole, and once, with or without the other.
    assert sorted(alone) == sorted(small)
    assert [line for line in both if line in set(small)] == alone
    rest = [line for line in both if line not in set(small)]
    assert set(rest) <= set(large)
    # Full up to less than the shortest line, which would still have fitted.
    size = sum(len(line.encode()) for line in rest)
    assert limit - min(len(line.encode()) for line in large) < size <= limit
    # SentencePiece takes all that it is given.
    assert options["input_sentence_size"] == 0
    assert options["max_sentence_length"] == max(len(line.encode()) for line in both)


def test_lines_are_not_taken_twice(tmp_path):
    lines = [f"line {i}" for i in range(300)]
    write(tmp_path / "de", lines)
    taken = vocabulary.sample_lines(tmp_path, "de", max_bytes=1000, seed=3)
    assert len(set(taken)) == len(taken) and set(taken) < set(lines)
    whole = vocabulary.sample_lines(tmp_path, "de", max_bytes=10**6, seed=3)
    assert sorted(whole) == sorted(lines)


def test_a_language_named_twice_counts_once(data_dir, tmp_path, trained_on):
    for names in (["de", "el"], ["el", "de", "el"]):
        vocabulary.train_sentencepiece(data_dir, tmp_path / "m", languages=names)
    assert trained_on[0] == trained_on[1]


def test_long_lines_are_trained_on(tmp_path):
    # SentencePiece's own limit is 4,192 bytes; it would find no text here.
    write(tmp_path / "de", [" ".join(text("de", 2000))])
    path = vocabulary.train_sentencepiece(tmp_path, tmp_path / "long", vocab_size=286)
    trained = sentencepiece.SentencePieceProcessor(model_file=str(path))
    assert len(trained.encode(text("de", 1)[0], out_type=str)) < len(text("de", 1)[0])


def test_tokens_per_byte_are_those_of_the_validation_lines(tmp_path, model, processor):
    for language in ("de", "zh"):
        write(tmp_path / language, text(language, 30))
    lines = text("zh", 30)[-20:]
    expected = sum(len(processor.encode(line)) for line in lines)
    expected /= len("".join(lines).encode())
    measured = vocabulary.tokens_per_byte(model, tmp_path, ["zh", "de"])
    assert list(measured) == ["zh", "de"]
    assert measured["zh"] == expected < 0.5
    (tmp_path / "zh/validation.txt").write_text("")
    ratio = vocabulary.tokens_per_byte(model, tmp_path, ["zh"])["zh"]
    assert ratio != ratio


@pytest.mark.parametrize(
    ("output", "name"),
    [("a", "a.model"), ("a.model", "a.model"), ("v1.5", "v1.5.model"), ("new/er/a", "a.model")],
)
def test_the_model_is_written_where_asked(data_dir, tmp_path, trained_on, output, name):
    path = vocabulary.train_sentencepiece(data_dir, tmp_path / output)
    assert path == (tmp_path / output).parent / name
    assert path.read_bytes() == b"a model"
    # Nothing beside it.
    assert os.listdir(path.parent) == [name]
    assert len(trained_on) == 1


@pytest.mark.parametrize("step", ["train", "replace"])
def test_a_failure_leaves_the_old_model_and_nothing_else(data_dir, tmp_path, monkeypatch, step):
    old = tmp_path / "a.model"
    old.write_bytes(b"old")

    def fail(*args, **options):
        raise KeyboardInterrupt

    owner = sentencepiece.SentencePieceTrainer if step == "train" else os
    monkeypatch.setattr(owner, step, fail)
    with pytest.raises(KeyboardInterrupt):
        vocabulary.train_sentencepiece(data_dir, old, vocab_size=VOCAB_SIZE)
    assert os.listdir(tmp_path) == ["a.model"] and old.read_bytes() == b"old"


def spoiled(tmp_path, what):
    """A directory of text with one thing wrong."""
    folder = tmp_path / "text"
    if what == "missing":
        return folder
    write(folder / "de", text("de", 30))
    train = folder / "de/train.txt"
    if what in ("no language", "no train file"):
        train.unlink()
    if what == "empty":
        train.write_text("\n\n")
    if what == "not UTF-8":
        train.write_bytes("gut\nGröße\n".encode("latin-1"))
    if what == "not gzip":
        train.rename(train.with_suffix(".txt.gz"))
    if what in ("no train file", "unknown"):
        write(folder / "el", text("el", 30))
    return folder


@pytest.mark.parametrize(
    ("what", "languages", "error", "message"),
    [
        ("missing", None, FileNotFoundError, "no directory .*text"),
        ("no language", None, FileNotFoundError, "no language in .*text"),
        ("no train file", ["de", "el"], FileNotFoundError, "Expected .*de/train.txt"),
        ("unknown", ["de", "xx"], FileNotFoundError, "no language 'xx' .*Found: de, el"),
        ("empty", None, ValueError, r"none of its 0 lines is"),
        ("not UTF-8", None, ValueError, r"UTF-8 .*de/train.txt, but line 2"),
        ("not gzip", None, ValueError, r"gzip .*de/train.txt.gz"),
    ],
)
def test_text_that_can_not_be_used_is_explained(tmp_path, what, languages, error, message):
    folder = spoiled(tmp_path, what)
    with pytest.raises(error, match=message):
        vocabulary.train_sentencepiece(folder, tmp_path / "a", languages=languages)
    assert not list(tmp_path.glob("*.model"))


def test_a_share_without_a_line_is_an_error(data_dir, tmp_path):
    with pytest.raises(ValueError, match=r"at most 1 bytes in .*train.txt, but none of its 120"):
        vocabulary.train_sentencepiece(data_dir, tmp_path / "a", bytes_per_language=1)


def test_the_largest_vocabulary_is_told(data_dir, tmp_path):
    with pytest.raises(ValueError, match="vocab_size is 32000, but .* at most ([0-9]+)") as caught:
        vocabulary.train_sentencepiece(data_dir, tmp_path / "a")
    assert "\n" not in str(caught.value) and ".cc" not in str(caught.value)
    largest = int(str(caught.value).split("Choose ")[1].split()[0])
    path = vocabulary.train_sentencepiece(data_dir, tmp_path / "a", vocab_size=largest)
    assert sentencepiece.SentencePieceProcessor(model_file=str(path)).vocab_size() == largest


def test_too_small_a_vocabulary_is_explained(data_dir, tmp_path):
    # Four alphabets of 12, the space, and 259 that every model has.
    with pytest.raises(ValueError, match="vocab_size is 300, but .* are 308 pieces already"):
        vocabulary.train_sentencepiece(data_dir, tmp_path / "a", vocab_size=300)
    for size in (259, 0, -1):
        with pytest.raises(ValueError, match=f"integer of at least 260, but it is {size}"):
            vocabulary.train_sentencepiece(data_dir, tmp_path / "a", vocab_size=size)


def test_other_failures_keep_their_message(data_dir, tmp_path, monkeypatch):
    def train(**options):
        raise RuntimeError("INTERNAL: something new")

    monkeypatch.setattr(sentencepiece.SentencePieceTrainer, "train", train)
    with pytest.raises(ValueError, match="can't train on this text: INTERNAL: something new"):
        vocabulary.train_sentencepiece(data_dir, tmp_path / "a")


def test_an_output_that_can_not_be_written_is_found_before_training(
    data_dir, tmp_path, monkeypatch, trained_on
):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.model").mkdir()
    with pytest.raises(OSError, match=r"can't be written to .*file/a.model \(.*\)\. Choose"):
        vocabulary.train_sentencepiece(data_dir, tmp_path / "file/a")
    with pytest.raises(IsADirectoryError, match="folder.model is a directory"):
        vocabulary.train_sentencepiece(data_dir, tmp_path / "folder")

    # Root may write anywhere, so the refusal is played.
    def refuse(**options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(vocabulary.tempfile, "TemporaryFile", refuse)
    with pytest.raises(OSError, match=r"a.model \(Permission denied\)\. Choose another"):
        vocabulary.train_sentencepiece(data_dir, tmp_path / "a")
    assert not trained_on


@pytest.mark.parametrize("missing", ["seqio", "sentencepiece"])
def test_what_to_install_is_said(monkeypatch, model, missing, tmp_path):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=rf"need {missing} .*pip install 'ldro-jax\[lm\]'"):
        vocabulary.load(model)
    if missing == "seqio":
        # Training needs no TensorFlow.
        with pytest.raises(ImportError, match="seqio"):
            vocabulary.load(None)
    else:
        with pytest.raises(ImportError, match="sentencepiece"):
            vocabulary.train_sentencepiece(tmp_path, tmp_path / "a")


def corrupt(content, how):
    return {
        "empty": b"",
        "text": b"<pad>\t0\n</s>\t0\n<unk>\t0\n" * 20,
        "cut off": content[: len(content) // 2],
        "packed": gzip.compress(content),
        "zeros": bytes(1000),
        "a byte piece that is not UTF-8": content.replace(b"<0x41>", b"<0x\xff1>"),
    }[how]


@pytest.mark.parametrize(
    "how",
    ["empty", "text", "cut off", "packed", "zeros", "a byte piece that is not UTF-8"],
)
def test_a_file_that_is_no_model_is_explained(model, tmp_path, how):
    path = tmp_path / "bad.model"
    path.write_bytes(corrupt(model.read_bytes(), how))
    expected = f"Expected a SentencePiece model in .*bad.model, but its {path.stat().st_size} bytes"
    with pytest.raises(ValueError, match=expected) as caught:
        vocabulary.load(path)
    assert "Copy it again" in str(caught.value) and ".cc" not in str(caught.value)


def test_a_missing_model_is_explained(tmp_path):
    for path in (tmp_path / "a.model", tmp_path):
        with pytest.raises(FileNotFoundError, match="no SentencePiece model .*Train one"):
            vocabulary.load(str(path))


@pytest.mark.parametrize(
    ("marks", "found"),
    [
        ({"pad_id": -1, "bos_id": 1, "eos_id": 2, "unk_id": 0}, "pad_id=-1 and eos_id=2"),
        ({"pad_id": 3}, "pad_id=3 and eos_id=2"),
        ({"pad_id": 0, "bos_id": -1, "eos_id": -1, "unk_id": 1}, "pad_id=0 and eos_id=-1"),
    ],
)
def test_a_model_without_the_marks_is_refused(tmp_path, marks, found):
    writer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text("de", 100)),
        model_writer=writer,
        vocab_size=40,
        minloglevel=1,
        **marks,
    )
    path = tmp_path / "other.model"
    path.write_bytes(writer.getvalue())
    with pytest.raises(ValueError, match=f"Expected .*pad_id=0 and an eos_id, but .*has {found}"):
        vocabulary.load(path)


def test_seqio_reads_the_model(model, processor):
    pytest.importorskip("seqio")
    loaded = vocabulary.load(model)
    assert (loaded.pad_id, loaded.eos_id, loaded.unk_id) == (0, 1, 2)
    assert loaded.vocab_size == VOCAB_SIZE
    for line in [*text("am", 5), *text("zh", 5), "unseen ꙮ,  two spaces"]:
        ids = loaded.encode(line)
        assert ids == processor.encode(line)
        # What the trainer's pipeline uses is another implementation.
        assert loaded.encode_tf(line).numpy().tolist() == ids
        assert loaded.decode([*ids, 1, 0, 0]) == line


def test_bytes_are_the_default():
    pytest.importorskip("seqio")
    loaded = vocabulary.load(None)
    assert loaded.vocab_size == 259 and loaded.eos_id == 1 and loaded.pad_id == 0
    assert loaded.encode("aß") == [3 + byte for byte in "aß".encode()]


def test_fingerprints_tell_vocabularies_apart(data_dir, model, tmp_path):
    seqio = pytest.importorskip("seqio")
    copy = tmp_path / "copy.model"
    copy.write_bytes(model.read_bytes())
    other = vocabulary.train_sentencepiece(data_dir, tmp_path / "b", vocab_size=VOCAB_SIZE + 1)
    prints = [vocabulary.fingerprint(vocabulary.load(path)) for path in (model, copy, other, None)]
    assert prints[0] == prints[1]
    extra = [
        vocabulary.fingerprint(seqio.ByteVocabulary(extra_ids=10)),
        vocabulary.fingerprint(seqio.SentencePieceVocabulary(str(model), extra_ids=10)),
    ]
    assert len({*prints, *extra}) == 5
    assert all(len(p) == 16 and int(p, 16) >= 0 for p in prints)
    # Checkpoints hold it: it must be the same in the next release.
    assert prints[3] == vocabulary.fingerprint(seqio.ByteVocabulary()) == "c59eb882bd50696e"
    with pytest.raises(TypeError, match="found a SimpleNamespace"):
        vocabulary.fingerprint(types.SimpleNamespace())


SCRIPT = pathlib.Path(__file__).parents[2] / "scripts/train_sentencepiece.py"


def run_script(*arguments):
    path = os.pathsep.join(entry for entry in sys.path if entry)
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )


def test_the_script_trains_and_measures(data_dir, model, tmp_path):
    output = f"--output={tmp_path}/tiny"
    done = run_script(f"--data_dir={data_dir}", output, f"--vocab_size={VOCAB_SIZE}")
    assert done.returncode == 0, done.stderr
    path = tmp_path / "tiny.model"
    # In another process, too, the model is the same.
    assert path.read_bytes() == model.read_bytes()
    assert f"{path}: 340 ids, {path.stat().st_size} bytes" in done.stdout
    ratios = vocabulary.tokens_per_byte(model, data_dir, list(ALPHABETS))
    for language, ratio in ratios.items():
        assert f"{language} {ratio:.3f}\n" in done.stdout


def test_the_script_looks_for_all_files_before_it_trains(tmp_path):
    for language in ("de", "el"):
        write(tmp_path / language, text(language, 30))
    (tmp_path / "el/validation.txt").unlink()
    done = run_script(f"--data_dir={tmp_path}", f"--output={tmp_path}/tiny")
    assert done.returncode == 1 and "Training" not in done.stdout
    assert done.stderr.startswith("Error: Expected ") and "el/validation.txt" in done.stderr
    assert "Traceback" not in done.stderr

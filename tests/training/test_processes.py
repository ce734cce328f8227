"""Several processes: they find each other, train as one would, and write everything once."""

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
import types

import jax
import numpy as np
import optax
import pytest
from helpers import tiny, tiny_lm

from ldro_jax import configuration
from ldro_jax.experiments import compare
from ldro_jax.records import results
from ldro_jax.runtime import processes
from ldro_jax.training import progress as progress_lib
from ldro_jax.training.batches import Batches
from ldro_jax.training.meshed import MeshedProgram
from ldro_jax.training.stacked import StackedProgram

_ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def initialized(monkeypatch):
    """What jax.distributed.initialize is called with."""
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **given: calls.append(given))
    for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
        monkeypatch.delenv(name, raising=False)
    return calls


def test_a_cluster_that_jax_knows_needs_no_variables(initialized):
    processes.join()
    assert initialized == [{"num_processes": None, "process_id": None}]


def test_elsewhere_variables_say_who_is_who(initialized, monkeypatch):
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    monkeypatch.setenv("JAX_PROCESS_ID", "0")
    processes.join()
    assert initialized == [{"num_processes": 2, "process_id": 0}]
    monkeypatch.setenv("JAX_PROCESS_ID", "first")
    with pytest.raises(ValueError, match=r"aren't known \(JAX_PROCESS_ID is 'first', not a number"):
        processes.join()


def test_without_variables_or_a_cluster_the_error_names_them(run_python):
    said = run_python(
        "from ldro_jax.runtime import processes\n"
        "try:\n    processes.join()\nexcept ValueError as error:\n    print(error)",
        JAX_COORDINATOR_ADDRESS=None,
        JAX_NUM_PROCESSES=None,
        JAX_PROCESS_ID=None,
    )
    for name in ("JAX_COORDINATOR_ADDRESS=HOST:PORT", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
        assert name in said


def test_one_process_is_the_first_and_waits_for_nobody():
    assert processes.is_first() and processes.all_agree(True) and not processes.all_agree(False)
    processes.wait_for_all("nobody")


def test_rows_that_fit_on_a_device_come_from_the_host_of_each_process(monkeypatch):
    make = lambda: compare.make_program(  # noqa: E731
        tiny.problem(), optax.sgd(0.1), Batches(24), tiny.AVERAGE
    )
    assert isinstance(make(), StackedProgram)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert isinstance(make(), MeshedProgram)


class Place(tiny_lm.Counted):
    """A stream that saves a file of its own for each process."""

    name = "0"

    def save(self, directory):
        (directory / self.name).write_text(directory.name)


class Session:
    """What of a session goes into a checkpoint."""

    states, identity = {"x": np.zeros(2, np.float32)}, {}

    def __init__(self, source):
        self.source, self.step = source, 0

    def record(self):
        return {}


def save_at(saved, session, steps):
    now = progress_lib.Progress([], [])
    for step in steps:
        session.step = step
        saved.save(session, now)


def test_every_process_saves_its_part_of_a_stream(tmp_path, monkeypatch):
    source, waited = Place([], 8, 0), []
    monkeypatch.setattr(processes, "wait_for_all", waited.append)
    session = Session(source)
    saved = progress_lib.Saved(tmp_path, {})
    saved.checkpoints.close()
    # Checkpoints are another matter, and nothing is saved by a second process here.
    saved.checkpoints = types.SimpleNamespace(steps=(10, 20, 30, 40), save=lambda *_, **__: None)
    for step in (10, 20, 30, 20, 40):
        for name in ("0", "1"):
            source.name = name
            monkeypatch.setattr(processes, "is_first", lambda name=name: name == "0")
            save_at(saved, session, [step])
    files = {str(f.relative_to(tmp_path / "stream")) for f in (tmp_path / "stream").glob("*/*")}
    assert files == {f"{step}/{name}" for step in (10, 20, 30, 40) for name in ("0", "1")}
    assert waited == ["stream", "stream saved"] * 10


def test_places_stay_with_their_checkpoints(tmp_path):
    saved = progress_lib.Saved(tmp_path, {})
    with contextlib.closing(saved.checkpoints):
        save_at(saved, Session(Place([], 8, 0)), (10, 30, 40, 50))
    kept = {path.name for path in tmp_path.glob("[0-9]*")}
    assert kept == {"40", "50"}
    # One more at most: a checkpoint that goes when the next one is written.
    places = {path.name for path in (tmp_path / "stream").iterdir()}
    assert kept <= places <= kept | {"30"}


_BINDINGS = [
    "TRAIN_STEPS=20",
    "WARMUP_STEPS=1",
    "EVAL_INTERVAL=10",
    *tiny_lm.BINDINGS,
    "Layout.model=2",
    "Layout.fully_sharded=True",
    "text.load.languages=None",
    "text.load.vocabulary_size=None",
    "compare.methods=[@ldro/Method()]",
    "language_model.max_test_tokens=200",
    "language_model.max_validation_tokens=100",
    "alone/Batches.size=8",
]
_RUN = "L-DRO-seed0"


@pytest.fixture
def text_dir(tmp_path):
    rng = np.random.default_rng(0)
    for language, words in {"aa": "alpha beta gamma", "bb": "uno dos tres cuatro"}.items():
        (tmp_path / "text" / language).mkdir(parents=True)
        for split, count in (("train", 60), ("validation", 40)):
            lines = [" ".join(rng.choice(words.split(), 5)) + "\n" for _ in range(count)]
            (tmp_path / "text" / language / f"{split}.txt").write_text("".join(lines))
    return tmp_path / "text"


class Command:
    """The command line in processes of their own; what each says goes to a file."""

    def __init__(self, experiment, bindings, folder, *, data_dir=None):
        self._command = ["-m", "ldro_jax.main"]
        self._arguments = [f"--gin_file=gin_configs/experiments/{experiment}.gin"]
        self._arguments += configuration.rewrite_gin_flags([f"--gin.{b}" for b in bindings])
        self._arguments += [] if data_dir is None else [f"--data_dir={data_dir}"]
        self._folder, self._count = folder, 0

    def start(self, output_dir, number):
        """Starts so many processes, with eight devices in all."""
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        variables = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "JAX_COORDINATOR_ADDRESS": address,
            "JAX_NUM_PROCESSES": str(number),
            "PYTHONPATH": os.pathsep.join([str(_ROOT), str(_ROOT / "tests")]),
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "XDG_CACHE_HOME": str(self._folder / "cache"),
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={8 // number}",
        }
        command = [sys.executable, *self._command, *self._arguments]
        command += [f"--output_dir={output_dir}"]
        command += ["--distributed"] if number > 1 else []
        self._count += 1
        self.outputs = [self._folder / f"{self._count}.{i}.log" for i in range(number)]
        started = []
        for i, output in enumerate(self.outputs):
            with output.open("wb") as file:
                started.append(
                    subprocess.Popen(
                        command,
                        cwd=_ROOT,
                        env=variables | {"JAX_PROCESS_ID": str(i)},
                        stdout=file,
                        stderr=subprocess.STDOUT,
                    )
                )
        return started

    def said(self):
        return [output.read_text(errors="replace") for output in self.outputs]

    def end(self, started, expected):
        try:
            statuses = [process.wait(timeout=600) for process in started]
            assert statuses == [expected] * len(started), [text[-3000:] for text in self.said()]
        finally:
            for process in started:
                process.kill()
                process.wait()


def values(output_dir):
    (run,) = results.load_results(output_dir / "results.json").runs
    series = {name: getattr(run, name).values for name in ("losses", "weights", "interaction")}
    series["evaluations"] = [list(e.per_task.values()) for e in run.evaluations]
    return series


@pytest.mark.heavy
def test_two_processes_train_as_one_does(text_dir, tmp_path):
    pytest.importorskip("seqio")
    command = Command("multilingual_lm_small", _BINDINGS, tmp_path, data_dir=text_dir)
    alone, together = tmp_path / "alone", tmp_path / "together"
    command.end(command.start(alone, 1), 0)

    # While a run starts, one is asked to stop, as a machine that is taken away is. Both do.
    started = command.start(together, 2)
    latest = together / "checkpoints" / _RUN
    deadline = time.monotonic() + 600
    while not latest.is_dir() and time.monotonic() < deadline:
        assert all(process.poll() is None for process in started), command.said()
        time.sleep(0.05)
    started[1].send_signal(signal.SIGTERM)
    command.end(started, 143)
    assert all("stopped, saved at step" in text for text in command.said())
    assert not (together / "results.json").exists()
    command.end(command.start(together, 2), 0)
    assert all("resumed at step" in text for text in command.said())
    same(alone, together)
    # The first process alone writes records, the report, and the events of each start.
    assert ["Everything is in" in text for text in command.said()] == [True, False]
    events = [len(list((f / "tensorboard" / _RUN).iterdir())) for f in (alone, together)]
    assert events[1] == 2 * events[0]
    assert {path.name for path in alone.iterdir()} == {path.name for path in together.iterdir()}

    # The record and the newest checkpoint are lost; the checkpoint before it serves.
    (together / "results.json").unlink()
    (together / "runs" / f"{_RUN}.json").unlink()
    (latest / "20" / "record" / "metadata").write_text("damaged")
    command.end(command.start(together, 2), 0)
    assert all("resumed at step 10" in text for text in command.said())
    assert (latest / "unreadable-20").is_dir() and (latest / "20").is_dir()
    same(alone, together)


@pytest.mark.heavy
def test_two_processes_train_images_as_one_does(tmp_path):
    bindings = [
        "TRAIN_STEPS=20",
        "SEEDS=(0,)",
        "Schedule.eval_interval=10",
        "compare.methods=[@ldro/Method()]",
        *("Batches.layout=@Layout()", "Batches.runs_together=1"),
    ]
    command = Command("digits", bindings, tmp_path)
    folders = [tmp_path / "alone", tmp_path / "together"]
    for number, folder in enumerate(folders, 1):
        command.end(command.start(folder, number), 0)
    expected, found = map(values, folders)
    for name, numbers in expected.items():
        np.testing.assert_allclose(found[name], numbers, rtol=1e-4, err_msg=name)


class Kind(Command):
    """One of the problems of `faults.kinds` on all devices."""

    def __init__(self, name, folder):
        self._command, self._arguments = ["-c", _KIND], [name]
        self._folder, self._count = folder, 0


_KIND = """
import sys
from ldro_jax.runtime import processes
if "--distributed" in sys.argv:
    processes.join()
from faults import kinds
from ldro_jax.sharding import Layout
name, output_dir = sys.argv[1], sys.argv[2].removeprefix("--output_dir=")
kinds.run(name, output_dir, Layout())
"""


@pytest.mark.heavy
@pytest.mark.parametrize("name", ["linen", "nnx"])
def test_two_processes_normalise_and_drop_as_one_does(name, tmp_path):
    """Missing labels, the statistics of a whole batch, and one mask of dropout over it."""
    command = Kind(name, tmp_path)
    folders = [tmp_path / "alone", tmp_path / "together"]
    for number, folder in enumerate(folders, 1):
        command.end(command.start(folder, number), 0)
    expected, found = map(values, folders)
    for measured, numbers in expected.items():
        np.testing.assert_allclose(found[measured], numbers, rtol=1e-4, atol=1e-6, err_msg=measured)


def same(alone, together):
    """The records are those of the same runs."""
    # Sums of float32 in another order.
    expected, found = values(alone), values(together)
    assert expected.keys() == found.keys()
    for name, numbers in expected.items():
        np.testing.assert_allclose(found[name], numbers, rtol=1e-4, err_msg=name)
    references = [
        json.loads((folder / "monolingual" / "references.json").read_text())["losses"]
        for folder in (alone, together)
    ]
    for split, losses in references[0].items():
        assert references[1][split] == pytest.approx(losses, rel=1e-4)

"""How the tests run ``python -m t5x.main`` from gin files, on 8 fake devices."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np
import orbax.checkpoint as ocp

ROOT = pathlib.Path(__file__).parents[2]
SECONDS = 600


def write_text(folder, languages):
    """Languages of random letters, each with more letters than the last."""
    rng = np.random.default_rng(0)
    for number, language in enumerate(languages):
        (folder / language).mkdir()
        letters = np.array(list("abcdefghijklmnopqrstuvwx"[: 3 * (number + 1)]))
        for split, lines in [("train", 400), ("validation", 200)]:
            text = "\n".join("".join(line) for line in rng.choice(letters, (lines, 60)))
            (folder / language / f"{split}.txt").write_text(text + "\n")
    return folder


def start(mode, file, *bindings, gin_files=(), output, cwd=ROOT, path=(), host=None):
    """Begins a run; a gin file is a path, or the name of one of ``gin_configs/t5x``.

    The devices may be those of several processes: ``host`` is the index of this one, their number,
    and a port.
    """
    command, devices = ["t5x.main", f"--run_mode={mode}"], 8
    if host is not None:
        index, count, port = host
        command, devices = ["t5x.train", "--multiprocess_gpu"], devices // count
        command += [f"--coordinator_address=127.0.0.1:{port}", f"--process_count={count}"]
        command += [f"--process_index={index}"]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([*map(str, path), *(entry for entry in sys.path if entry)]),
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
        # With few threads simulated devices may wait for each other forever.
        "PJRT_NPROC": "64",
    }
    names = [str(name) for name in (file, *gin_files)]
    files = [name if name.endswith(".gin") else f"gin_configs/t5x/{name}.gin" for name in names]
    return subprocess.Popen(
        [
            *(sys.executable, "-m", *command),
            *(f"--gin_file={name}" for name in files),
            *bindings,
        ],
        cwd=cwd,
        env=environment,
        # T5X writes more than a pipe that nobody reads would hold.
        stdout=output,
        stderr=subprocess.STDOUT,
    )


def run(*args, fails=False, **options):
    """Runs to the end; what was written."""
    with tempfile.TemporaryFile("w+") as output:
        process = start(*args, **options, output=output)
        process.wait(SECONDS)
        output.seek(0)
        written = output.read()
    assert (process.returncode != 0) == fails, written[-4000:]
    return written


def killed(arguments, model_dir, step, **options):
    """Runs until a checkpoint is whole, and is killed, most often before its evaluation is over."""
    process = start(*arguments, **options, output=subprocess.DEVNULL)
    began = time.monotonic()
    while not (model_dir / f"checkpoint_{step}" / "commit_success.txt").exists():
        assert process.poll() is None and time.monotonic() - began < SECONDS
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()


def killed_and_resumed(arguments, model_dir, **options):
    """Runs until checkpoint 10 is whole, is killed, and goes on to checkpoint 20."""
    killed(arguments, model_dir, 10, **options)
    shutil.rmtree(model_dir / "checkpoint_20", ignore_errors=True)
    run(*arguments, **options)


def restored(model_dir, step):
    folder = pathlib.Path(model_dir).absolute() / f"checkpoint_{step}" / "state"
    return ocp.PyTreeCheckpointer().restore(folder)


def assert_equal(found, expected):
    def check(x, y):
        np.testing.assert_array_equal(x, y)
        assert np.asarray(x).dtype == np.asarray(y).dtype

    jax.tree.map(check, found, expected)

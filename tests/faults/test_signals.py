"""Ctrl-C and SIGTERM, sent to the command line from its first moments on."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest
from faults import harness

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(sys.platform == "win32", reason="needs signals"),
]

_MOMENTS = {
    signal.SIGINT: [0.0, 0.3, 1.2],
    signal.SIGTERM: [0.0, 0.3, 1.2],
    getattr(signal, "SIGHUP", signal.SIGTERM): [0.3],
}
# Long enough to be stopped in the middle.
LONG = [
    *harness.DIGITS,
    "--gin.TRAIN_STEPS=40",
    "--gin.compare.methods=[@ldro/Method()]",
]


def start(args, output_dir):
    return subprocess.Popen(
        [sys.executable, "-m", "ldro_jax.main", *args, f"--output_dir={output_dir}"],
        cwd=harness.ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def begins(process):
    """Waits until Python runs the first lines of the program, which handle SIGTERM."""
    status = pathlib.Path(f"/proc/{process.pid}/status")
    if not status.exists():  # not on Linux
        time.sleep(1)
        return
    while process.poll() is None:
        (caught,) = re.findall(r"SigCgt:\s*([0-9a-f]+)", status.read_text()) or ["0"]
        if int(caught, 16) >> (signal.SIGTERM - 1) & 1:
            return
        time.sleep(0.005)


def interrupted_after(seconds, number, output_dir):
    """Nothing, or what went wrong when a signal came so many seconds after the first line."""
    process = start(LONG, output_dir)
    begins(process)
    time.sleep(seconds)
    process.send_signal(number)
    try:
        _, said = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        process.kill()
        return f"{number!r} after {seconds} s was swallowed: {process.communicate()[1][-300:]}"
    done = (output_dir / "results.json").exists()
    # Python takes its handlers away when it ends.
    if process.returncode not in ((0, -number, 128 + number) if done else (128 + number,)):
        return f"{number!r} after {seconds} s: exit status {process.returncode}: {said[-300:]}"
    if "Traceback" in said:
        return f"{number!r} after {seconds} s: {said[-300:]}"
    return None


@pytest.mark.parametrize("number", _MOMENTS, ids=lambda number: number.name)
def test_a_signal_while_everything_is_imported_ends_the_process(number, tmp_path, survived):
    moments = _MOMENTS[number]
    problems = [interrupted_after(s, number, tmp_path / str(s)) for s in moments]
    survived(f"{number.name} at the start", problems)


@pytest.mark.heavy
@pytest.mark.parametrize("number", _MOMENTS, ids=lambda number: number.name)
def test_a_signal_at_any_moment_ends_the_process(number, tmp_path, survived):
    moments = [0.35 * n for n in range(40)]
    problems = [interrupted_after(s, number, tmp_path / f"{s:.2f}") for s in moments]
    survived(f"{number.name} at any moment", problems)


@pytest.mark.heavy
def test_sigterm_saves_an_experiment_on_images_and_ctrl_c_ends_it_at_once(tmp_path):
    checkpoints = tmp_path / "o" / "checkpoints" / "L-DRO-seed0"
    whole = start(LONG, tmp_path / "whole")
    try:
        for number, saved in (
            (signal.SIGTERM, "L-DRO, seed 0: stopped, saved at step "),
            (2, None),
        ):
            process, before = start(LONG, tmp_path / "o"), _newest(checkpoints)
            deadline = time.monotonic() + 120
            while _newest(checkpoints) <= before and process.poll() is None:
                assert time.monotonic() < deadline, "no checkpoint came"
                time.sleep(0.01)
            process.send_signal(number)
            _, said = process.communicate(timeout=120)
            assert process.returncode == 128 + number, said
            last = said.strip().splitlines()[-1]
            if saved:
                assert last.startswith(saved) and f"{_newest(checkpoints)}. The same comm" in last
            else:
                assert last.startswith(
                    f"Interrupted. What is in {tmp_path / 'o'} is kept; the same"
                )
        again = start(LONG, tmp_path / "o")
        said = "".join(again.communicate(timeout=240))
        assert again.returncode == 0 and "resumed at step" in said, said
        _, said = whole.communicate(timeout=240)
        assert whole.returncode == 0, said
    finally:
        whole.kill()
    assert harness.outcome(tmp_path / "o") == harness.outcome(tmp_path / "whole")


def _newest(checkpoints):
    return max((int(p.name) for p in checkpoints.glob("[0-9]*") if p.name.isdigit()), default=0)

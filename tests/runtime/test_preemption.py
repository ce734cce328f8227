"""SIGTERM is noticed where it can be, and several processes stop at the same step."""

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
import types

import jax
import jax.numpy as jnp
import pytest

from ldro_jax.runtime import preemption


def test_several_processes_agree_on_a_step_and_remember_it(monkeypatch):
    # What jax says is true of one number alone, which may be that of a step where a run can't stop.
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(preemption, "_questions", itertools.count(1))
    monkeypatch.setattr(
        preemption.multihost_utils, "reached_preemption_sync_point", lambda number: number == 3
    )
    before = signal.getsignal(signal.SIGTERM)
    with preemption.watch() as preempted:
        assert [preempted(step) for step in range(1, 6)] == [False, False, True, True, True]
        assert signal.getsignal(signal.SIGTERM) is before
    # The steps of the next run begin anew, the numbers don't.
    with preemption.watch() as preempted:
        assert not any(preempted(step) for step in range(1, 6))


def test_outside_the_main_thread_there_are_no_signals_to_watch_for():
    answers = []

    def watch():
        with preemption.watch() as preempted:
            answers.append(preempted(1))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=watch)
    thread.start()
    thread.join()
    assert answers == [False] and signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda n: n.name)
def test_who_asks_again_a_second_later_does_not_want_to_wait(number, monkeypatch):
    now, ended = [0.0], []
    monkeypatch.setattr(preemption, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    before = signal.signal(number, lambda number, frame: ended.append(number))
    try:
        with preemption.watch() as preempted:
            assert not preempted(1)
            for now[0] in (10.0, 10.5):  # the second is to the process group
                signal.raise_signal(number)
                assert preempted(1) and not ended
            now[0] = 12.0
            signal.raise_signal(number)
            assert ended == [number]
        assert preempted.error("x").exit_status == 128 + number
        # It is put back.
        signal.raise_signal(number)
        assert ended == [number] * 2
    finally:
        signal.signal(number, before)


def test_without_a_handler_of_its_own_a_process_is_ended_by_the_second():
    program = (
        "import os, signal, time\n"
        "from ldro_jax.runtime import preemption\n"
        "with preemption.watch() as preempted:\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    assert preempted(1)\n"
        "    time.sleep(1.1)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(60)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, timeout=120, check=False
    )
    assert done.returncode == -signal.SIGTERM


def test_a_signal_that_is_ignored_stays_ignored():
    # As nohup has it.
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with preemption.watch() as preempted:
            signal.raise_signal(signal.SIGHUP)
            assert not preempted(1)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_signals_are_heeded_while_a_device_computes():
    @jax.jit
    def spend(x, steps):
        return jax.lax.fori_loop(0, steps, lambda _, x: jnp.sin(x) + 1, x)

    x = jnp.ones(1000)
    spend(x, 10)
    began = time.perf_counter()
    spend(x, 2000).block_until_ready()
    steps = int(2000 * 2 / (time.perf_counter() - began))

    def ring(number, frame):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, ring)
    try:
        computing = spend(x, steps)
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(TimeoutError):
            preemption.wait(computing)
        assert not computing.is_ready()
    finally:
        signal.signal(signal.SIGALRM, before)
    preemption.wait(computing)
    assert computing.is_ready()

"""SIGTERM is noticed where it can be, and several processes stop at the same step."""

import itertools
import signal
import threading

import jax

from ldro_jax import preemption


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

"""Items are made ahead in a thread, which ends with who takes them."""

import signal
import threading
import time

import pytest

from ldro_jax.training.prefetch import prefetched


def new_threads(before):
    return set(threading.enumerate()) - before


def test_prefetched_items_come_in_order_and_a_few_ahead():
    made = []

    def items():
        for item in range(20):
            made.append(item)
            yield item

    with prefetched(items(), depth=2) as ready:
        assert next(ready) == 0
        # Two wait in the queue, and one for a place in it.
        deadline = time.monotonic() + 30
        while len(made) < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)
        assert made == [0, 1, 2, 3]
        assert list(ready) == list(range(1, 20))


def test_an_error_comes_where_its_item_would_have():
    def items():
        yield 1
        raise OSError("no such file")

    before = set(threading.enumerate())
    with prefetched(items()) as ready:
        assert next(ready) == 1
        with pytest.raises(OSError, match="no such file"):
            next(ready)
    assert not new_threads(before)


def test_the_thread_ends_with_the_consumer():
    before = set(threading.enumerate())
    with pytest.raises(ValueError, match="the consumer's"), prefetched(iter(range(10**9))) as ready:
        assert [next(ready) for _ in range(3)] == [0, 1, 2]
        assert len(new_threads(before)) == 1
        raise ValueError("the consumer's")
    assert not new_threads(before)
    with prefetched(iter(())) as ready:
        assert list(ready) == []


@pytest.mark.parametrize("where", ["the source", "elsewhere"])
def test_ctrl_c_does_not_wait_for_a_source_that_is_blocked(where):
    blocked, released = threading.Event(), threading.Event()

    def items():
        blocked.set()
        released.wait(60)
        yield 0

    before, began = set(threading.enumerate()), time.monotonic()
    interrupt = threading.Timer(0.2, signal.raise_signal, (signal.SIGINT,))
    with pytest.raises(KeyboardInterrupt), prefetched(items()) as ready:
        assert blocked.wait(10)
        if where == "elsewhere":
            raise KeyboardInterrupt
        interrupt.start()
        next(ready)
    assert time.monotonic() - began < 10 and new_threads(before)
    released.set()
    interrupt.cancel()
    for thread in new_threads(before):
        thread.join(10)
    assert not new_threads(before)

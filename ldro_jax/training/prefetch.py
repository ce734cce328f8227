"""Making batches while the device computes."""

import contextlib
import queue
import threading
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def prefetched(items: Iterator[Any], depth: int = 2) -> Iterator[Iterator[Any]]:
    """Makes items in a thread of its own, ``depth`` ahead of their use.

    What the thread raises is raised where its item would have come. The thread has ended when the
    context is left, but for Ctrl-C and ``sys.exit``: it may be blocked in what makes the items.

    Yields:
      The items, in order.
    """
    ready: queue.Queue = queue.Queue(depth)
    stop = threading.Event()
    end = object()

    def put(item):
        while not stop.is_set():
            try:
                ready.put(item, timeout=0.1)
                return
            except queue.Full:
                continue

    def produce():
        try:
            for item in items:
                put((item, None))
                if stop.is_set():
                    return
            put((end, None))
        except BaseException as error:
            put((end, error))

    def taken():
        while True:
            try:
                # A signal that another thread gets doesn't wake this one.
                item, error = ready.get(timeout=0.5)
            except queue.Empty:
                continue
            if error is not None:
                raise error
            if item is end:
                return
            yield item

    thread = threading.Thread(target=produce, daemon=True)
    thread.start()
    is_over = True
    try:
        yield taken()
    except (KeyboardInterrupt, SystemExit):
        is_over = False
        raise
    finally:
        stop.set()
        if is_over:
            thread.join()

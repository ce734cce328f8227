"""Making batches while the device computes."""

import queue
import threading
from collections.abc import Generator, Iterator
from typing import Any


def prefetched(items: Iterator[Any], depth: int = 2) -> Generator[Any, None, None]:
    """Makes items in a thread of its own, ``depth`` ahead of their use, and yields them in order.

    What the thread raises is raised here.
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

    thread = threading.Thread(target=produce, daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if item is end:
                return
            yield item
    finally:
        stop.set()
        thread.join()

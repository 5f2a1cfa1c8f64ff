"""A thread that works beside a block and ends with it: heartbeats, gauges, measurements."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Ended = Callable[[float], bool]
"""Waits up to a number of seconds, and tells whether the block has ended."""


@contextmanager
def in_background(work: Callable[[Ended], None], *, name: str) -> Iterator[None]:
    """Run `work` in a daemon thread while the block runs; the end of the block waits for it.

    `work` must return once the block has ended: `while not ended(5.0): ...` repeats something every five seconds.
    """
    ended = threading.Event()
    thread = threading.Thread(target=work, args=(ended.wait,), daemon=True, name=name)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()

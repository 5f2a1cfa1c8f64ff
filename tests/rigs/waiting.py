"""Waiting for what happens in other processes, with a bound that no machine needs."""

import time
from collections.abc import Callable


def wait_until(condition: Callable[[], object], *, seconds: float = 200, said: Callable[[], str] = str) -> None:
    """Look again and again until a condition holds. Raises AssertionError with what `said` gives when it never does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, said()
        time.sleep(0.05)

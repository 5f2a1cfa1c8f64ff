"""Wait for events in other processes, with a timeout that no machine needs."""

import time
from collections.abc import Callable


def wait_until(condition: Callable[[], object], *, seconds: float = 200, said: Callable[[], str] = str) -> None:
    """Poll until a condition holds. Raises AssertionError with the text of `said` after the timeout."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, said()
        time.sleep(0.05)

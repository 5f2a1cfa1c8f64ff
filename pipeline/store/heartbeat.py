"""An object that a process rewrites while it works, so that others can tell whether it is alive."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pipeline.background import Ended, in_background
from pipeline.errors import IgptError
from pipeline.store import objects

_RETRY_SECONDS = 1.0


@contextmanager
def beating(url: str, content: Callable[[int], bytes], seconds: float) -> Iterator[None]:
    """Write content(1), content(2), ... to an object, one every `seconds`, while the block runs.

    A failed write is retried soon. The end of the block waits a few seconds for a write in flight; one that the store
    has received but not confirmed may still appear later.
    """

    def beat(ended: Ended) -> None:
        count, wait = 0, seconds
        while not ended(wait):
            count += 1
            try:
                objects.write_bytes(url, content(count), patient=False)
                wait = seconds
            except (IgptError, OSError):  # an unreachable store or a full disk may recover soon
                wait = min(seconds, _RETRY_SECONDS)

    with in_background(beat, name=f"heartbeat {url}"):
        yield

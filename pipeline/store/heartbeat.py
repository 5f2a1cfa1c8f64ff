"""An object that is written anew while its process is at work, and so tells the living from the dead."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pipeline.background import Ended, in_background
from pipeline.errors import IgptError
from pipeline.store import objects

_AGAIN_SECONDS = 1.0


@contextmanager
def beating(url: str, content: Callable[[int], bytes], seconds: float) -> Iterator[None]:
    """Write `content` of 1, 2, ... to an object, one every `seconds`, for the length of the block.

    One that fails is tried again soon. The block's end waits some seconds for one that is under way; what a store has
    received and not yet answered may appear after that.
    """

    def beat(ended: Ended) -> None:
        count, wait = 0, seconds
        while not ended(wait):
            count += 1
            try:
                objects.write_bytes(url, content(count), patient=False)
                wait = seconds
            except (IgptError, OSError):  # a store that is away, a full disk: either may be mended soon
                wait = min(seconds, _AGAIN_SECONDS)

    with in_background(beat, name=f"heartbeat {url}"):
        yield

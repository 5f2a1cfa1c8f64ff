"""Reads on a thread of its own what the training loop needs next, while a step computes."""

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Read = TypeVar("Read")


class ReadAhead(Generic[Read]):
    """What `read` returns for ranges of positions, in their order, read up to `ahead` ranges before it is taken."""

    def __init__(self, read: Callable[[range], Read], ranges: Iterable[range], *, ahead: int) -> None:
        self._read, self._ranges, self._ahead = read, iter(ranges), ahead
        self._reading: deque[Future[Read]] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")

    def take(self) -> Read:
        """What was read for the next range; waits for it. An error of `read` is raised here, in its turn."""
        self._fill(self._ahead + 1)
        return self._reading.popleft().result()

    def _fill(self, number: int) -> None:
        while len(self._reading) < number and (positions := next(self._ranges, None)) is not None:
            self._reading.append(self._thread.submit(self._read, positions))

    def close(self) -> None:
        """Stop reading; waits for the range that is being read."""
        self._thread.shutdown(wait=True, cancel_futures=True)

"""Who may compute next: one request at a time, in order, and one of each person. For one event loop."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from flows.playground.limits import Limits
from pipeline.errors import IgptError

_MINUTE = 60.0
_Answer = TypeVar("_Answer")


@dataclass(eq=False, kw_only=True)
class _Ticket:
    user: str
    tell: Callable[[int], None]
    is_first: asyncio.Event = field(default_factory=asyncio.Event)


class Turns:
    """The line before the models."""

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits, self._clock = limits, clock
        self._line: list[_Ticket] = []
        self._asked: dict[str, deque[float]] = {}

    @asynccontextmanager
    async def turn(self, user: str, tell: Callable[[int], None]) -> AsyncIterator[None]:
        """Wait for the turn of a person, who has it for the length of the block.

        `tell` is called with the number of requests that come before, whenever it changes, and with 0 at the start of
        the turn. Raises IgptError for a second request of the same person, one too many in a minute, or a full line.
        """
        self._check(user)
        ticket = _Ticket(user=user, tell=tell)
        self._line.append(ticket)
        try:
            self._announce()
            await ticket.is_first.wait()
            yield
        finally:
            self._line.remove(ticket)
            self._announce()

    def _check(self, user: str) -> None:
        if any(ticket.user == user for ticket in self._line):
            raise IgptError("your request before this one is not answered yet: wait for it, or stop it")
        if len(self._line) >= self._limits.waiting:
            raise IgptError(f"{len(self._line)} requests are waiting already: try again in a minute")
        now = self._clock()
        self._asked = {name: times for name, times in self._asked.items() if now - times[-1] < _MINUTE}
        times = self._asked.get(user, deque[float]())
        while times and now - times[0] >= _MINUTE:
            times.popleft()
        if len(times) >= self._limits.requests_per_minute:
            raise IgptError(f"{len(times)} requests in a minute are the most that one person may make: wait a little")
        times.append(now)
        self._asked[user] = times

    def _announce(self) -> None:
        for place, ticket in enumerate(self._line):
            if not ticket.is_first.is_set():
                ticket.tell(place)
        if self._line:
            self._line[0].is_first.set()


async def all_answers(asked: Iterable[Awaitable[_Answer]]) -> list[_Answer]:
    """The answers to all requests of a turn, which lasts until none is computed any more; then what one has raised."""
    answers = await asyncio.gather(*asked, return_exceptions=True)
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
    return [answer for answer in answers if not isinstance(answer, BaseException)]

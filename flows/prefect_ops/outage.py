"""Let a flow run outlast an absence of the Prefect server: its requests wait until the server is back.

Prefect's own clients give up after about a minute, and at once on a server that they did not reach before. The flow run
then ends with that error, whatever became of its work.
"""

import asyncio
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import httpx
from prefect.client import orchestration
from prefect.client.base import PrefectHttpxAsyncClient, PrefectHttpxSyncClient
from prefect.logging import get_logger

_LIMIT_SECONDS = 24 * 3600.0
_LONGEST_PAUSE_SECONDS = 10.0
_AWAY = {502, 503, 504}  # a proxy's answers for a server that is away, and the server's own while it starts
_BROKEN = 500  # while PostgreSQL is away, among others
_BROKEN_TRIES = 3  # of a server whose database answers: then the error is about the request

turn = threading.RLock()
"""Held by every request of a synchronous client. Who holds it can read and write a state without another in between."""


def install() -> None:
    """Let the Prefect clients that this process makes from now on wait for the server, for up to a day."""
    # No setting does this: PREFECT_CLIENT_MAX_RETRIES doubles its pauses without a limit, and leaves out the first
    # request of a client, of which a flow run makes several.
    for name, kind in (("PrefectHttpxSyncClient", _WaitingClient), ("PrefectHttpxAsyncClient", _WaitingAsyncClient)):
        assert hasattr(orchestration, name), f"Prefect makes its clients elsewhere now, without {name}"
        setattr(orchestration, name, kind)


@dataclass
class _Outage:
    """The failures of one request, in a row."""

    began: float = field(default_factory=time.monotonic)
    failures: int = 0

    def pause(self, error: Exception, *, ready: bool) -> float:
        """Seconds to wait before the next try. Raises the error when it is not one of an outage, or after a day."""
        self.failures += 1
        about_the_request = ready and self.failures >= _BROKEN_TRIES
        if about_the_request or time.monotonic() - self.began > _LIMIT_SECONDS:
            raise error
        if self.failures == 1:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            get_logger("outage").warning("the Prefect server is away (%s); this request waits for it", reason)
        return min(2.0 ** (self.failures - 1), _LONGEST_PAUSE_SECONDS)

    def end(self) -> None:
        """Tell that it is over, if there was one."""
        if self.failures:
            get_logger("outage").warning("the Prefect server is back after %.0f s", time.monotonic() - self.began)


def is_outage(error: Exception) -> bool:
    """Whether a failed request may succeed once the server, or its database, is back."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code in _AWAY | {_BROKEN}
    return isinstance(error, httpx.TransportError) and not isinstance(error, httpx.UnsupportedProtocol)


def _asks_for_readiness(error: Exception) -> bool:
    return isinstance(error, httpx.HTTPStatusError) and error.response.status_code == _BROKEN


class _WaitingClient(PrefectHttpxSyncClient):
    def send(self, request: httpx.Request, *args: Any, **options: Any) -> httpx.Response:
        outage = _Outage()
        with turn:
            while True:
                try:
                    response = super().send(request, *args, **options)
                except (httpx.TransportError, httpx.HTTPStatusError) as error:
                    if not is_outage(error):
                        raise
                    time.sleep(outage.pause(error, ready=_asks_for_readiness(error) and self._ready()))
                else:
                    outage.end()
                    return response

    def _ready(self) -> bool:
        """Whether the server reaches its database."""
        try:
            return httpx.Client.send(self, self.build_request("GET", "/ready")).is_success
        except httpx.TransportError:
            return False


class _WaitingAsyncClient(PrefectHttpxAsyncClient):
    async def send(self, request: httpx.Request, *args: Any, **options: Any) -> httpx.Response:
        outage = _Outage()
        while True:
            try:
                response = await super().send(request, *args, **options)
            except (httpx.TransportError, httpx.HTTPStatusError) as error:
                if not is_outage(error):
                    raise
                await asyncio.sleep(outage.pause(error, ready=_asks_for_readiness(error) and await self._ready()))
            else:
                outage.end()
                return response

    async def _ready(self) -> bool:
        try:
            return (await httpx.AsyncClient.send(self, self.build_request("GET", "/ready"))).is_success
        except httpx.TransportError:
            return False

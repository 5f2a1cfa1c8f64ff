"""An HTTP proxy in front of an S3 server that injects faults into a share of the requests.

Without a fault, requests and responses pass unchanged, including the Host header, so that signatures stay valid.
s3_faults.py decides which fault hits which request. The proxy is a context manager and runs in its own thread.
"""

import asyncio
import socket
import struct
import threading
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote, urlsplit

from tests.rigs.http_messages import HEAD_BYTES, Head, body_pieces, read_head
from tests.rigs.s3_faults import Fault, Faults, Injection

_NOTHING = Faults(share=0)
_ANSWERS = {
    Fault.INTERNAL_ERROR: ("500 Internal Server Error", "InternalError", "We encountered an internal error."),
    Fault.SLOW_DOWN: ("503 Slow Down", "SlowDown", "Please reduce your request rate."),
}
_RST_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER on, for no time


class FaultyS3:
    """The proxy. Its methods are to be called from the test's thread."""

    def __init__(self, upstream: str, *, address: str = "127.0.0.1") -> None:
        """Create a proxy for the S3 server at the URL `upstream`, on a free port of an address of this machine."""
        parts = urlsplit(upstream)
        self._upstream = (parts.hostname or "", parts.port or 80)
        # Bound but never listening: it reserves the port while connections are refused.
        self._holder = _bound_socket(address, 0)
        self._address: tuple[str, int] = self._holder.getsockname()
        self.url = f"http://{address}:{self._address[1]}"
        self.requests: Counter[tuple[str, str]] = Counter()
        """Number of requests by client address and method."""
        self._injection = Injection(_NOTHING)
        self._server: asyncio.Server | None = None
        self._resuming: asyncio.TimerHandle | None = None
        self._clients: set[_Client] = set()
        self._serving: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="faulty-s3", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self.resume()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._holder.close()

    @contextmanager
    def inject(self, faults: Faults) -> Iterator[Injection]:
        """Inject faults within the block."""
        previous, self._injection = self._injection, Injection(faults)
        try:
            yield self._injection
        finally:
            self._injection = previous

    def stop(self) -> None:
        """Refuse new connections and reset open ones, as when the server's process dies."""
        self._run(self._refuse())

    def resume(self) -> None:
        """Accept connections again, on the same port."""
        self._run(self._listen())

    def stop_for(self, seconds: float) -> None:
        """Stop, and resume after so many seconds, unless stopped or resumed before that."""
        self._run(self._refuse(seconds))

    def _run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout=30)

    async def _listen(self) -> None:
        self._cancel_resume()
        if self._server is None:
            listener = _bound_socket(*self._address)
            self._server = await asyncio.start_server(self._accept, sock=listener, limit=HEAD_BYTES)

    async def _refuse(self, seconds: float | None = None) -> None:
        self._cancel_resume()
        if seconds is not None:
            self._resuming = self._loop.call_later(seconds, lambda: self._loop.create_task(self._listen()))
        if self._server is not None:
            self._server.close()
            self._server = None
        for client in self._clients:
            client.reset()

    def _cancel_resume(self) -> None:
        if self._resuming is not None:
            self._resuming.cancel()
            self._resuming = None

    async def _close(self) -> None:
        await self._refuse()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Create the task here: Python 3.11 reports one that asyncio creates as failed when it is cancelled.
        task = self._loop.create_task(self._serve(reader, writer))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection in turn."""
        client = _Client(reader, writer, self._upstream)
        self._clients.add(client)
        try:
            # If the client or the server hangs up, close the other connection too.
            with suppress(OSError, EOFError):
                while (request := await read_head(reader)) is not None and await self._answer(client, request):
                    pass
        finally:
            self._clients.remove(client)
            client.hang_up()

    async def _answer(self, client: "_Client", request: Head) -> bool:
        """Answer a request; returns whether the connection can take another one."""
        method, target, _ = request.first_line
        self.requests[client.address, method] += 1
        injection = self._injection
        fault = injection.deal(method, unquote(urlsplit(target).path))
        if fault is None:
            return await client.answer(request)
        cut_off = None
        if fault is Fault.TRUNCATE:
            cut_off = await client.forward(request)
            if cut_off[0].answer_framing(method) == 0:
                fault = Fault.RESET  # there is no body to truncate
        elif fault is Fault.LOST_ANSWER:
            await client.forward_only(request)
        injection.counts[fault] += 1  # before the client can see the fault
        if fault in _ANSWERS:
            return await client.refuse(request, *_ANSWERS[fault])
        if fault is Fault.STALL:
            await asyncio.sleep(injection.faults.stall_seconds)
        elif fault is Fault.TRUNCATE and cut_off is not None:
            await client.send_truncated(*cut_off)
        else:
            client.reset()
        return False


class _Client:
    """One client's connection, and its own connection to the server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, upstream: tuple[str, int]) -> None:
        self.address: str = writer.get_extra_info("peername")[0]
        self._reader = reader
        self._writer = writer
        self._upstream = upstream
        self._server: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._sending: asyncio.Task[None] | None = None

    def reset(self) -> None:
        """Close the client's connection with RST."""
        # The socket may be closed already.
        with suppress(OSError):
            self._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST_ON_CLOSE)
        self._writer.transport.abort()

    def hang_up(self) -> None:
        """Close both connections; buffered data is still sent to the client."""
        if self._sending is not None:
            self._sending.cancel()
        if self._server is not None:
            self._server[1].close()
        self._writer.close()

    async def refuse(self, request: Head, status: str, code: str, message: str) -> bool:
        """Answer with an S3 error; returns whether the connection can take another request."""
        # A client that waits for "100 Continue" sends no body after an error.
        waits = "expect" in request.headers
        if not waits:
            async for _ in body_pieces(self._reader, request.request_framing()):
                pass
        body = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{message}</Message></Error>'
        head = f"HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n"
        head += "Connection: close\r\n\r\n" if waits else "\r\n"
        await self._send(head.encode() + (b"" if request.first_line[0] == "HEAD" else body.encode()))
        return not waits and not request.closes

    async def answer(self, request: Head) -> bool:
        """Forward a request and return the answer; returns whether the connection can take another request."""
        answer, body = await self.forward(request)
        await self._send(answer.raw)
        async for piece in body:
            await self._send(piece)
        # The server may answer without reading the body; its rest must not be taken for the next request.
        assert self._sending is not None
        await asyncio.wait({self._sending}, timeout=1)
        endless = answer.answer_framing(request.first_line[0]) == "endless"
        return self._sending.done() and not (request.closes or answer.closes or endless)

    async def send_truncated(self, answer: Head, body: AsyncIterator[bytes]) -> None:
        """Send an answer without its end."""
        await self._send(answer.raw)
        last = b""
        async for piece in body:
            await self._send(last)
            last = piece
        await self._send(last[: len(last) // 2])

    async def forward_only(self, request: Head) -> None:
        """Forward a request and drop the answer."""
        _, body = await self.forward(request)
        async for _ in body:
            pass

    async def forward(self, request: Head) -> tuple[Head, AsyncIterator[bytes]]:
        """Forward a request; returns the head of the answer, and its body as it arrives."""
        if self._server is None or self._server[0].at_eof():
            self._server = await asyncio.open_connection(*self._upstream, limit=HEAD_BYTES)
        reader, writer = self._server
        writer.write(request.raw)
        self._sending = asyncio.create_task(self._send_body(request, writer))
        while (answer := await read_head(reader)) is not None:
            if answer.status >= 200:
                return answer, body_pieces(reader, answer.answer_framing(request.first_line[0]))
            await self._send(answer.raw)  # 100 Continue: the client sends the body only now
        raise ConnectionResetError("the server has hung up")

    async def _send_body(self, request: Head, writer: asyncio.StreamWriter) -> None:
        try:
            async for piece in body_pieces(self._reader, request.request_framing()):
                writer.write(piece)
                await writer.drain()
        except (OSError, EOFError):
            writer.transport.abort()  # otherwise the server would wait for the rest of the request

    async def _send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()


def _bound_socket(address: str, port: int) -> socket.socket:
    # With an explicit protocol, or asyncio does not disable Nagle's algorithm, which costs 40 ms per small answer.
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    # REUSEPORT, because the reserving socket and the listening one are bound to the same port.
    for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
        bound.setsockopt(socket.SOL_SOCKET, option, 1)
    bound.bind((address, port))
    return bound

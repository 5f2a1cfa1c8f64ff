"""An HTTP proxy before an S3 server that injects faults into a share of the requests, to see what clients survive.

Without a fault, requests and answers pass byte for byte, the Host header too, so that signatures stay valid. Which
fault hits which request is decided in s3_faults.py; a context manager, and a thread of its own while that is open.
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
    """The proxy. Its methods are called from the test's thread."""

    def __init__(self, upstream: str, *, address: str = "127.0.0.1") -> None:
        """Stand before the S3 server at the URL `upstream`, at an address of this machine and a free port."""
        parts = urlsplit(upstream)
        self._upstream = (parts.hostname or "", parts.port or 80)
        # Bound as long as the proxy lives and never listening: it keeps the port while connections are refused.
        self._holder = _bound_socket(address, 0)
        self._address: tuple[str, int] = self._holder.getsockname()
        self.url = f"http://{address}:{self._address[1]}"
        self.requests: Counter[tuple[str, str]] = Counter()
        """Requests so far, by the client's address and the method."""
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
        """Inject faults while the context is open."""
        before, self._injection = self._injection, Injection(faults)
        try:
            yield self._injection
        finally:
            self._injection = before

    def stop(self) -> None:
        """Refuse connections and reset those that are open, as when the server's process dies."""
        self._run(self._refuse())

    def resume(self) -> None:
        """Accept connections again, at the same port."""
        self._run(self._listen())

    def stop_for(self, seconds: float) -> None:
        """Stop now, and accept connections again after so many seconds, unless stopped or resumed before that."""
        self._run(self._refuse(seconds))

    def _run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout=30)

    async def _listen(self) -> None:
        self._forget_to_resume()
        if self._server is None:
            listener = _bound_socket(*self._address)
            self._server = await asyncio.start_server(self._accept, sock=listener, limit=HEAD_BYTES)

    async def _refuse(self, seconds: float | None = None) -> None:
        self._forget_to_resume()
        if seconds is not None:
            self._resuming = self._loop.call_later(seconds, lambda: self._loop.create_task(self._listen()))
        if self._server is not None:
            self._server.close()
            self._server = None
        for client in self._clients:
            client.reset()

    def _forget_to_resume(self) -> None:
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
        # A task of our own: Python 3.11 reports those that asyncio makes here as failed when they are cancelled.
        task = self._loop.create_task(self._serve(reader, writer))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection, one after the other."""
        client = _Client(reader, writer, self._upstream)
        self._clients.add(client)
        try:
            # A client or server that hangs up in the middle is no error of the proxy's: the other one is hung up on.
            with suppress(OSError, EOFError):
                while (request := await read_head(reader)) is not None and await self._answer(client, request):
                    pass
        finally:
            self._clients.remove(client)
            client.hang_up()

    async def _answer(self, client: "_Client", request: Head) -> bool:
        """Answer a request; tells whether the connection can take another one."""
        method, target, _ = request.first_line
        self.requests[client.address, method] += 1
        injection = self._injection
        fault = injection.deal(method, unquote(urlsplit(target).path))
        if fault is None:
            return await client.answer(request)
        cut_off = None
        if fault is Fault.TRUNCATE:
            cut_off = await client.ask(request)
            if cut_off[0].answer_framing(method) == 0:
                fault = Fault.RESET  # there is nothing to cut off
        elif fault is Fault.LOST_ANSWER:
            await client.carry_out(request)
        injection.counts[fault] += 1  # before the client can know
        if fault in _ANSWERS:
            return await client.refuse(request, *_ANSWERS[fault])
        if fault is Fault.STALL:
            await asyncio.sleep(injection.faults.stall_seconds)
        elif fault is Fault.TRUNCATE and cut_off is not None:
            await client.tell_in_part(*cut_off)
        else:
            client.reset()
        return False


class _Client:
    """One client's connection, and the connection to the server that is kept for it alone."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, upstream: tuple[str, int]) -> None:
        self.address: str = writer.get_extra_info("peername")[0]
        self._reader = reader
        self._writer = writer
        self._upstream = upstream
        self._server: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._sending: asyncio.Task[None] | None = None

    def reset(self) -> None:
        """Close the client's connection with RST."""
        # A socket that is closed already has no options to set.
        with suppress(OSError):
            self._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST_ON_CLOSE)
        self._writer.transport.abort()

    def hang_up(self) -> None:
        """Close both connections; what is written already is still sent to the client."""
        if self._sending is not None:
            self._sending.cancel()
        if self._server is not None:
            self._server[1].close()
        self._writer.close()

    async def refuse(self, request: Head, status: str, code: str, message: str) -> bool:
        """Answer with an error of S3's; tells whether the connection can take another request."""
        # Who expects "100 Continue" sends no body when he gets an error instead.
        waits = "expect" in request.headers
        if not waits:
            async for _ in body_pieces(self._reader, request.request_framing()):
                pass
        body = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{message}</Message></Error>'
        head = f"HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n"
        head += "Connection: close\r\n\r\n" if waits else "\r\n"
        await self._tell(head.encode() + (b"" if request.first_line[0] == "HEAD" else body.encode()))
        return not waits and not request.closes

    async def answer(self, request: Head) -> bool:
        """Pass a request on and the answer back; tells whether the connection can take another request."""
        answer, body = await self.ask(request)
        await self._tell(answer.raw)
        async for piece in body:
            await self._tell(piece)
        # A server may answer without reading the body: what is left of that must not be taken for the next request.
        assert self._sending is not None
        await asyncio.wait({self._sending}, timeout=1)
        endless = answer.answer_framing(request.first_line[0]) == "endless"
        return self._sending.done() and not (request.closes or answer.closes or endless)

    async def tell_in_part(self, answer: Head, body: AsyncIterator[bytes]) -> None:
        """Pass an answer back without its end."""
        await self._tell(answer.raw)
        last = b""
        async for piece in body:
            await self._tell(last)
            last = piece
        await self._tell(last[: len(last) // 2])

    async def carry_out(self, request: Head) -> None:
        """Pass a request on and keep the answer from the client."""
        _, body = await self.ask(request)
        async for _ in body:
            pass

    async def ask(self, request: Head) -> tuple[Head, AsyncIterator[bytes]]:
        """Pass a request on; returns the head of the answer, and its body as it arrives."""
        if self._server is None or self._server[0].at_eof():
            self._server = await asyncio.open_connection(*self._upstream, limit=HEAD_BYTES)
        reader, writer = self._server
        writer.write(request.raw)
        self._sending = asyncio.create_task(self._send_body(request, writer))
        while (answer := await read_head(reader)) is not None:
            if answer.status >= 200:
                return answer, body_pieces(reader, answer.answer_framing(request.first_line[0]))
            await self._tell(answer.raw)  # 100 Continue: the client sends the body only now
        raise ConnectionResetError("the server has hung up")

    async def _send_body(self, request: Head, writer: asyncio.StreamWriter) -> None:
        try:
            async for piece in body_pieces(self._reader, request.request_framing()):
                writer.write(piece)
                await writer.drain()
        except (OSError, EOFError):
            writer.transport.abort()  # so that nobody waits for the answer to half a request

    async def _tell(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()


def _bound_socket(address: str, port: int) -> socket.socket:
    # The protocol by name: only then asyncio switches Nagle's algorithm off, which costs 40 ms a small answer.
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    # REUSEPORT: both the socket that keeps the port and the one that listens are bound to it.
    for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
        bound.setsockopt(socket.SOL_SOCKET, option, 1)
    bound.bind((address, port))
    return bound

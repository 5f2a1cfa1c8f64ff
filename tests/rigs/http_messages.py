"""Read HTTP/1.1 messages from asyncio streams for a proxy: whole heads, and bodies in pieces."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Literal

HEAD_BYTES = 256 * 1024
_PIECE_BYTES = 64 * 1024

Framing = int | Literal["chunked", "endless"]  # the bytes of a body, or how its end is signalled


@dataclass(frozen=True, kw_only=True)
class Head:
    """The first line and the headers of a request or an answer."""

    raw: bytes
    """Its bytes, including the empty line at the end."""
    first_line: tuple[str, str, str]
    """Method, target and version of a request; version, status and reason of an answer."""
    headers: dict[str, str]
    """By lower-case name."""

    @property
    def status(self) -> int:
        """The status of an answer."""
        return int(self.first_line[1])

    @property
    def closes(self) -> bool:
        """Whether the sender closes the connection after this message."""
        return self.headers.get("connection", "").lower() == "close" or "HTTP/1.0" in self.first_line

    def request_framing(self) -> Framing:
        """The length of the body of this request."""
        return "chunked" if self._is_chunked() else int(self.headers.get("content-length", 0))

    def answer_framing(self, method: str) -> Framing:
        """The length of the body of this answer; `method` is that of the request."""
        if method == "HEAD" or self.status in (204, 304):
            return 0
        if self._is_chunked():
            return "chunked"
        return int(self.headers["content-length"]) if "content-length" in self.headers else "endless"

    def _is_chunked(self) -> bool:
        return "chunked" in self.headers.get("transfer-encoding", "").lower()


async def read_head(reader: asyncio.StreamReader) -> Head | None:
    """Read the head of the next message; None if the sender has closed the connection."""
    try:
        raw = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise
        return None
    first, *lines = raw.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
    one, two, three = [*first.split(" ", 2), "", ""][:3]
    pairs = (line.partition(":") for line in lines)
    headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
    return Head(raw=raw, first_line=(one, two, three), headers=headers)


async def body_pieces(reader: asyncio.StreamReader, framing: Framing) -> AsyncIterator[bytes]:
    """Read a body in pieces of bounded size; a chunked body keeps its encoding.

    Raises EOFError when the connection ends before the body.
    """
    if framing == "chunked":
        while True:
            line = await reader.readuntil(b"\r\n")
            size = int(line.split(b";")[0], 16)
            if size == 0:
                break
            yield line
            async for piece in _exactly(reader, size + 2):
                yield piece
        while (trailer := await reader.readuntil(b"\r\n")) != b"\r\n":
            line += trailer
        yield line + b"\r\n"
    elif framing == "endless":
        while piece := await reader.read(_PIECE_BYTES):
            yield piece
    else:
        async for piece in _exactly(reader, framing):
            yield piece


async def _exactly(reader: asyncio.StreamReader, size: int) -> AsyncIterator[bytes]:
    while size:
        piece = await reader.read(min(size, _PIECE_BYTES))
        if not piece:
            raise EOFError(f"{size} bytes are missing")
        size -= len(piece)
        yield piece

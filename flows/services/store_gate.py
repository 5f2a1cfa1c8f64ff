"""The S3 server of the local services: rclone, and in front of it a gate that lets each key do what its role may.

    python -m flows.services.store_gate RCLONE FOLDER HOST:PORT

rclone serves every bucket to every key that it knows (RCLONE_AUTH_KEY), and checks signatures; store_rights.py has the
rights. rclone listens on a socket in a folder that only this user can open, so that nobody passes the gate by.
"""

import asyncio
import ctypes
import os
import re
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from flows.services.store_rights import RefusedError, StoreRequest, check

_HEAD_BYTES = 64 * 1024
_BUFFER_BYTES = 1024 * 1024  # what one side has sent and the other not yet taken, before the first must wait
_LONGEST_LIST_BYTES = 4 * 1024 * 1024  # a request deletes at most 1,000 objects
_START_SECONDS = 20
_SOCKET = "s3"
# Two of these would leave open which one the store uses.
_SINGLE = {"authorization", "content-length", "host", "x-amz-copy-source"}
_UNKNOWN = {"transfer-encoding", "upgrade"}
_NAME = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]+")
_FORBIDDEN = "403 Forbidden"


class _MalformedError(Exception):
    """The request is not one that the store would read in the same way."""


class _RefusedBodyError(Exception):
    """The request is refused before its body, and whether that comes is not known: the connection must end."""


@dataclass(frozen=True, kw_only=True)
class _Head:
    raw: bytes
    request: StoreRequest
    body_bytes: int
    expects_continue: bool


def main(program: str, folder: str, address: str) -> None:
    """Serve a folder with a program, rclone, until that or this process ends."""
    host, _, port = address.rpartition(":")
    # Sockets have short paths, so both sides name it from within its folder.
    with tempfile.TemporaryDirectory(prefix="igpt-s3-") as hidden:
        rclone = subprocess.Popen(_command(program, Path(folder).absolute()), cwd=hidden, preexec_fn=_end_with_parent)
        os.chdir(hidden)
        try:
            sys.exit(asyncio.run(_serve(host, int(port), rclone)))
        finally:
            os.chdir("/")
            rclone.terminate()
            with suppress(subprocess.TimeoutExpired):
                rclone.wait(timeout=5)


def _command(program: str, folder: Path) -> list[str]:
    # No VFS cache: with one, a PUT is acknowledged before the object is in the folder, reads during an overwrite return
    # the old bytes or an error far more often, and every ranged GET hashes the whole object again.
    # Directory cache of 2 s (5 minutes by default): files put directly into the folder are hidden for that long; writes
    # through S3 are visible at once. With 0, every request reads the whole directory: with 2,500 files in it, the rate
    # fell from 200 GETs per second to 6. One server for all keys, because each has a cache of its own.
    # XXH3: listing or opening an object hashes all of it for its ETag, unless the directory cache has it. That takes
    # 0.1 s for 400 MB, 0.65 s with MD5. Its 16 digits cannot be mistaken for an MD5.
    # No checksum: otherwise every GET hashes the bytes it reads from local disk, which was half of its cost.
    # No buffer: with one, each GET of a range reads 16 MiB ahead while it is sent. One of 106 kB took rclone 1.3 ms of
    # processor time, 0.4 ms without.
    return [
        program, "serve", "s3", str(folder), "--addr", f"unix://{_SOCKET}",
        "--vfs-cache-mode", "off", "--dir-cache-time", "2s", "--etag-hash", "XXH3", "--no-checksum",
        "--buffer-size", "0", "--config", "",
    ]  # fmt: skip


def _end_with_parent() -> None:
    """Let Linux end this process, rclone's to be, when the gate is killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


async def _serve(host: str, port: int, rclone: subprocess.Popen[bytes]) -> str | int:
    for _ in range(_START_SECONDS * 50):
        with suppress(OSError):
            (await asyncio.open_unix_connection(_SOCKET))[1].close()
            break
        if rclone.poll() is not None:
            return f"rclone ended with status {rclone.returncode} while it started"
        await asyncio.sleep(0.02)
    else:
        return f"rclone does not listen after {_START_SECONDS} s"
    server = await asyncio.get_running_loop().create_server(_Client, host, port)
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    while not ended.is_set() and rclone.poll() is None:
        with suppress(TimeoutError):
            await asyncio.wait_for(ended.wait(), timeout=0.5)
    server.close()  # without waiting for its connections, which clients keep open
    return 0 if ended.is_set() else f"rclone ended with status {rclone.returncode}"


class _Client(asyncio.Protocol):
    """One connection of a client, with a connection of its own to the store.

    What each side sends is passed on when it arrives, because every byte of a build comes this way: with streams, which
    keep it and wake a task for it, this process took almost twice as long.
    """

    def __init__(self) -> None:
        self._head = bytearray()  # what there is of the next request's head
        self._request: _Head | None = None  # the one whose body is on its way
        self._left = 0  # of its body
        self._body: bytearray | None = None  # of a request that is read before it is passed on
        self._refused = ""  # why the body is not passed on
        self._store = _Store(self)
        self._connecting: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.set_write_buffer_limits(high=_BUFFER_BYTES)
        transport.pause_reading()
        self._connecting = asyncio.ensure_future(self._connect())

    async def _connect(self) -> None:
        try:
            await asyncio.get_running_loop().create_unix_connection(lambda: self._store, _SOCKET)
            self.transport.resume_reading()
        except OSError:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        assert self._connecting is not None
        self._connecting.cancel()
        self._store.close()

    def pause_writing(self) -> None:
        self._store.transport.pause_reading()

    def resume_writing(self) -> None:
        self._store.transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        try:
            while data and not self.transport.is_closing():
                data = self._take_body(data) if self._request is not None else self._take_head(data)
        except _MalformedError as error:
            self._end("400 Bad Request", str(error))
        except _RefusedBodyError as error:
            self._end(_FORBIDDEN, str(error))

    def _take_head(self, data: bytes) -> bytes:
        """Take what belongs to a head, and return the rest."""
        searched = max(0, len(self._head) - 3)
        self._head += data
        end = self._head.find(b"\r\n\r\n", searched)
        if (end if end >= 0 else len(self._head)) > _HEAD_BYTES:
            self.transport.close()
            return b""
        if end < 0:
            return b""
        raw, rest = bytes(self._head[: end + 4]), bytes(self._head[end + 4 :])
        self._head.clear()
        self._begin(_parsed(raw))
        return rest

    def _begin(self, head: _Head) -> None:
        self._request, self._left, self._refused = head, head.body_bytes, ""
        self._body = bytearray() if head.request.deletes_many else None
        if self._body is not None:
            if head.body_bytes > _LONGEST_LIST_BYTES:
                raise _MalformedError("the list of objects to delete is too long")
            if head.expects_continue:
                self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        else:
            try:
                check(head.request)
            except RefusedError as error:
                if self._left and head.expects_continue:
                    raise _RefusedBodyError(str(error)) from None
                # A client that is cut off in its body would try again instead of reading the answer.
                self._refused = str(error)
            else:
                self._store.transport.write(head.raw)
        if not self._left:
            self._finish(head)

    def _take_body(self, data: bytes) -> bytes:
        """Take what belongs to the body of a request, and return the rest."""
        assert self._request is not None
        piece, rest = (data, b"") if len(data) <= self._left else (data[: self._left], data[self._left :])
        self._left -= len(piece)
        if self._body is not None:
            self._body += piece
        elif not self._refused:
            self._store.transport.write(piece)
        if not self._left:
            self._finish(self._request)
        return rest

    def _finish(self, head: _Head) -> None:
        self._request = None
        if self._body is not None:
            try:
                check(head.request, _listed(bytes(self._body)))
            except RefusedError as error:
                self._refused = str(error)
            else:
                raw = re.sub(rb"(?i)\r\nexpect:[^\r]*", b"", head.raw) if head.expects_continue else head.raw
                self._store.transport.write(raw + self._body)
        if self._refused:
            self.transport.write(_answer(_FORBIDDEN, self._refused, with_body=head.request.method != "HEAD"))

    def _end(self, status: str, message: str) -> None:
        self.transport.write(_answer(status, message, closes=True))
        self.transport.close()


class _Store(asyncio.Protocol):
    """A client's connection to the store."""

    transport: asyncio.Transport

    def __init__(self, client: _Client) -> None:
        self._client = client

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.set_write_buffer_limits(high=_BUFFER_BYTES)

    def data_received(self, data: bytes) -> None:
        self._client.transport.write(data)

    def pause_writing(self) -> None:
        self._client.transport.pause_reading()

    def resume_writing(self) -> None:
        self._client.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._client.transport.close()

    def close(self) -> None:
        """End the connection, if there is one."""
        if hasattr(self, "transport"):
            self.transport.abort()


def _parsed(raw: bytes) -> _Head:
    """The head of a request."""
    first, *lines = raw[:-4].decode("latin-1").split("\r\n")
    words = first.split(" ")
    if len(words) != 3 or not words[1].startswith("/") or re.search(r"[\r\n\0]", first + "".join(lines)):
        raise _MalformedError("not an HTTP request for a path")
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        name = name.lower()
        if not colon or not _NAME.fullmatch(name) or name in _UNKNOWN or (name in _SINGLE and name in headers):
            raise _MalformedError(f"the header {name!r} is not understood")
        headers[name] = value.strip()
    length = headers.get("content-length", "0")
    if not (length.isascii() and length.isdecimal()):
        raise _MalformedError("the length of the body is not a number")
    return _Head(
        raw=raw,
        request=StoreRequest(
            method=words[0],
            target=words[1],
            authorization=headers.get("authorization", ""),
            copied_from=headers.get("x-amz-copy-source", ""),
        ),
        body_bytes=int(length),
        expects_continue="100-continue" in headers.get("expect", "").lower(),
    )


def _listed(body: bytes) -> list[str]:
    """The keys in the body of a request that deletes many objects."""
    try:
        root = ElementTree.fromstring(body)
    except ElementTree.ParseError:
        raise _MalformedError("the list of objects to delete is not XML") from None
    return [element.text or "" for element in root.iter() if element.tag.rpartition("}")[2] == "Key"]


def _answer(status: str, message: str, *, with_body: bool = True, closes: bool = False) -> bytes:
    code = "AccessDenied" if status == _FORBIDDEN else "InvalidRequest"
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{escape(message)}</Message></Error>".encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n"
    if closes:  # a client that is not told may send its next request before it sees the end
        head += "Connection: close\r\n"
    return f"{head}\r\n".encode() + (body if with_body else b"")


if __name__ == "__main__":
    main(*sys.argv[1:])

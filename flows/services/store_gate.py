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
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from flows.services.store_rights import RefusedError, StoreRequest, check

_HEAD_BYTES = 64 * 1024
_PIECE_BYTES = 1024 * 1024
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
    return [
        program, "serve", "s3", str(folder), "--addr", f"unix://{_SOCKET}",
        "--vfs-cache-mode", "off", "--dir-cache-time", "2s", "--etag-hash", "XXH3", "--no-checksum", "--config", "",
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
    server = await asyncio.start_server(_accept, host, port, limit=_HEAD_BYTES)
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    while not ended.is_set() and rclone.poll() is None:
        with suppress(TimeoutError):
            await asyncio.wait_for(ended.wait(), timeout=0.5)
    server.close()  # without waiting for its connections, which clients keep open
    return 0 if ended.is_set() else f"rclone ended with status {rclone.returncode}"


async def _accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Serve one connection of a client, with a connection of its own to the store."""
    to_store: asyncio.StreamWriter | None = None
    answers: asyncio.Task[None] | None = None
    try:
        from_store, to_store = await asyncio.open_unix_connection(_SOCKET, limit=_PIECE_BYTES)
        answers = asyncio.ensure_future(_pass_answers(from_store, writer))
        while (head := await _read_head(reader)) is not None:
            await _pass_request(head, reader, writer, to_store)
    except _MalformedError as error:
        _answer(writer, "400 Bad Request", str(error), closes=True)
    except _RefusedBodyError as error:
        _answer(writer, _FORBIDDEN, str(error), closes=True)
    except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        pass  # one side has gone
    finally:
        if answers is not None:
            with suppress(OSError):
                await writer.drain()
            answers.cancel()
        for side in (writer, to_store):
            if side is not None:
                side.close()


async def _pass_answers(from_store: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while piece := await from_store.read(_PIECE_BYTES):
            writer.write(piece)
            await writer.drain()
    writer.close()


async def _pass_request(
    head: _Head, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, to_store: asyncio.StreamWriter
) -> None:
    raw, body, deleted = head.raw, b"", []
    if head.request.deletes_many:
        if head.body_bytes > _LONGEST_LIST_BYTES:
            raise _MalformedError("the list of objects to delete is too long")
        if head.expects_continue:
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            raw = re.sub(rb"(?i)\r\nexpect:[^\r]*", b"", raw)
        body = await reader.readexactly(head.body_bytes)
        deleted = _listed(body)
    left = head.body_bytes - len(body)
    try:
        check(head.request, deleted)
    except RefusedError as error:
        if left and head.expects_continue:
            raise _RefusedBodyError(str(error)) from None
        # A client that is cut off in its body would try again instead of reading the answer.
        async for _ in _pieces(reader, left):
            pass
        _answer(writer, _FORBIDDEN, str(error), with_body=head.request.method != "HEAD")
        return
    to_store.write(raw + body)
    async for piece in _pieces(reader, left):
        to_store.write(piece)
        await to_store.drain()


async def _pieces(reader: asyncio.StreamReader, left: int) -> AsyncIterator[bytes]:
    while left > 0:
        piece = await reader.read(min(left, _PIECE_BYTES))
        if not piece:
            raise ConnectionResetError
        left -= len(piece)
        yield piece


async def _read_head(reader: asyncio.StreamReader) -> _Head | None:
    """Read the head of the next request; None when the client has closed the connection."""
    try:
        raw = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise
        return None
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


def _answer(
    writer: asyncio.StreamWriter, status: str, message: str, *, with_body: bool = True, closes: bool = False
) -> None:
    code = "AccessDenied" if status == _FORBIDDEN else "InvalidRequest"
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{escape(message)}</Message></Error>".encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n"
    if closes:  # a client that is not told may send its next request before it sees the end
        head += "Connection: close\r\n"
    writer.write(f"{head}\r\n".encode() + (body if with_body else b""))


if __name__ == "__main__":
    main(*sys.argv[1:])

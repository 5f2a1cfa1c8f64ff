"""A tar as a stream of members, plain or compressed, and tars one behind the other.

A compressed tar is read from its beginning for every shard that has an image of it, hence the limit of its size.
"""

import bz2
import gzip
import io
import lzma
import os
import tarfile
from collections.abc import Iterator
from typing import IO, Any

import pyarrow as pa

from pipeline.source.members import DamagedContainerError
from pipeline.store.block_reader import BlockReader

_CHUNK_BYTES = 1024 * 1024
_LARGEST_STREAM_BYTES = 32 * 1024**3
_COMPRESSIONS = {
    ".tar.gz": "gzip",
    ".tgz": "gzip",
    ".tar.bz2": "bzip2",
    ".tbz2": "bzip2",
    ".tar.xz": "xz",
    ".txz": "xz",
    ".tar.zst": "zstd",
    ".tzst": "zstd",
}
EXTENSIONS = (".tar", *_COMPRESSIONS)


def compression_of(url: str) -> str | None:
    """How a tar is compressed, by its extension; None for a plain one."""
    lower = url.lower()
    return next((name for ending, name in _COMPRESSIONS.items() if lower.endswith(ending)), None)


def open_stream(url: str, size: int) -> IO[bytes]:
    """The bytes of a tar as a file that can be read and sought forward."""
    raw: Any = BlockReader(url, size)
    match compression_of(url):
        case None:
            return raw
        case "gzip":
            return _Stream(gzip.GzipFile(fileobj=raw))  # type: ignore[return-value]
        case "bzip2":
            return _Stream(bz2.BZ2File(raw))  # type: ignore[return-value]
        case "xz":
            return _Stream(lzma.LZMAFile(raw))  # type: ignore[return-value]
        case _:
            return _Stream(pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), "zstd"))  # type: ignore[return-value]


def headers(stream: IO[bytes]) -> Iterator[tarfile.TarInfo | str]:
    """The members of a tar and of the tars that follow it; a text for what follows and is no tar.

    Raises TarError when an archive is cut off or damaged.
    """
    while True:
        with tarfile.open(fileobj=stream, mode="r:") as archive:
            for member in archive:
                archive.members = []  # type: ignore[attr-defined]  # or tarfile would keep every header
                yield member
            # tarfile treats a damaged or missing header as the end of the archive; a complete tar ends with zeros.
            end = archive.offset
            stream.seek(end)
            if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError(f"cut off or damaged at byte {end}")
        following = _next_block(stream)
        if following is None:
            return
        stream.seek(following)
        try:
            tarfile.TarInfo.frombuf(stream.read(tarfile.BLOCKSIZE), tarfile.ENCODING, "surrogateescape")
        except tarfile.HeaderError:
            yield f"what follows the end of the tar, from byte {following} on, is no tar; cut it off or write it anew"
            return
        stream.seek(following)


def _next_block(stream: IO[bytes]) -> int | None:
    """The offset of the next block, from the position of the stream, that is not all zeros; None without one."""
    while chunk := stream.read(_CHUNK_BYTES):
        rest = chunk.lstrip(b"\0")
        if rest:
            position = stream.tell() - len(rest)
            return position - position % tarfile.BLOCKSIZE
    return None


class _Stream(io.RawIOBase):
    """A decompressed stream, which can be sought forward, and back by what it keeps: tarfile goes back a block."""

    _KEPT_BYTES = 64 * 1024

    def __init__(self, source: Any) -> None:
        self._source, self._position, self._end = source, 0, 0
        self._kept = b""  # the bytes before _end

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        assert whence == os.SEEK_SET and offset >= self._end - len(self._kept)
        while self._end < offset and self._load(min(offset - self._end, _CHUNK_BYTES)):
            pass
        self._position = offset
        return offset

    def _load(self, size: int) -> bytes:
        data = self._source.read(size)
        self._end += len(data)
        if self._end > _LARGEST_STREAM_BYTES:
            raise DamagedContainerError(
                f"more than {_LARGEST_STREAM_BYTES // 1024**3} GiB when decompressed, and a compressed tar is read "
                "from its beginning each time; give it uncompressed"
            )
        self._kept = (self._kept + data)[-self._KEPT_BYTES :]
        return data

    def read(self, size: int | None = -1) -> bytes:
        """Read `size` bytes; fewer only at the end."""
        assert size is not None and size >= 0
        behind = self._end - self._position
        parts = []
        if behind > 0:
            parts.append(self._kept[len(self._kept) - behind :][:size])
        if behind >= 0:
            missing = size - sum(map(len, parts))
            while missing > 0 and (data := self._load(min(missing, _CHUNK_BYTES))):
                parts.append(data)
                missing -= len(data)
        read = b"".join(parts)
        self._position += len(read)
        return read

"""An object as a seekable file, for libraries that want one: tarfile and Parquet readers."""

import io
import os
from concurrent.futures import Future

from pipeline.store import bulk

_BLOCK_BYTES = 8 * 1024 * 1024


class BlockReader(io.RawIOBase):
    """Reads an object in large blocks; the following block is fetched ahead."""

    def __init__(self, url: str, size: int) -> None:
        self._url, self._size, self._position = url, size, 0
        self._block, self._block_start = b"", 0
        self._ahead: tuple[int, Future[bytes]] | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise OSError(f"seek to {base + offset}")  # as files do; readers look for what a short file has not
        self._position = base + offset
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        """Read `size` bytes, or up to the end without one; fewer only at the end."""
        stop = self._size if size is None or size < 0 else min(self._position + size, self._size)
        parts = []
        while self._position < stop:
            if not self._block_start <= self._position < self._block_start + len(self._block):
                self._load(self._position - self._position % _BLOCK_BYTES)
            begin = self._position - self._block_start
            part = self._block[begin : begin + stop - self._position]
            parts.append(part)
            self._position += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _load(self, start: int) -> None:
        if self._ahead is not None and self._ahead[0] == start:
            self._block = self._ahead[1].result()
        else:
            self._block = self._fetch(start)
        self._block_start = start
        following = start + _BLOCK_BYTES
        self._ahead = (following, bulk.threads().submit(self._fetch, following)) if following < self._size else None

    def _fetch(self, start: int) -> bytes:
        return bulk.read_range(self._url, start, min(start + _BLOCK_BYTES, self._size))

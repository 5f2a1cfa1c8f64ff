"""Read the images of a listing in few large requests, and the next batch ahead."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa

from pipeline.errors import IgptError
from pipeline.hashing import sha256
from pipeline.images.rejection import Reason, Rejection
from pipeline.source import containers
from pipeline.source.members import member_etag
from pipeline.store import bulk
from pipeline.store.s3_reads import ReadObject

# Raw bytes of a batch; a task holds two, the one in use and the next.
_BATCH_BYTES = 16 * 1024 * 1024
_BATCH_OBJECTS = 128


class SourceChangedError(IgptError):
    """An image was replaced or removed since it was listed."""


@dataclass(frozen=True, kw_only=True)
class RawImage:
    """The bytes of one row of a listing, or the reason why they cannot be read."""

    row: int
    data: bytes
    sha256: str
    """In hex; empty without bytes."""
    rejection: Rejection | None = None


def read_images(listing: pa.Table, *, tolerant: bool) -> Iterator[RawImage]:
    """Read the rows of a listing, sorted by their position in storage.

    An image that was replaced or removed since it was listed raises SourceChangedError, or, if `tolerant`, is yielded
    with a rejection. A listing with a column sha256 is compared by that rather than by the etag. Raises IgptError when
    the store does not respond.
    """
    reader = _Reader(listing, tolerant)
    with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as ahead:
        batches = reader.batches()
        following = ahead.submit(next, batches, None)
        while (batch := following.result()) is not None:
            following = ahead.submit(next, batches, None)
            yield from batch


class _Reader:
    def __init__(self, listing: pa.Table, tolerant: bool) -> None:
        self._tolerant = tolerant
        self._urls = listing["url"].to_pylist()
        self._offsets = listing["offset"].to_pylist()
        self._lengths = listing["length"].to_pylist()
        self._etags = listing["etag"].to_pylist()
        self._problems = listing["problem"].to_pylist() if "problem" in listing.column_names else [None] * len(listing)
        self._checksums = listing["sha256"].to_pylist() if "sha256" in listing.column_names else None

    def batches(self) -> Iterator[list[RawImage]]:
        problems = [row for row, problem in enumerate(self._problems) if problem is not None]
        if problems:
            yield [self._unreadable(row) for row in problems]
        readable = [row for row, problem in enumerate(self._problems) if problem is None]
        order = sorted(readable, key=lambda row: (self._urls[row], self._offsets[row]))
        for rows in self._batch_rows(order):
            if self._offsets[rows[0]] < 0:
                yield self._objects(rows)
            else:
                yield from self._members(rows)

    def _batch_rows(self, order: list[int]) -> Iterator[list[int]]:
        """Rows that are read together: objects of their own, or members of one container.

        A container that is read from its beginning is read once, and yields its members in batches of bounded size.
        """
        batch: list[int] = []
        total = 0
        for row in order:
            container = self._container(row)
            full = len(batch) >= _BATCH_OBJECTS or total + self._lengths[row] > _BATCH_BYTES
            if batch and container == self._container(batch[-1]) and container and containers.is_sequential(container):
                full = False
            if batch and (full or container != self._container(batch[-1])):
                yield batch
                batch, total = [], 0
            batch.append(row)
            total += self._lengths[row]
        if batch:
            yield batch

    def _unreadable(self, row: int) -> RawImage:
        is_all = self._offsets[row] < 0
        reason = Reason.DAMAGED_CONTAINER if is_all else Reason.UNREADABLE_MEMBER
        rejection = Rejection(reason=reason, detail=str(self._problems[row]))
        return RawImage(row=row, data=b"", sha256="", rejection=rejection)

    def _container(self, row: int) -> str | None:
        return self._urls[row] if self._offsets[row] >= 0 else None

    def _objects(self, rows: list[int]) -> list[RawImage]:
        results = bulk.read_objects([self._urls[row] for row in rows], [self._lengths[row] for row in rows])
        images = []
        for row, result in zip(rows, results, strict=True):
            if isinstance(result, ReadObject):
                checksum = sha256(result.data)
                if self._is_listed(row, result, checksum):
                    images.append(RawImage(row=row, data=result.data, sha256=checksum))
                else:
                    images.append(self._changed(row, Reason.REPLACED, "replaced since it was listed"))
            elif isinstance(result, FileNotFoundError):
                images.append(self._changed(row, Reason.UNREADABLE, "removed since it was listed"))
            elif isinstance(result, PermissionError):
                rejection = Rejection(reason=Reason.UNREADABLE, detail=f"not readable: {result}")
                images.append(RawImage(row=row, data=b"", sha256="", rejection=rejection))
            else:
                raise result
        return images

    def _is_listed(self, row: int, read: ReadObject, checksum: str) -> bool:
        """Whether an object is the one that was listed."""
        if self._checksums is not None:
            return checksum == self._checksums[row]
        return read.etag == self._etags[row] and len(read.data) == self._lengths[row]

    def _members(self, rows: list[int]) -> Iterator[list[RawImage]]:
        url = self._urls[rows[0]]
        try:
            parts = containers.read_members(
                url, [self._offsets[row] for row in rows], [self._lengths[row] for row in rows]
            )
            done = 0
            for part in parts:
                part_rows = rows[done : done + len(part)]
                done += len(part)
                yield [self._member(row, data) for row, data in zip(part_rows, part, strict=True)]
        except (FileNotFoundError, EOFError):
            yield [self._changed(row, Reason.UNREADABLE, f"{url} was removed since it was listed") for row in rows]

    def _member(self, row: int, data: bytes) -> RawImage:
        checksum = sha256(data)
        if member_etag(checksum) != self._etags[row]:
            return self._changed(row, Reason.REPLACED, "its container was replaced since it was listed")
        return RawImage(row=row, data=data, sha256=checksum)

    def _changed(self, row: int, reason: Reason, what: str) -> RawImage:
        if not self._tolerant:
            raise SourceChangedError(f"{self._urls[row]}: {what}; run the build again")
        return RawImage(row=row, data=b"", sha256="", rejection=Rejection(reason=reason, detail=what))

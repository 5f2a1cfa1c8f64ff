"""Divide images into parts of a bounded number, each identified by its content: for work on every image, exactly once.

Here are the parts of a snapshot; those of raw images are in pictures/raw_parts.py.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from pipeline.dataset import index, record
from pipeline.dataset.record import Record
from pipeline.dataset.snapshot import ShardEntry, Snapshot
from pipeline.errors import IgptError
from pipeline.hashing import digest
from pipeline.samples.shard_cache import ShardCache

_CACHE_BYTES = 8 << 30  # of shards that a node keeps


@dataclass(frozen=True, kw_only=True)
class Part:
    """Some images of a source, one after the other."""

    number: int
    digest: str
    """SHA-256, in hex, of what decides its rows."""
    images: int
    content: Any
    """What the source's reader needs; whole only after `PartSource.fill`."""
    isolated: bool = False
    """Whether images are decoded in a child process: after a task has died once."""


@dataclass(frozen=True, kw_only=True)
class RejectedImage:
    """An image that cannot be read, and why."""

    key: str
    uri: str
    reason: str
    detail: str


@dataclass(frozen=True, kw_only=True)
class PartImages:
    """The images of a part, as tokens of a snapshot or as raw pictures of one size; N may be less than asked for."""

    keys: list[str]
    uris: list[str]
    """Addresses of the raw images."""
    splits: list[str | None]
    labels: list[str | None]
    """Names of classes."""
    tokens_NT: np.ndarray | None = None
    """uint16, in raster order."""
    pictures_NHW3: np.ndarray | None = None
    """uint8."""
    rejected: tuple[RejectedImage, ...] = ()


class PartReader(Protocol):
    """Reads parts, in any process."""

    def read(self, part: Part) -> PartImages:
        """The images of a part that was filled. Raises IgptError when they are gone or damaged."""
        ...


class PartSource(Protocol):
    """Images that can be divided into parts, always into the same ones."""

    @property
    def reader(self) -> PartReader:
        """What reads the parts; it is sent to other processes."""
        ...

    @property
    def gives_pictures(self) -> bool:
        """Whether the images are pictures rather than tokens."""
        ...

    @property
    def identity(self) -> dict[str, object]:
        """What was asked for, as JSON: the work of another identity is other work."""
        ...

    def plan(self, most: int) -> list[Part]:
        """The parts of at most so many images, to be filled. Raises IgptError when there are no images."""
        ...

    def fill(self, parts: Iterable[Part]) -> Iterator[Part]:
        """The parts with their contents, one by one."""
        ...


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """Some samples of a shard."""

    shard: ShardEntry
    first: int
    last: int


@dataclass(frozen=True, kw_only=True)
class SnapshotReader:
    """Reads parts of a snapshot."""

    snapshot: Snapshot
    """Without its shards, which the parts name."""
    addresses: Record | None
    """Where the raw images are today."""

    def read(self, part: Part) -> PartImages:
        """The samples of a part, by their keys in the shard: with random crops KEY-003."""
        rows: _Rows = part.content
        cache = ShardCache(self.snapshot, limit_bytes=_CACHE_BYTES)
        view = cache.open(rows.shard)
        chosen = slice(rows.first, rows.last)
        keys = [key.decode() for key in view.view.keys_N[chosen].tolist()]
        labels_N, tokens_NHW = view.labels_N[chosen], np.array(view.tokens_NHW[chosen])
        cache.close(rows.shard)
        table = index.read(self.snapshot.dataset, rows.shard.index_path, ("key", "uri"))
        table = index.with_addresses(table, self.addresses)
        uri_of = dict(zip(table["key"].to_pylist(), table["uri"].to_pylist(), strict=True))
        classes = self.snapshot.classes
        return PartImages(
            keys=keys,
            uris=[uri_of[key.partition("-")[0]] for key in keys],
            splits=[rows.shard.split] * len(keys),
            labels=[None if label < 0 else classes[label] for label in labels_N.tolist()],
            tokens_NT=tokens_NHW.reshape(len(keys), -1),
        )


@dataclass(frozen=True, kw_only=True)
class SnapshotParts:
    """The samples of a snapshot, or of one split, a shard after the other."""

    snapshot: Snapshot
    split: str | None

    @property
    def reader(self) -> SnapshotReader:
        """What reads the parts. Reads the record of where raw images are."""
        addresses = record.of_addresses(self.snapshot)
        return SnapshotReader(snapshot=replace(self.snapshot, shards=()), addresses=addresses)

    @property
    def gives_pictures(self) -> bool:
        """No: shards hold tokens."""
        return False

    @property
    def identity(self) -> dict[str, object]:
        """The content of the snapshot, and the split."""
        return {"content_digest": self.snapshot.content_digest, "split": self.split}

    def plan(self, most: int) -> list[Part]:
        """The parts, none of which has samples of two shards. Raises IgptError when there are no samples."""
        if self.split is not None:
            shards = self.snapshot.of_split(self.split)
        else:
            shards = tuple(shard for shard in self.snapshot.shards if shard.samples)
        if not shards:
            raise IgptError(f"{self.snapshot.dataset}: snapshot {self.snapshot.number} has no images")
        ranges = [
            _Rows(shard=shard, first=first, last=min(first + most, shard.samples))
            for shard in shards
            for first in range(0, shard.samples, most)
        ]
        return [
            Part(
                number=number,
                digest=digest([rows.shard.sha256, rows.first, rows.last]),
                images=rows.last - rows.first,
                content=rows,
            )
            for number, rows in enumerate(ranges)
        ]

    def fill(self, parts: Iterable[Part]) -> Iterator[Part]:
        """The parts as they are: their contents are small."""
        yield from parts

"""Images with the same bytes: one of each set is kept, the others are rejected as duplicates of it."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.dataset import erasures, index
from pipeline.dataset.erasures import Tombstones
from pipeline.dataset.keys import Keys, match
from pipeline.dataset.snapshot import SPLITS, Snapshot
from pipeline.hashing import sha256
from pipeline.progress import Progress
from pipeline.source.checksums import checksums_of
from pipeline.source.listing import Listing, Rows

_ROWS_AT_ONCE = 50_000
_EMPTY = np.frombuffer(bytes.fromhex(sha256(b"")[:32]), ">u8")


@dataclass(frozen=True, kw_only=True)
class _Checksums:
    """The first 128 bits of the SHA-256 of images, [N]."""

    high: np.ndarray  # uint64
    low: np.ndarray  # uint64
    known: np.ndarray  # bool, whether the image has a checksum yet

    def set(self, rows: np.ndarray, digests: list[str]) -> None:
        raw = np.frombuffer(bytes.fromhex("".join(digest[:32] for digest in digests)), ">u8").reshape(-1, 2)
        self.high[rows], self.low[rows], self.known[rows] = raw[:, 0], raw[:, 1], True


def find_duplicates(
    listing: Listing,
    rows: Rows,
    splits: np.ndarray,
    parent: Snapshot | None,
    progress: Progress,
    without: Tombstones = erasures.NONE,
) -> np.ndarray:
    """For every image the row of the image that is kept instead, -1 where it is kept itself; int64 [N].

    Among images with the same bytes, the one in the parent snapshot is kept, else one of the training split before
    validation before test: only one is kept, so no held-out image is trained on, and copies do not empty the training
    split. Copies of erased images are no duplicates of each other: the tasks that read them leave all out.
    """
    checksums = _Checksums(
        high=np.zeros(len(rows), np.uint64), low=np.zeros(len(rows), np.uint64), known=np.zeros(len(rows), bool)
    )
    in_parent = np.zeros(len(rows), bool)
    if parent is not None:
        _set_unchanged(checksums, in_parent, rows, parent)
    _set_members(checksums, listing, rows)
    _hash_others(checksums, listing, progress)
    precedence = np.array([{"train": 0, "validation": 1, "test": 2}[name] for name in SPLITS])[splits]
    order = np.lexsort((rows.keys.high, precedence, ~in_parent, checksums.low, checksums.high))
    # Empty files are no copies of an image.
    is_image = checksums.known & ((checksums.high != _EMPTY[0]) | (checksums.low != _EMPTY[1]))
    if without.contents:
        # The same 128 bits as above; a structured array compares both at once.
        raw = np.frombuffer(b"".join(content[:16] for content in without.contents), ">u8").reshape(-1, 2)
        erased = np.isin(checksums.high, raw[:, 0].astype(np.uint64))
        erased &= np.isin(checksums.low, raw[:, 1].astype(np.uint64))
        is_image &= ~erased
    order = order[is_image[order]]
    first = np.ones(len(order), bool)
    first[1:] = (np.diff(checksums.high[order]) != 0) | (np.diff(checksums.low[order]) != 0)
    kept = order[first][np.cumsum(first) - 1]
    duplicate_of = np.full(len(rows), -1)
    duplicate_of[order] = np.where(first, -1, kept)
    return duplicate_of


def _set_unchanged(checksums: _Checksums, in_parent: np.ndarray, rows: Rows, parent: Snapshot) -> None:
    """Take the checksums of unchanged images from the parent's indexes."""
    columns = ("key", "version", "sha256")
    tables = index.read_all(parent.dataset, [shard.index_path for shard in parent.shards], columns)
    for table in tables:
        positions = match(Keys.of(table["key"].to_pylist()), rows.keys)
        unchanged = (positions >= 0) & (rows.versions[positions] == table["version"].to_numpy())
        checksums.set(positions[unchanged], table["sha256"].filter(pa.array(unchanged)).to_pylist())
        in_parent[positions[unchanged]] = True


def _set_members(checksums: _Checksums, listing: Listing, rows: Rows) -> None:
    """The etags of container members are checksums already."""
    members = np.flatnonzero((rows.groups >= 0) & ~checksums.known)
    for start in range(0, len(members), _ROWS_AT_ONCE):
        part = members[start : start + _ROWS_AT_ONCE]
        checksums.set(part, listing.take(part)["etag"].to_pylist())


def _hash_others(checksums: _Checksums, listing: Listing, progress: Progress) -> None:
    unknown = np.flatnonzero(~checksums.known)
    for place, digest in checksums_of(listing, unknown, progress):
        if digest:
            checksums.set(unknown[place : place + 1], [digest])

"""Images whose tag in the store changed although their bytes did not: after a touch, a chmod, a copy.

Times and sizes decide what is read again; the SHA-256 decides whether it changed.
"""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.dataset import index
from pipeline.dataset.keys import DUPLICATE, ParentRows, match, version_of
from pipeline.dataset.snapshot import Snapshot
from pipeline.progress import Progress
from pipeline.source.checksums import checksums_of
from pipeline.source.listing import Listing, Rows
from pipeline.store import local_files

_COLUMNS = ("key", "version", "etag", "bytes", "sha256")


@dataclass(frozen=True, kw_only=True)
class _Known:
    """What the snapshot knows of an image."""

    version: int
    etag: str
    bytes: int
    sha256: str | None


def recognize(
    listing: Listing,
    rows: Rows,
    parent: Snapshot,
    before: ParentRows,
    *,
    verify_bytes: bool,
    accept_earlier_tags: bool,
    progress: Progress,
) -> np.ndarray:
    """The version of every image, uint64 [N]: the parent's for images whose bytes, label and columns are the parent's.

    `before` are the images of the parent. With `verify_bytes` all of them are read, and one that changed while its tag
    did not gets a version of its own. `accept_earlier_tags`: the parent was made when the tag of a local file did not
    have the time of its inode. Members of containers are known by their bytes already.
    """
    versions = rows.versions.copy()
    positions = match(rows.keys, before.keys)
    single = (positions >= 0) & (rows.groups < 0)
    old = before.versions[positions] if len(before) else np.zeros(len(rows), np.uint64)
    same = (old == versions) | (old ^ DUPLICATE == versions)
    chosen = np.flatnonzero(single if verify_bytes else single & ~same)
    # Of each image that is read: its row, the version that it had, and the SHA-256. In arrays, for all may be touched.
    to_read, bases, expected = array("q"), array("Q"), bytearray()
    for row, known, listed in _compared(listing, parent, before, chosen, positions):
        base = _base_version(known, listed, int(versions[row]))
        if base is None:
            continue  # another label, or other columns
        is_duplicate = base != known.version
        has_earlier_tag = accept_earlier_tags and local_files.earlier_tag(listed["etag"]) == known.etag
        # Whether a duplicate is still one is found out apart, from its bytes.
        if is_duplicate or (has_earlier_tag and not verify_bytes):
            versions[row] = base
        elif known.sha256 and known.bytes == listed["length"]:
            to_read.append(row)
            bases.append(base)
            expected += bytes.fromhex(known.sha256)
    for place, checksum in checksums_of(listing, np.frombuffer(to_read, np.int64), progress):
        row, base = to_read[place], bases[place]
        if bytes.fromhex(checksum) == expected[32 * place : 32 * place + 32]:
            versions[row] = base
        elif checksum and versions[row] == base:
            versions[row] ^= np.uint64(int(checksum[:16], 16))
    return versions


def _compared(
    listing: Listing, parent: Snapshot, before: ParentRows, chosen: np.ndarray, positions: np.ndarray
) -> Iterator[tuple[int, _Known, dict[str, Any]]]:
    """The chosen rows, with what the parent knows of each and the row of the listing; a shard at a time."""
    shard_of = before.shards[positions[chosen]] if len(chosen) else np.zeros(0, np.int32)
    numbers = np.unique(shard_of)
    groups = [chosen[shard_of == number] for number in numbers]
    for number, group, table in zip(numbers.tolist(), groups, listing.gather(groups), strict=True):
        known = _known_of(parent, number)
        for row, listed in zip(group.tolist(), table.to_pylist(), strict=True):
            if listed["key"] in known:
                yield row, known[listed["key"]], listed


def _known_of(parent: Snapshot, shard: int) -> dict[str, _Known]:
    """The images of a shard and its quarantine, by key."""
    entry = parent.shards[shard]
    paths = [path for path in (entry.index_path, entry.quarantine_path) if path is not None]
    tables: list[pa.Table] = list(index.read_all(parent.dataset, paths, _COLUMNS))
    return {row.pop("key"): _Known(**row) for table in tables for row in table.to_pylist()}


def _base_version(known: _Known, listed: dict[str, Any], version: int) -> int | None:
    """The version of an image in the parent without the mark of a duplicate; None for another label or other columns.

    `version` is that of the listing. Versions contain label and columns, so the one with the parent's tag is compared.
    """
    with_its_tag = version_of(known.etag, known.bytes, listed["label"], listed["kept"])
    candidates = (with_its_tag, version)
    return next((it for it in candidates if known.version in (it, it ^ int(DUPLICATE))), None)

"""Decode images in quarantine again, and take those that can be decoded now out of it."""

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.build.decode_rows import decode_rows
from pipeline.build.source_state import SourceState
from pipeline.cluster import tasks
from pipeline.config import DatasetConfig
from pipeline.dataset import index
from pipeline.dataset.keys import Keys, match
from pipeline.dataset.snapshot import ShardEntry, Snapshot
from pipeline.hashing import sha256
from pipeline.images.decode import Pictures
from pipeline.images.rejection import Reason
from pipeline.partition import divide
from pipeline.progress import Progress
from pipeline.store import objects

_IMAGES_PER_TASK = 64


@dataclass(frozen=True, kw_only=True)
class Retried:
    """The outcome of decoding the images in quarantine again, except duplicates."""

    tried: int
    gone: int
    """Number of those that are no longer in the source."""
    rows: np.ndarray  # int64 [n], the rows of the listing that can be decoded now
    keys: Keys  # [n]
    shards: np.ndarray  # int64 [n], positions of their shards in the parent


@dataclass(frozen=True, kw_only=True)
class SmallerQuarantine:
    """A shard's entry without some rejected images, and the file of its quarantine, if that has images left."""

    entry: ShardEntry
    data: bytes | None


def retry(state: SourceState, config: DatasetConfig, progress: Progress, *, unchanged_only: bool = False) -> Retried:
    """Decode the parent's images in quarantine again; with `unchanged_only`, only those that a rerun would copy."""
    assert state.parent is not None
    keys, shards = _quarantined(state.parent)
    rows = match(keys, state.rows.keys)
    present = np.flatnonzero(rows >= 0)
    if unchanged_only and len(present):
        before = state.parent_rows
        positions = match(keys.take(present), before.keys)
        same_split = index.splits_of(state.parent, before)[positions] == state.splits[rows[present]]
        present = present[same_split & (before.versions[positions] == state.rows.versions[rows[present]])]
    recovered = present[_decodable(state, rows[present], config, progress)]
    return Retried(
        tried=len(present),
        gone=int((rows < 0).sum()),
        rows=rows[recovered],
        keys=keys.take(recovered),
        shards=shards[recovered],
    )


def keys_of(parent: Snapshot) -> Keys:
    """The keys of all images in a snapshot's quarantine."""
    paths = [shard.quarantine_path for shard in parent.shards if shard.quarantine_path is not None]
    tables = index.read_all(parent.dataset, paths, ("key",))
    return Keys.of([key for table in tables for key in table["key"].to_pylist()])


def _quarantined(parent: Snapshot) -> tuple[Keys, np.ndarray]:
    """The keys of the images in quarantine, except duplicates of any kind, and the positions of their shards."""
    shards = [number for number, shard in enumerate(parent.shards) if shard.quarantine_path is not None]
    paths = [str(parent.shards[number].quarantine_path) for number in shards]
    keys: list[str] = []
    numbers: list[int] = []
    for number, table in zip(shards, index.read_all(parent.dataset, paths, ("key", "reason")), strict=True):
        for key, reason in zip(table["key"].to_pylist(), table["reason"].to_pylist(), strict=True):
            if reason not in (Reason.DUPLICATE, Reason.NEAR_DUPLICATE):
                keys.append(key)
                numbers.append(number)
    return Keys.of(keys), np.array(numbers, np.int64)


def _decodable(state: SourceState, rows: np.ndarray, config: DatasetConfig, progress: Progress) -> np.ndarray:
    """Whether each row can be decoded now; bool [n]."""
    decodable = np.zeros(len(rows), bool)
    if not len(rows):
        return decodable
    parts = divide(np.arange(len(rows)), _IMAGES_PER_TASK)
    progress("retry", 0, len(rows), "images")
    calls = ((table,) for table in state.listing.gather([rows[part] for part in parts]))
    done = 0
    for number, decoded in tasks.map_tasks(_decoded_rows, calls, shared=(config,)):
        decodable[parts[number][decoded]] = True
        done += len(parts[number])
        progress("retry", done, len(rows), "images")
    return decodable


def _decoded_rows(listing: pa.Table, config: DatasetConfig) -> list[int]:
    """The rows of a listing that can be read and decoded."""
    outcomes = decode_rows(listing, config, "train", tolerant=True, isolated=True)
    return [decoded.row for decoded in outcomes if isinstance(decoded.outcome, Pictures)]


def without(parent: Snapshot, retried: Retried) -> list[SmallerQuarantine]:
    """The shards of the parent, their quarantines without the images that can be decoded now."""
    shards = [SmallerQuarantine(entry=entry, data=None) for entry in parent.shards]
    for number in np.unique(retried.shards).tolist():
        recovered = set(retried.keys.take(np.flatnonzero(retried.shards == number)).text())
        shards[number] = _without(parent.dataset, parent.shards[number], recovered)
    return shards


def _without(dataset: str, entry: ShardEntry, keys: set[str]) -> SmallerQuarantine:
    assert entry.quarantine_path is not None
    before = index.read(dataset, entry.quarantine_path)
    remaining = before.filter(pc.invert(pc.is_in(before["key"], pa.array(sorted(keys), pa.string()))))
    rejected = dict(sorted(Counter(remaining["reason"].to_pylist()).items()))
    if not len(remaining):
        return SmallerQuarantine(
            entry=replace(entry, rejected=rejected, quarantine=None, quarantine_sha256=None), data=None
        )
    content = repr((entry.quarantine, sorted(keys))).encode()
    name = f"{entry.name.rpartition('-')[0]}-{sha256(content)[:16]}"
    data = index.table_to_bytes(remaining)
    smaller = replace(entry, rejected=rejected, quarantine=name, quarantine_sha256=sha256(data))
    return SmallerQuarantine(entry=smaller, data=data)


def write(dataset: str, shards: list[SmallerQuarantine]) -> None:
    """Write the quarantines that became smaller."""
    for shard in shards:
        if shard.data is not None and shard.entry.quarantine_path is not None:
            objects.write_bytes(objects.join(dataset, shard.entry.quarantine_path), shard.data)

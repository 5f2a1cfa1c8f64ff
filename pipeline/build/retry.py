"""Retry the images in quarantine: those that can be decoded now go into new shards."""

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from pipeline.build.decode_rows import decode_rows
from pipeline.build.plan import Planner
from pipeline.build.run_plan import check_counts, make_shards, sort_shards
from pipeline.build.source_state import SourceState, read_source_state
from pipeline.cluster import tasks
from pipeline.config import DatasetConfig
from pipeline.dataset import index
from pipeline.dataset.keys import Keys, ParentRows, match, source_digest
from pipeline.dataset.publish import commit
from pipeline.dataset.snapshot import ShardEntry, Snapshot
from pipeline.errors import IgptError
from pipeline.hashing import sha256
from pipeline.images.decode import Pictures
from pipeline.images.rejection import Reason
from pipeline.partition import divide
from pipeline.progress import Progress, silent
from pipeline.store import lease, objects, presence

_IMAGES_PER_TASK = 64


@dataclass(frozen=True, kw_only=True)
class RetryResult:
    """The outcome of retrying the images in quarantine."""

    snapshot: Snapshot
    """The new snapshot, or the old one when no image was recovered."""
    tried: int
    recovered: int
    gone: int
    """Number of images in quarantine that are no longer in the source; the next build drops them."""


def retry_failed(config: DatasetConfig, *, progress: Progress = silent) -> RetryResult:
    """Decode the newest snapshot's images in quarantine again, except duplicates, and publish the recovered ones.

    Other changes of the source are left to the next build. Raises IgptError when there is no snapshot, when the config
    is not the snapshot's, or when a build is running.
    """
    with read_source_state(config, keep_scans=True, progress=progress) as state:
        parent = state.parent
        if parent is None:
            raise IgptError(f"{state.dataset}: no dataset snapshot there; build one with `igpt dataset build`")
        changed = [name for name, value in config.fingerprint().items() if parent.config.get(name) != value]
        if changed:
            raise IgptError(
                f"{state.dataset}: {', '.join(changed)} differ from snapshot {parent.number}'s; give its config, or "
                "run `igpt dataset build`"
            )
        quarantined, shard_of = _quarantined(parent)
        rows = match(quarantined, state.rows.keys)
        present = np.flatnonzero(rows >= 0)
        recovered = present[_decodable(state, rows[present], config, progress)]
        result = RetryResult(
            snapshot=parent, tried=len(present), recovered=len(recovered), gone=len(rows) - len(present)
        )
        if not len(recovered):
            return result
        with lease.hold(state.dataset) as held, presence.building(state.dataset):
            keys, shards = quarantined.take(recovered), shard_of[recovered]
            new = _recover(state, parent, rows[recovered], keys, shards, config, progress)
            commit(new, held.fence)
        return replace(result, snapshot=new)


def _quarantined(parent: Snapshot) -> tuple[Keys, np.ndarray]:
    """The keys of the images in quarantine, except duplicates, and the positions of their shards."""
    shards = [number for number, shard in enumerate(parent.shards) if shard.quarantine_path is not None]
    paths = [str(parent.shards[number].quarantine_path) for number in shards]
    keys: list[str] = []
    numbers: list[int] = []
    for number, table in zip(shards, index.read_all(parent.dataset, paths, ("key", "reason")), strict=True):
        for key, reason in zip(table["key"].to_pylist(), table["reason"].to_pylist(), strict=True):
            if reason != Reason.DUPLICATE:
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


def _recover(
    state: SourceState,
    parent: Snapshot,
    rows: np.ndarray,
    keys: Keys,
    shard_of: np.ndarray,
    config: DatasetConfig,
    progress: Progress,
) -> Snapshot:
    """Write the recovered rows into new shards and remove them from quarantine; returns the snapshot to commit."""
    planner = Planner(state.rows, state.splits, config, config.recipe_digest(parent.palette_sha256))
    before = index.parent_rows(parent)
    plans = planner.append(rows, parent.shards)
    results = make_shards(state, plans, config, parent.palette(), True, progress)
    entries = list(parent.shards)
    for number in np.unique(shard_of):
        recovered = set(keys.take(np.flatnonzero(shard_of == number)).text())
        entries[number] = _without(parent.dataset, entries[number], recovered)
    new = replace(
        parent,
        number=parent.number + 1,
        parent=parent.number,
        classes=state.classes,
        source_digest=_digest(state, before, parent, rows),
        shards=sort_shards([*entries, *(result.entry for result in results)]),
        scans=tuple(sorted({*parent.scans, *state.scans})),
    )
    check_counts(new, len(before), config)
    return new


def _digest(state: SourceState, before: ParentRows, parent: Snapshot, rows: np.ndarray) -> str:
    """source_digest of the new snapshot: the parent's images, the recovered ones with current versions and splits."""
    splits = index.splits_of(parent, before)
    versions = before.versions.copy()
    positions = match(state.rows.keys.take(rows), before.keys)
    versions[positions], splits[positions] = state.rows.versions[rows], state.splits[rows]
    return source_digest(before.keys, versions, splits)


def _without(dataset: str, entry: ShardEntry, keys: set[str]) -> ShardEntry:
    """Write a shard's quarantine without some images; returns the shard's new entry."""
    assert entry.quarantine_path is not None
    before = index.read(dataset, entry.quarantine_path).to_pylist()
    remaining = [row for row in before if row["key"] not in keys]
    rejected = dict(sorted(Counter(row["reason"] for row in remaining).items()))
    if not remaining:
        return replace(entry, rejected=rejected, quarantine=None, quarantine_sha256=None)
    content = repr((entry.quarantine, sorted(keys))).encode()
    name = f"{entry.name.rpartition('-')[0]}-{sha256(content)[:16]}"
    data = index.to_bytes(remaining, index.QUARANTINE)
    objects.write_bytes(objects.join(dataset, "quarantine", f"{name}.parquet"), data)
    return replace(entry, rejected=rejected, quarantine=name, quarantine_sha256=sha256(data))

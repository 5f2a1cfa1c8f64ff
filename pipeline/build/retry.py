"""Another try for what is in quarantine: images that can be read now come into shards of their own."""

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from pipeline.build.plan import Planner
from pipeline.build.run_plan import check_counts, in_order, make_shards
from pipeline.build.shard_tasks import decode_rows
from pipeline.build.source_state import Survey, survey
from pipeline.cluster import tasks
from pipeline.config import DatasetConfig
from pipeline.dataset import index
from pipeline.dataset.keys import Keys, ParentRows, match, source_digest
from pipeline.dataset.publish import commit
from pipeline.dataset.snapshot import SPLITS, ShardEntry, Snapshot
from pipeline.errors import IgptError
from pipeline.hashing import sha256
from pipeline.images.decode import Pictures, Reason
from pipeline.partition import divide
from pipeline.progress import Progress, silent
from pipeline.store import lease, objects, presence

_IMAGES_PER_TASK = 64


@dataclass(frozen=True, kw_only=True)
class RetryResult:
    """What became of the images in quarantine."""

    snapshot: Snapshot
    """The new snapshot, or the old one when nothing was mended."""
    tried: int
    mended: int
    gone: int
    """Images in quarantine that the source no longer has; the next build forgets them."""


def retry_failed(config: DatasetConfig, *, progress: Progress = silent) -> RetryResult:
    """Decode again what the newest snapshot has in quarantine, duplicates apart, and publish what is mended.

    Other changes of the source are left to the next build. Raises IgptError when there is no snapshot, when the config
    is not the snapshot's, or when a build is at work.
    """
    with survey(config, keep_scans=True, progress=progress) as found:
        parent = found.parent
        if parent is None:
            raise IgptError(f"{found.dataset}: no dataset snapshot there; build one with `igpt dataset build`")
        changed = [name for name, value in config.fingerprint().items() if parent.config.get(name) != value]
        if changed:
            raise IgptError(
                f"{found.dataset}: {', '.join(changed)} differ from snapshot {parent.number}'s; give its config, or "
                "run `igpt dataset build`"
            )
        quarantined, shard_of = _quarantined(parent)
        rows = match(quarantined, found.rows.keys)
        there = np.flatnonzero(rows >= 0)
        ok = _try(found, rows[there], config, progress)
        mended = there[ok]
        result = RetryResult(snapshot=parent, tried=len(there), mended=len(mended), gone=len(rows) - len(there))
        if not len(mended):
            return result
        with lease.hold(found.dataset) as held, presence.building(found.dataset):
            new = _mend(found, parent, rows[mended], quarantined.take(mended), shard_of[mended], config, progress)
            commit(new, held.fence)
        return replace(result, snapshot=new)


def _quarantined(parent: Snapshot) -> tuple[Keys, np.ndarray]:
    """The keys of what is in quarantine, duplicates apart, and for each the number of its shard."""
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


def _try(found: Survey, rows: np.ndarray, config: DatasetConfig, progress: Progress) -> np.ndarray:
    """Which of the rows can be decoded now; bool [n]."""
    ok = np.zeros(len(rows), bool)
    if not len(rows):
        return ok
    parts = divide(np.arange(len(rows)), _IMAGES_PER_TASK)
    progress("retry", 0, len(rows), "images")
    calls = ((table,) for table in found.listing.gather([rows[part] for part in parts]))
    done = 0
    for number, good in tasks.map_tasks(_decodable, calls, shared=(config,)):
        ok[parts[number][good]] = True
        done += len(parts[number])
        progress("retry", done, len(rows), "images")
    return ok


def _decodable(listing: pa.Table, config: DatasetConfig) -> list[int]:
    """The rows of a listing that can be read and decoded."""
    outcomes = decode_rows(listing, config, "train", tolerant=True, isolated=True)
    return [decoded.row for decoded in outcomes if isinstance(decoded.outcome, Pictures)]


def _mend(
    found: Survey,
    parent: Snapshot,
    rows: np.ndarray,
    keys: Keys,
    shard_of: np.ndarray,
    config: DatasetConfig,
    progress: Progress,
) -> Snapshot:
    """The parent with the mended rows in new shards and out of their quarantines, all but committed."""
    planner = Planner(found.rows, found.splits, config, config.recipe_digest(parent.palette_sha256))
    before = index.parent_rows(parent)
    plans = planner.append(rows, parent.shards)
    results = make_shards(found, plans, config, parent.palette(), True, progress)
    entries = list(parent.shards)
    for number in np.unique(shard_of):
        taken = set(keys.take(np.flatnonzero(shard_of == number)).text())
        entries[number] = _without(parent.dataset, entries[number], taken)
    new = replace(
        parent,
        number=parent.number + 1,
        parent=parent.number,
        classes=found.classes,
        source_digest=_digest(found, before, parent, rows),
        shards=in_order([*entries, *(result.entry for result in results)]),
        scans=tuple(sorted({*parent.scans, *found.scans})),
    )
    check_counts(new, len(before), config)
    return new


def _digest(found: Survey, before: ParentRows, parent: Snapshot, rows: np.ndarray) -> str:
    """Digest of what the new snapshot accounts for: the parent's images, the mended ones as they are now."""
    splits = np.array([SPLITS.index(shard.split) for shard in parent.shards], np.int8)[before.shards]
    versions = before.versions.copy()
    places = match(found.rows.keys.take(rows), before.keys)
    versions[places], splits[places] = found.rows.versions[rows], found.splits[rows]
    return source_digest(before.keys, versions, splits)


def _without(dataset: str, entry: ShardEntry, keys: set[str]) -> ShardEntry:
    """The entry of a shard after some images have left its quarantine, of which a new file is put."""
    assert entry.quarantine_path is not None
    before = index.read(dataset, entry.quarantine_path).to_pylist()
    left = [row for row in before if row["key"] not in keys]
    rejected = dict(sorted(Counter(row["reason"] for row in left).items()))
    if not left:
        return replace(entry, rejected=rejected, quarantine=None, quarantine_sha256=None)
    content = repr((entry.quarantine, sorted(keys))).encode()
    name = f"{entry.name.rpartition('-')[0]}-{sha256(content)[:16]}"
    data = index.to_bytes(left, index.QUARANTINE)
    objects.write_bytes(objects.join(dataset, "quarantine", f"{name}.parquet"), data)
    return replace(entry, rejected=rejected, quarantine=name, quarantine_sha256=sha256(data))

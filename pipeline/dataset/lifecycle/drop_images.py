"""Publish a snapshot without some of its images, which go into quarantine; their shards are written anew."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.dataset import index, pixel_counts, record, shards, snapshot
from pipeline.dataset.lifecycle.assemble import rules
from pipeline.dataset.publish import commit
from pipeline.dataset.record import Publisher
from pipeline.dataset.shards import ShardView
from pipeline.dataset.snapshot import SCHEMA, ShardEntry, Snapshot
from pipeline.errors import IgptError
from pipeline.hashing import sha256
from pipeline.store import lease, objects, presence


@dataclass(frozen=True, kw_only=True)
class _Smaller:
    """A shard without some images."""

    entry: ShardEntry
    dropped_pixels: np.ndarray | None  # int64 [T, K]


def drop_images(dataset: str, details: Mapping[str, str], reason: str, publisher: Publisher) -> Snapshot:
    """Publish the newest snapshot without the images of some keys; `details` says for each key why it is dropped.

    A rerun of the build keeps them out, until their shards are made anew. Raises IgptError when a shard has several
    samples of an image, when a file is missing or damaged, or when a build is running.
    """
    with lease.hold(dataset) as held, presence.building(dataset):
        newest = snapshot.read(dataset)
        changed = [_without(newest, shard, details, reason) for shard in newest.shards]
        counts = dict(newest.pixel_counts)
        for split in snapshot.SPLITS:
            dropped = [one.dropped_pixels for one in changed if one.entry.split == split]
            missing = [pixels for pixels in dropped if pixels is not None]
            if missing and (known := counts.pop(split, None)) is not None:
                left = pixel_counts.read(newest.dataset, known) - sum(missing)
                if left.any():
                    counts[split] = pixel_counts.write(newest.dataset, left)
        entries = tuple(one.entry for one in changed)
        new = replace(newest, schema=SCHEMA, shards=entries, pixel_counts=counts, earlier_digests=())
        new = new.following(newest)
        commit(new, held.fence, _record(newest, publisher))
    return new


def _record(newest: Snapshot, publisher: Publisher) -> record.Record | None:
    known = record.read(newest)
    return None if known is None else known.published(publisher)


def _without(newest: Snapshot, shard: ShardEntry, details: Mapping[str, str], reason: str) -> _Smaller:
    dataset = newest.dataset
    table = index.read(dataset, shard.index_path)
    keys = table["key"].to_pylist()
    kept = np.array([key not in details for key in keys], bool)
    if kept.all():
        return _Smaller(entry=shard, dropped_pixels=None)
    if shard.samples != shard.images:
        raise IgptError(f"{dataset}: {shard.name} has several samples of an image; only those without are dropped")
    data = objects.read_bytes(objects.join(dataset, shard.path))
    if sha256(data) != shard.sha256:
        raise IgptError(f"{dataset}: {shard.path} is damaged (another checksum); see `igpt dataset verify`")
    view = ShardView(np.frombuffer(data, np.uint8), samples=shard.samples, side=newest.resolution, name=shard.path)
    dropped = [row for row, key in zip(table.to_pylist(), keys, strict=True) if key in details]
    quarantine = _quarantine(newest, shard, table, dropped, details, reason)
    names = [key for key in keys if key not in details]
    tar = shards.encode(names, view.tokens_NHW[kept], view.labels_N[kept])
    name = f"{shard.split}-{shard.number:06d}-{sha256(repr((shard.name, reason, sorted(details))).encode())[:16]}"
    remaining = table.filter(pa.array(kept))
    entry: dict[str, Any] = {
        "name": name,
        "split": shard.split,
        "samples": len(names),
        "images": len(names),
        "bytes": len(tar),
        "sha256": sha256(tar),
        "rejected": dict(sorted((Counter(shard.rejected) + Counter({reason: len(dropped)})).items())),
        "quarantine": name,
        "quarantine_sha256": sha256(quarantine),
        "decoding": rules(remaining),
    }
    rows = index.table_to_bytes(index.with_metadata(remaining, entry=entry))
    written = ShardEntry.from_fields(entry, index_sha256=sha256(rows))
    for path, content in ((written.path, tar), (str(written.quarantine_path), quarantine), (written.index_path, rows)):
        objects.write_bytes(objects.join(dataset, path), content)
    pixels = None
    if pixel_counts.are_kept(newest.resolution, newest.colours):
        pixels = pixel_counts.count(view.tokens_NHW[~kept], newest.colours)
    return _Smaller(entry=written, dropped_pixels=pixels)


def _quarantine(
    newest: Snapshot,
    shard: ShardEntry,
    table: pa.Table,
    dropped: list[dict[str, Any]],
    details: Mapping[str, str],
    reason: str,
) -> bytes:
    """The quarantine of a shard with the dropped images in it."""
    before = [] if shard.quarantine_path is None else index.read(newest.dataset, shard.quarantine_path).to_pylist()
    kept_columns = [field for field in table.schema if field.name not in index.INDEX.names]
    schema = pa.schema([*index.QUARANTINE, *kept_columns])
    rows = [{**row, "reason": reason, "detail": details[row["key"]]} for row in dropped]
    columns = [{name: row.get(name) for name in schema.names} for row in (*before, *rows)]
    quarantine = pa.Table.from_pylist(columns, schema=schema)
    return index.table_to_bytes(index.with_metadata(quarantine, relative=index.has_relative_addresses(table)))

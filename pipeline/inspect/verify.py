"""Verify a snapshot: compare every checksum and count of its manifest with the stored files."""

import io
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow.parquet as pq

from pipeline.dataset import index, pixel_counts, record, snapshot
from pipeline.dataset.keys import source_digest
from pipeline.dataset.shards import ShardView
from pipeline.dataset.snapshot import ShardEntry, Snapshot
from pipeline.errors import IgptError
from pipeline.hashing import sha256
from pipeline.progress import Progress, silent
from pipeline.store import objects

_SHARDS_AT_ONCE = 4


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A difference between a file and the manifest."""

    path: str
    """The file, relative to the dataset."""
    what: str


def verify(chosen: Snapshot, *, progress: Progress = silent) -> list[Problem]:
    """Read all files that a snapshot names and compare them with the manifest; returns the problems."""
    problems: list[Problem] = []
    try:
        colours = len(chosen.palette())
        if colours != chosen.colours:
            what = f"it has {colours} colours, the manifest says {chosen.colours}"
            problems.append(Problem(path=snapshot.palette_path(chosen.palette_sha256), what=what))
    except (IgptError, FileNotFoundError) as error:
        problems.append(Problem(path=snapshot.palette_path(chosen.palette_sha256), what=_describe(error)))
    progress("verify", 0, len(chosen.shards), "shards")
    with ThreadPoolExecutor(_SHARDS_AT_ONCE) as pool:
        checks = pool.map(lambda shard: list(_check_shard(chosen, shard)), chosen.shards)
        for done, in_shard in enumerate(checks, 1):
            problems.extend(in_shard)
            progress("verify", done, len(chosen.shards), "shards")
    beside = record.read(chosen)
    for path in (*map(snapshot.scan_path, chosen.scans), *(() if beside is None else beside.paths)):
        if objects.size(objects.join(chosen.dataset, path)) is None:
            problems.append(Problem(path=path, what="it is missing"))
    if not problems:
        problems.extend(_check_whole(chosen))
    for split in chosen.pixel_counts if not problems else ():
        problems.extend(_check_pixels(chosen, split))
    return problems


def _check_shard(chosen: Snapshot, shard: ShardEntry) -> Iterator[Problem]:
    sizes = {shard.path: shard.bytes}
    checksums = {shard.path: shard.sha256, shard.index_path: shard.index_sha256}
    if shard.quarantine_path is not None:
        checksums[shard.quarantine_path] = shard.quarantine_sha256 or ""
    contents: dict[str, bytes] = {}
    for path, checksum in checksums.items():
        try:
            data = objects.read_bytes(objects.join(chosen.dataset, path))
        except FileNotFoundError:
            yield Problem(path=path, what="it is missing")
            continue
        if sha256(data) != checksum or len(data) != sizes.get(path, len(data)):
            yield Problem(path=path, what=f"its checksum differs from the manifest's ({len(data)} bytes)")
            continue
        contents[path] = data
    if len(contents) == len(checksums):
        yield from _check_counts(shard, contents)
        yield from _check_samples(chosen, shard, contents)


def _check_counts(shard: ShardEntry, contents: dict[str, bytes]) -> Iterator[Problem]:
    rows = pq.read_metadata(io.BytesIO(contents[shard.index_path])).num_rows
    if rows != shard.images:
        yield Problem(path=shard.index_path, what=f"it has {rows} rows, the manifest says {shard.images}")
    rejected: dict[str, int] = {}
    if shard.quarantine_path is not None:
        table = pq.read_table(io.BytesIO(contents[shard.quarantine_path]), columns=["reason"])
        rejected = dict(Counter(table["reason"].to_pylist()))
    if rejected != shard.rejected:
        path = shard.quarantine_path or shard.index_path
        yield Problem(path=path, what=f"images were rejected for {rejected}, the manifest says {shard.rejected}")


def _check_samples(chosen: Snapshot, shard: ShardEntry, contents: dict[str, bytes]) -> Iterator[Problem]:
    data = np.frombuffer(contents[shard.path], np.uint8)
    try:
        view = ShardView(data, samples=shard.samples, side=chosen.resolution, name=shard.path)
    except IgptError as error:
        yield Problem(path=shard.path, what=str(error))
        return
    if not shard.samples:
        return
    if int(view.tokens_NHW.max()) >= chosen.colours:
        yield Problem(path=shard.path, what=f"it has tokens beyond the {chosen.colours} colours of the palette")
    rows = pq.read_table(io.BytesIO(contents[shard.index_path]), columns=["key", "label"])
    crops = shard.samples // shard.images
    keys = [key.decode().split("-")[0] for key in view.keys_N[::crops]]
    if keys != rows["key"].to_pylist() or view.labels_N[::crops].tolist() != rows["label"].to_pylist():
        yield Problem(path=shard.index_path, what=f"its keys or labels differ from {shard.path}")


def _check_pixels(chosen: Snapshot, split: str) -> Iterator[Problem]:
    path = pixel_counts.path_of(chosen.pixel_counts[split])
    try:
        counts_TK = chosen.counted_pixels(split)
    except IgptError as error:
        yield Problem(path=path, what=str(error))
        return
    assert counts_TK is not None
    wanted = (chosen.resolution**2, chosen.colours)
    if counts_TK.shape != wanted or (counts_TK.sum(1) != chosen.samples(split)).any():
        yield Problem(path=path, what=f"it does not count the {chosen.samples(split)} samples of {split}")


def _check_whole(chosen: Snapshot) -> Iterator[Problem]:
    """Check all shards together: no image is in two, and their images are those of the manifest."""
    rows = index.parent_rows(chosen)
    path = snapshot.snapshot_path(chosen.number)
    if len(np.unique(rows.keys.high)) != len(rows):
        yield Problem(path=path, what="an image is in two shards, or in a shard and in quarantine")
    if source_digest(rows.keys, rows.versions, index.splits_of(chosen, rows)) != chosen.source_digest:
        yield Problem(path=path, what="the images of its shards are not those of its source_digest")


def _describe(error: Exception) -> str:
    return "it is missing" if isinstance(error, FileNotFoundError) else f"it cannot be read ({error})"

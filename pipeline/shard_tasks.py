"""What one preprocessing task does, without the scheduler that runs it: count colours, or make one shard.

A task is idempotent. It writes its shard whole, then its quarantine, then its index: a shard whose index is in place is
done, and a task that finds it there only reads what it needs for the manifest.
"""

import hashlib
import io
import json
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import images, palette, shards, storage
from pipeline.config import DatasetConfig
from pipeline.images import Picture, Reason, Rejection
from pipeline.snapshot import ShardEntry

# Raw bytes that a task holds at a time; with one picture being decoded this bounds a worker's memory.
_BATCH_BYTES = 32 * 1024 * 1024
_METADATA_KEY = b"igpt"


@dataclass(frozen=True, kw_only=True)
class ShardResult:
    """What a finished shard adds to the snapshot, and where its time went."""

    entry: ShardEntry
    rejected: dict[str, int]
    """Rejected images by reason."""
    reused: bool = False
    """Whether the shard was found finished."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Time by step: read, decode, quantize, write."""


class _Stopwatch:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._since = time.perf_counter()

    def lap(self, step: str) -> None:
        now = time.perf_counter()
        self.seconds[step] += now - self._since
        self._since = now


def decode_rows(
    listing: pa.Table, config: DatasetConfig, stopwatch: _Stopwatch | None = None
) -> Iterator[tuple[int, Picture | Rejection, bytes]]:
    """Read and decode the rows of a listing; yields (row, outcome, raw bytes), in the order of their place in storage.

    Raises what the store raises when it does not answer; an object that is gone or forbidden is a Rejection.
    """
    stopwatch = stopwatch or _Stopwatch()
    urls, offsets, lengths = (listing[name].to_pylist() for name in ("url", "offset", "length"))
    pending = sorted(range(len(urls)), key=lambda row: (urls[row], offsets[row]))
    while pending:
        total = count = 0
        while count < len(pending) and (count == 0 or total + lengths[pending[count]] <= _BATCH_BYTES):
            total += lengths[pending[count]]
            count += 1
        batch, pending = pending[:count], pending[count:]
        answers = storage.read_many(
            [urls[row] for row in batch], [offsets[row] for row in batch], [lengths[row] for row in batch]
        )
        stopwatch.lap("read")
        for row, data in zip(batch, answers, strict=True):
            if isinstance(data, FileNotFoundError | PermissionError):
                yield row, Rejection(reason=Reason.UNREADABLE, detail=str(data)), b""
            elif isinstance(data, Exception):
                raise data
            else:
                outcome = images.decode(
                    data,
                    resolution=config.resolution,
                    smallest_side=config.smallest_side,
                    max_pixels=config.max_pixels,
                )
                stopwatch.lap("decode")
                yield row, outcome, data


def count_colours(listing: pa.Table, config: DatasetConfig) -> palette.ColourHistogram:
    """Count the colours of the rows of a listing; rejected images count nothing here, their shard reports them."""
    histogram = palette.ColourHistogram()
    for _, outcome, _ in decode_rows(listing, config):
        if isinstance(outcome, Picture):
            histogram.add(outcome.pixels)
    return histogram


def make_shard(
    dataset: str,
    name: str,
    split: str,
    listing: pa.Table,
    labels: np.ndarray,
    config: DatasetConfig,
    table: np.ndarray,
) -> ShardResult:
    """Make one shard from the rows of a listing, in their order, and put it with its index in the dataset.

    `labels` is int64 [n]; `table` is the palette's lookup table, uint16 [2^24]. Raises OSError when the store fails or
    holds other bytes than were put.
    """
    index_url = storage.join(dataset, "index", f"{name}.parquet")
    shard_url = storage.join(dataset, "shards", f"{name}.tar")
    finished = _finished(index_url, shard_url)
    if finished is not None:
        return finished
    stopwatch = _Stopwatch()
    keys = listing["key"].to_pylist()
    tokens = np.zeros((len(keys), config.resolution, config.resolution), np.uint16)
    accepted: dict[int, tuple[str, int, int]] = {}
    rejections: dict[int, Rejection] = {}
    for row, outcome, data in decode_rows(listing, config, stopwatch):
        if isinstance(outcome, Rejection):
            rejections[row] = outcome
            continue
        tokens[row] = palette.quantize(outcome.pixels, table)
        accepted[row] = (hashlib.sha256(data).hexdigest(), outcome.width, outcome.height)
        stopwatch.lap("quantize")
    rows = sorted(accepted)
    tar = shards.encode([keys[row] for row in rows], tokens[rows], labels[rows])
    entry = ShardEntry(
        name=name,
        split=split,
        samples=len(rows),
        bytes=len(tar),
        sha256=hashlib.sha256(tar).hexdigest(),
        rejected=len(rejections),
    )
    result = ShardResult(entry=entry, rejected=dict(Counter(r.reason.value for r in rejections.values())))
    storage.write_bytes(shard_url, tar)
    if storage.size(shard_url) != len(tar):
        raise OSError(f"{shard_url}: {storage.size(shard_url)} bytes arrived of {len(tar)}")
    if rejections:
        quarantine = _quarantine_table(listing, rejections)
        storage.write_bytes(storage.join(dataset, "quarantine", f"{name}.parquet"), _parquet(quarantine))
    index = _index_table(listing, labels, accepted)
    storage.write_bytes(index_url, _parquet(index, {"entry": asdict(entry), "rejected": result.rejected}))
    stopwatch.lap("write")
    return ShardResult(entry=entry, rejected=result.rejected, seconds=dict(stopwatch.seconds))


def _finished(index_url: str, shard_url: str) -> ShardResult | None:
    """The result of a shard that an earlier build finished, or None."""
    try:
        metadata = pq.read_schema(io.BytesIO(storage.read_bytes(index_url))).metadata or {}
    except FileNotFoundError:
        return None
    recorded = json.loads(metadata[_METADATA_KEY])
    entry = ShardEntry(**recorded["entry"])
    if storage.size(shard_url) != entry.bytes:
        return None
    return ShardResult(entry=entry, rejected=recorded["rejected"], reused=True)


def _uris(listing: pa.Table) -> list[str]:
    rows = zip(listing["url"].to_pylist(), listing["offset"].to_pylist(), listing["name"].to_pylist(), strict=True)
    return [url if offset < 0 else f"{url}#{name}" for url, offset, name in rows]


def _index_table(listing: pa.Table, labels: np.ndarray, accepted: dict[int, tuple[str, int, int]]) -> pa.Table:
    rows = sorted(accepted)
    taken = listing.take(pa.array(rows, pa.int64()))  # typed, for a shard whose images are all rejected
    return pa.table(
        {
            "key": taken["key"],
            "uri": _uris(taken),
            "etag": taken["etag"],
            "bytes": taken["length"],
            "sha256": pa.array([accepted[row][0] for row in rows], pa.string()),
            "label": pa.array(labels[rows], pa.int64()),
            "width": pa.array([accepted[row][1] for row in rows], pa.int32()),
            "height": pa.array([accepted[row][2] for row in rows], pa.int32()),
        }
    )


def _quarantine_table(listing: pa.Table, rejections: dict[int, Rejection]) -> pa.Table:
    rows = sorted(rejections)
    taken = listing.take(pa.array(rows, pa.int64()))  # typed, for a shard whose images are all rejected
    return pa.table(
        {
            "uri": _uris(taken),
            "etag": taken["etag"],
            "reason": [rejections[row].reason.value for row in rows],
            "detail": [rejections[row].detail for row in rows],
        }
    )


def _parquet(table: pa.Table, metadata: dict[str, object] | None = None) -> bytes:
    if metadata is not None:
        table = table.replace_schema_metadata({_METADATA_KEY: json.dumps(metadata, sort_keys=True).encode()})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()

"""The tables beside a shard: its index (a row per image in the shard) and its quarantine (a row per rejected image)."""

import io
import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.dataset.keys import Keys, ParentRows
from pipeline.dataset.snapshot import SPLITS, ShardEntry, Snapshot
from pipeline.store import objects

INDEX = pa.schema(
    [
        ("key", pa.string()),
        ("version", pa.uint64()),
        ("uri", pa.string()),  # source of the image, for people: the object, or container#member
        ("url", pa.string()),  # the object to read
        ("offset", pa.int64()),  # position in a container; -1: the image is the whole object
        ("etag", pa.string()),
        ("bytes", pa.int64()),
        ("sha256", pa.string()),
        ("label", pa.int64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
    ]
)
QUARANTINE = pa.schema(
    [
        ("key", pa.string()),
        ("version", pa.uint64()),
        ("uri", pa.string()),
        ("etag", pa.string()),
        ("bytes", pa.int64()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)
_METADATA_KEY = b"igpt"
_READS_AT_ONCE = 8


def uri_of(url: str, offset: int, name: str) -> str:
    """The source of an image, for people."""
    return url if offset < 0 else f"{url}#{name}"


def to_bytes(rows: Sequence[dict[str, Any]], schema: pa.Schema, metadata: dict[str, Any] | None = None) -> bytes:
    """Write a table as a Parquet file, with JSON metadata."""
    table = pa.Table.from_pylist(list(rows), schema=schema)
    if metadata is not None:
        table = table.replace_schema_metadata({_METADATA_KEY: json.dumps(metadata, sort_keys=True).encode()})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def metadata_of(data: bytes) -> dict[str, Any]:
    """The JSON metadata of a file that to_bytes wrote."""
    return json.loads((pq.read_schema(io.BytesIO(data)).metadata or {})[_METADATA_KEY])


def read(dataset: str, path: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Read an index or a quarantine of a dataset. Raises FileNotFoundError when it does not exist."""
    data = objects.read_bytes(objects.join(dataset, path))
    return pq.read_table(io.BytesIO(data), columns=None if columns is None else list(columns))


def read_all(dataset: str, paths: Iterable[str], columns: Sequence[str] | None = None) -> Iterable[pa.Table]:
    """Read many tables in parallel; yields them in the order of the paths."""
    with ThreadPoolExecutor(_READS_AT_ONCE) as pool:
        yield from pool.map(lambda path: read(dataset, path, columns), paths)


def parent_rows(snapshot: Snapshot) -> ParentRows:
    """The images of a snapshot, from the indexes and quarantines of its shards."""
    files = [
        (number, path)
        for number, shard in enumerate(snapshot.shards)
        for path in (shard.index_path, shard.quarantine_path)
        if path is not None
    ]
    keys, versions, shards = [], [np.zeros(0, np.uint64)], [np.zeros(0, np.int32)]
    tables = read_all(snapshot.dataset, [path for _, path in files], ("key", "version"))
    for (number, _), table in zip(files, tables, strict=True):
        keys.append(Keys.of(table["key"].to_pylist()))
        versions.append(table["version"].to_numpy())
        shards.append(np.full(table.num_rows, number, np.int32))
    return ParentRows(keys=Keys.join(keys), versions=np.concatenate(versions), shards=np.concatenate(shards))


def splits_of(snapshot: Snapshot, rows: ParentRows) -> np.ndarray:
    """The splits of a snapshot's images, as positions in SPLITS; int8 [N]."""
    return np.array([SPLITS.index(shard.split) for shard in snapshot.shards], np.int8)[rows.shards]


def accounted(entry: ShardEntry) -> int:
    """Number of images in a shard and its quarantine."""
    return entry.images + sum(entry.rejected.values())

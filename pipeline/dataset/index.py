"""The tables beside a shard: its index (a row per image in the shard) and its quarantine (a row per rejected image)."""

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.dataset import kept_columns
from pipeline.dataset.keys import Keys, ParentRows
from pipeline.dataset.record import Record
from pipeline.dataset.snapshot import SPLITS, ShardEntry, Snapshot
from pipeline.store import objects

INDEX = pa.schema(
    [
        ("key", pa.string()),
        ("version", pa.uint64()),
        # Below the root of the raw images, which is in the record beside the manifest; see `with_addresses`.
        ("uri", pa.string()),  # source of the image, for people: the object, or container#member
        ("url", pa.string()),  # the object to read
        ("offset", pa.int64()),  # position in a container; -1: the image is the whole object
        ("etag", pa.string()),
        ("bytes", pa.int64()),
        ("sha256", pa.string()),
        ("label", pa.int64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("rule", pa.int16()),  # the rule by which it was decoded: see dataset/decoding.py
        ("pillow", pa.string()),  # version of Pillow that decoded it; null: not recorded
    ]
)
QUARANTINE = pa.schema(
    [
        ("key", pa.string()),
        ("version", pa.uint64()),
        ("uri", pa.string()),
        ("etag", pa.string()),
        ("bytes", pa.int64()),
        ("sha256", pa.string()),  # null where the bytes were not read
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)
_METADATA_KEY = b"igpt"
_READS_AT_ONCE = 8
_FORMAT = "format"
_RELATIVE_FORMAT = 3  # from this format on, addresses are relative to the root of the raw images


def uri_of(url: str, offset: int, name: str) -> str:
    """The source of an image, for people."""
    return url if offset < 0 else f"{url}#{name}"


def with_columns(schema: pa.Schema, kept_types: Mapping[str, str]) -> pa.Schema:
    """The schema of an index or a quarantine with kept columns."""
    taken = [*INDEX.names, *QUARANTINE.names]
    return pa.schema([*schema, *kept_columns.fields(kept_types, taken)])


def to_bytes(rows: Sequence[dict[str, Any]], schema: pa.Schema, metadata: dict[str, Any] | None = None) -> bytes:
    """Write a table as a Parquet file, with JSON metadata."""
    table = pa.Table.from_pylist(list(rows), schema=schema)
    fields = {_FORMAT: _RELATIVE_FORMAT, **(metadata or {})}
    table = table.replace_schema_metadata({_METADATA_KEY: json.dumps(fields, sort_keys=True).encode()})
    return table_to_bytes(table)


def table_to_bytes(table: pa.Table) -> bytes:
    """Write a table as a Parquet file, with the metadata that it has."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def metadata_of(data: bytes) -> dict[str, Any]:
    """The JSON metadata of a file that to_bytes wrote."""
    return json.loads((pq.read_schema(io.BytesIO(data)).metadata or {})[_METADATA_KEY])


def from_bytes(data: bytes) -> pa.Table:
    """A whole index or quarantine from the bytes of its file."""
    return pq.ParquetFile(io.BytesIO(data)).read()


def _fields(table: pa.Table) -> dict[str, Any]:
    """The JSON metadata of a table; empty where it has none."""
    return json.loads((table.schema.metadata or {}).get(_METADATA_KEY, b"{}"))


def has_relative_addresses(table: pa.Table) -> bool:
    """Whether the addresses of a table are relative to the root of the raw images."""
    return bool(_fields(table).get(_FORMAT, 0) >= _RELATIVE_FORMAT)


def with_metadata(table: pa.Table, *, relative: bool = False, **fields: object) -> pa.Table:
    """A table with the format that it has, and other fields in its metadata; `relative`: with relative addresses."""
    known = {name: value for name, value in _fields(table).items() if name == _FORMAT}
    known |= {_FORMAT: _RELATIVE_FORMAT} if relative else {}
    return table.replace_schema_metadata({_METADATA_KEY: json.dumps({**known, **fields}, sort_keys=True).encode()})


def read(dataset: str, path: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Read an index or a quarantine of a dataset. Raises FileNotFoundError when it does not exist.

    Of the given columns, those that a file of an earlier format lacks are null.
    """
    file = pq.ParquetFile(io.BytesIO(objects.read_bytes(objects.join(dataset, path))))
    if columns is None:
        return file.read()
    table = file.read(columns=[name for name in columns if name in file.schema_arrow.names])
    for name in columns:
        if name not in table.column_names:
            field = (INDEX if name in INDEX.names else QUARANTINE).field(name)
            table = table.append_column(field, pa.nulls(file.metadata.num_rows, field.type))
    return table


def with_addresses(table: pa.Table, record: Record | None) -> pa.Table:
    """A table that `read` returned, with the addresses of the raw images as they are today.

    Without a record, those in an index of schema 2 are as they were when it was written, others are relative.
    """
    if record is None:
        return table
    relative = has_relative_addresses(table)
    for name in ("uri", "url"):
        if name in table.column_names:
            addresses = [record.address(address, relative=relative) for address in table[name].to_pylist()]
            table = table.set_column(table.column_names.index(name), name, pa.array(addresses, pa.string()))
    return table


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

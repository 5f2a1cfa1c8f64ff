"""The listing of a source: one row per image in Parquet files on local disk, and the columns of a plan in memory.

With ten million images, a row takes about 300 bytes on disk and 29 in memory.
"""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.dataset import erasures
from pipeline.dataset.erasures import Tombstones
from pipeline.dataset.keys import Keys, key_of, version_of
from pipeline.errors import IgptError

LISTING = pa.schema(
    [
        ("key", pa.string()),  # the identity of an image in the dataset: a hash of its name
        ("version", pa.uint64()),  # a hash of etag, length and label, which decide the image's sample
        ("name", pa.string()),  # its path below the source, including the name in a container
        ("url", pa.string()),  # the object to read
        ("offset", pa.int64()),  # position in a container (see containers.py); -1: the image is the whole object
        ("length", pa.int64()),  # bytes
        ("etag", pa.string()),  # of the object, or of the member of a container
        ("label", pa.string()),  # name of the class, or null
        ("kept", pa.string()),  # JSON of the kept columns: a list of values; null when none are kept
        ("problem", pa.string()),  # why it cannot be read: a damaged container, or a member of one; null for an image
    ]
)
_PART_ROWS = 100_000
# Rows held in memory while rows are gathered from the parts.
_BUCKET_ROWS = 400_000
NO_SPLIT = -1


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The columns of a listing that a plan needs, [N]."""

    keys: Keys
    versions: np.ndarray  # uint64
    labels: np.ndarray  # int32, positions in the listing's label names; -1: no label
    splits: np.ndarray  # int8, positions in SPLITS if the source has splits, else NO_SPLIT
    groups: np.ndarray  # int32, equal for neighbours in a container; -1: an object of its own
    whole_groups: np.ndarray  # bool, whether the group can only be read as a whole

    def __len__(self) -> int:
        return len(self.versions)


_COLUMNS = {
    "high": np.uint64,
    "low": np.uint16,
    "versions": np.uint64,
    "labels": np.int32,
    "splits": np.int8,
    "groups": np.int32,
    "whole_groups": bool,
}


@dataclass(kw_only=True)
class Batch:
    """Rows to be added to a listing, as columns."""

    names: list[str] = field(default_factory=list)
    urls: list[str] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    etags: list[str] = field(default_factory=list)
    labels: list[str | None] = field(default_factory=list)
    kept: list[str | None] = field(default_factory=list)
    """JSON of the kept columns; empty when none are kept."""
    problems: list[str | None] = field(default_factory=list)
    """Why images cannot be read; empty when all can."""
    splits: list[int] = field(default_factory=list)
    groups: list[int] = field(default_factory=list)
    whole_groups: list[bool] = field(default_factory=list)


class Listing:
    """A listing in a temporary folder of its own. Filled by `add`, then read. A context manager."""

    def __init__(self, without: Tombstones = erasures.NONE) -> None:
        """A listing that leaves out images that were erased, by their keys and, in containers, by their bytes."""
        self._without = without
        self.erased = 0
        """Number of images that were left out."""
        self._folder = tempfile.TemporaryDirectory(prefix="igpt-listing-")
        self._parts: list[int] = []  # rows of each
        self._pending: list[pa.Table] = []
        self._pending_rows = 0
        self._columns: dict[str, list[np.ndarray]] = {name: [] for name in _COLUMNS}
        self._label_numbers: dict[str, int] = {}
        self._rows: Rows | None = None

    def __enter__(self) -> "Listing":
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._folder.cleanup()

    def __len__(self) -> int:
        return sum(self._parts) + self._pending_rows

    @property
    def label_names(self) -> tuple[str, ...]:
        """The names of the classes, in the order of their first images."""
        return tuple(self._label_numbers)

    def add(self, batch: Batch) -> None:
        """Append rows."""
        if not batch.names:
            return
        if self._without:
            batch = self._without_erased(batch)
            if not batch.names:
                return
        keys, versions = _keys_and_versions(batch)
        numbers, numeric = self._label_numbers, Keys.of(keys)
        kept = batch.kept or [None] * len(keys)
        labels = [-1 if name is None else numbers.setdefault(name, len(numbers)) for name in batch.labels]
        columns = (numeric.high, numeric.low, versions, labels, batch.splits, batch.groups, batch.whole_groups)
        for (name, kind), values in zip(_COLUMNS.items(), columns, strict=True):
            self._columns[name].append(np.asarray(values, kind))
        addresses = [batch.names, batch.urls, batch.offsets, batch.lengths, batch.etags]
        row_columns = [keys, versions, *addresses, batch.labels, kept, batch.problems or [None] * len(keys)]
        self._pending.append(pa.table(row_columns, schema=LISTING))
        self._pending_rows += len(keys)
        if self._pending_rows >= _PART_ROWS:
            self._flush()

    def _without_erased(self, batch: Batch) -> Batch:
        without = self._without
        gone = [
            without.has_key(key) or without.has_copy(key, version) or (group >= 0 and without.has_member(etag))
            for key, version, group, etag in zip(*_keys_and_versions(batch), batch.groups, batch.etags, strict=True)
        ]
        if not any(gone):
            return batch
        self.erased += sum(gone)
        rows = [row for row, is_gone in enumerate(gone) if not is_gone]
        columns = {name: getattr(batch, name) for name in Batch.__dataclass_fields__}
        kept = {name: [values[row] for row in rows] if values else [] for name, values in columns.items()}
        return Batch(**kept)

    def _flush(self) -> None:
        if self._pending:
            table = pa.concat_tables(self._pending)
            pq.write_table(table, self._part(len(self._parts)), compression="zstd")
            self._parts.append(table.num_rows)
            self._pending, self._pending_rows = [], 0

    def _part(self, number: int) -> Path:
        return Path(self._folder.name) / f"{number:06d}.parquet"

    @property
    def rows(self) -> Rows:
        """The rows as arrays. Raises IgptError when two images have the same key."""
        if self._rows is None:
            # One column after the other, so that memory holds only one of them twice.
            whole = {
                name: np.concatenate([np.zeros(0, kind), *self._columns.pop(name)]) for name, kind in _COLUMNS.items()
            }
            self._rows = Rows(keys=Keys(high=whole.pop("high"), low=whole.pop("low")), **whole)
            self._check_keys(self._rows.keys)
        return self._rows

    def _check_keys(self, keys: Keys) -> None:
        ascending = np.sort(keys.high)
        twice = ascending[1:][ascending[1:] == ascending[:-1]]
        if len(twice):
            pair = self.take(np.flatnonzero(keys.high == twice[0])[:2])["name"].to_pylist()
            raise IgptError(f"{pair[0]!r} and {pair[1]!r} have the same key; rename one of the two")

    def take(self, rows: np.ndarray) -> pa.Table:
        """Some rows in full, in the given order; schema LISTING."""
        return next(self.gather([rows]))

    def gather(self, groups: Sequence[np.ndarray]) -> Iterator[pa.Table]:
        """The rows of each group in full, in the given order; schema LISTING.

        Holds a bounded number of rows in memory: reads the parts once and writes their rows into buckets of consecutive
        groups, then reads and divides each bucket.
        """
        self._flush()
        total = sum(len(group) for group in groups)
        if total <= _BUCKET_ROWS:
            yield from _divide(self._read(np.concatenate([np.zeros(0, np.int64), *groups])), groups)
            return
        bucket_of, start = [], 0
        for group in groups:
            bucket_of.append(start // _BUCKET_ROWS)
            start += len(group)
        buckets: list[list[np.ndarray]] = [[] for _ in range(bucket_of[-1] + 1)]
        for group, number in zip(groups, bucket_of, strict=True):
            buckets[number].append(group)
        with tempfile.TemporaryDirectory(prefix="igpt-buckets-") as folder:
            paths = [Path(folder) / f"{number:04d}.parquet" for number in range(len(buckets))]
            positions_in_buckets = self._fill(buckets, paths)
            for bucket, path, positions in zip(buckets, paths, positions_in_buckets, strict=True):
                table = pq.read_table(path)
                yield from _divide(table.take(positions), bucket)

    def _read(self, rows: np.ndarray) -> pa.Table:
        ends = np.cumsum(self._parts)
        part_of = np.searchsorted(ends, rows, side="right")
        needed = np.unique(part_of)
        tables = []
        positions = np.zeros(len(rows), np.int64)
        first = 0
        for part in needed:
            in_part = np.flatnonzero(part_of == part)
            tables.append(pq.read_table(self._part(int(part))).take(rows[in_part] - (ends[part] - self._parts[part])))
            positions[in_part] = first + np.arange(len(in_part))
            first += len(in_part)
        return pa.concat_tables(tables).take(positions) if tables else LISTING.empty_table()

    def _fill(self, buckets: Sequence[Sequence[np.ndarray]], paths: Sequence[Path]) -> list[np.ndarray]:
        """Write each bucket's rows in the order of the parts; returns the positions of its rows in its file."""
        wanted = [np.concatenate([np.zeros(0, np.int32), *bucket]) for bucket in buckets]
        orders = [np.argsort(rows, kind="stable").astype(np.int32) for rows in wanted]
        sorted_rows = [rows[order] for rows, order in zip(wanted, orders, strict=True)]
        del wanted
        writers = [pq.ParquetWriter(path, LISTING, compression="lz4") for path in paths]
        try:
            start = 0
            for number, count in enumerate(self._parts):
                table = pq.read_table(self._part(number))
                for rows, writer in zip(sorted_rows, writers, strict=True):
                    low, high = np.searchsorted(rows, [start, start + count])
                    if high > low:
                        writer.write_table(table.take(rows[low:high] - start))
                start += count
        finally:
            for writer in writers:
                writer.close()
        positions_in_buckets = []
        for order in orders:
            positions = np.empty(len(order), np.int32)
            positions[order] = np.arange(len(order), dtype=np.int32)
            positions_in_buckets.append(positions)
        return positions_in_buckets


def _keys_and_versions(batch: Batch) -> tuple[list[str], list[int]]:
    keys = [key_of(name) for name in batch.names]
    kept = batch.kept or [None] * len(keys)
    return keys, list(map(version_of, batch.etags, batch.lengths, batch.labels, kept))


def _divide(table: pa.Table, groups: Sequence[np.ndarray]) -> Iterator[pa.Table]:
    start = 0
    for group in groups:
        # Taken, not sliced: serialising a slice for a task would serialise the whole table.
        yield table.take(np.arange(start, start + len(group)))
        start += len(group)

"""Images that were listed with another version than the snapshot has, and turned out to be the same.

A file that was touched or copied has new times, so it is listed with a new version. Once its bytes were read and are
the snapshot's, this table keeps the next build from reading them again.
"""

import io
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.dataset.keys import Keys, match
from pipeline.hashing import sha256
from pipeline.store import objects

_SCHEMA = pa.schema(
    [
        ("key_high", pa.uint64()),  # the upper 64 bits of the image's key
        ("key_low", pa.uint16()),  # the lower 16 bits
        ("listed", pa.uint64()),  # version by the listing
        ("version", pa.uint64()),  # version in the snapshot
    ]
)


@dataclass(frozen=True, kw_only=True)
class Seen:
    """The rows of the table, [N]."""

    keys: Keys
    listed: np.ndarray  # uint64
    versions: np.ndarray  # uint64

    @classmethod
    def between(cls, keys: Keys, listed: np.ndarray, versions: np.ndarray) -> "Seen":
        """The rows of a listing, [N], whose version in the snapshot is another one."""
        other = np.flatnonzero(listed != versions)
        return cls(keys=keys.take(other), listed=listed[other], versions=versions[other])

    def __len__(self) -> int:
        return len(self.listed)

    def apply(self, keys: Keys, listed: np.ndarray) -> np.ndarray:
        """The versions in the snapshot of the rows of a listing, uint64 [N]; those of the listing where unknown."""
        versions = listed.copy()
        rows = match(self.keys, keys)
        known = np.flatnonzero(rows >= 0)
        known = known[listed[rows[known]] == self.listed[known]]
        versions[rows[known]] = self.versions[known]
        return versions


def path_of(name: str) -> str:
    """Path of a table, relative to the dataset."""
    return f"seen/{name}.parquet"


def encode(rows: Seen) -> tuple[str, bytes] | None:
    """The name and the bytes of a table's file; None for an empty table, which has none."""
    if not len(rows):
        return None
    table = pa.table([rows.keys.high, rows.keys.low, rows.listed, rows.versions], schema=_SCHEMA)
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return sha256(buffer.getvalue())[:32], buffer.getvalue()


def read(dataset: str, name: str | None) -> Seen:
    """Read a table; an empty one for None, or when it is missing or damaged: then images are read again."""
    table = _SCHEMA.empty_table()
    if name is not None:
        try:
            table = pq.read_table(io.BytesIO(objects.read_bytes(objects.join(dataset, path_of(name)))), schema=_SCHEMA)
        except (FileNotFoundError, pa.ArrowInvalid):
            table = _SCHEMA.empty_table()
    high, low, listed, versions = (table[name].to_numpy() for name in _SCHEMA.names)
    return Seen(keys=Keys(high=high, low=low), listed=listed, versions=versions)

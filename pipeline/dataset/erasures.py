"""What was erased from a dataset: tombstones, by which builds keep it out, and receipts. lifecycle/erase.py erases.

{dataset}/erasures/{number:06d}.parquet    tombstones: a row per image, with hashes alone; written first
{dataset}/erasures/{number:06d}.plan.json  which snapshots and shards change; there while an erasure is under way
{dataset}/erasures/{number:06d}.json       the receipt, written last: without it an erasure has not ended
"""

import io
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import IgptError
from pipeline.hashing import sha256
from pipeline.store import objects

FOLDER = "erasures"
_SCHEMA = pa.schema(
    [
        ("key", pa.binary(32)),  # SHA-256 of the image's key; of key and version for a copy that a build has found
        ("content", pa.binary(32)),  # SHA-256 of the image's bytes; null: other images with these bytes may stay
    ]
)
_FILE = re.compile(r"(\d{6,})\.(parquet|json|plan\.json)")
_PREFIX = 16  # bytes of a checksum that the etag of a member of a container has
_EMPTY = bytes.fromhex(sha256(b""))


@dataclass(frozen=True, kw_only=True)
class Tombstone:
    """An image that was erased, as hashes."""

    key: bytes
    content: bytes | None = None


def hash_of_key(key: str) -> bytes:
    """What a tombstone holds of a key."""
    return bytes.fromhex(sha256(key.encode()))


def hash_of_copy(key: str, version: int) -> bytes:
    """What a tombstone holds of a file that has the bytes of an erased image: another file of the name may come."""
    return bytes.fromhex(sha256(f"{key} {version}".encode()))


def hash_of_content(checksum: str | None) -> bytes | None:
    """What a tombstone holds of an image's SHA-256 in hex; None where it is unknown, or that of an empty file."""
    content = bytes.fromhex(checksum) if checksum else None
    return None if content == _EMPTY else content


@dataclass(frozen=True, kw_only=True)
class Tombstones:
    """The images that were erased from a dataset."""

    files: tuple[str, ...] = ()
    """Names of the files they were read from."""
    keys: frozenset[bytes] = frozenset()
    contents: frozenset[bytes] = frozenset()

    def __len__(self) -> int:
        return len(self.keys) + len(self.contents)

    def has_key(self, key: str) -> bool:
        """Whether an image of this key was erased."""
        return hash_of_key(key) in self.keys

    def has_copy(self, key: str, version: int) -> bool:
        """Whether this version of an image was found to have the bytes of an erased one."""
        return hash_of_copy(key, version) in self.keys

    def has_content(self, checksum: str | None) -> bool:
        """Whether an image with this SHA-256, in hex, was erased."""
        return bool(checksum) and bytes.fromhex(str(checksum)) in self.contents

    @cached_property
    def _prefixes(self) -> frozenset[bytes]:
        return frozenset(content[:_PREFIX] for content in self.contents)

    def has_member(self, etag: str) -> bool:
        """Whether a member of a container has the bytes of an erased image, by its etag."""
        return len(etag) == 2 * _PREFIX and bytes.fromhex(etag) in self._prefixes


NONE = Tombstones()


def _path(dataset: str, number: int, suffix: str) -> str:
    return objects.join(dataset, FOLDER, f"{number:06d}.{suffix}")


def _found(dataset: str) -> dict[str, list[int]]:
    """The numbers of the files, ascending, by suffix."""
    numbers: dict[str, list[int]] = {"parquet": [], "json": [], "plan.json": []}
    for file in objects.list_files(objects.join(dataset, FOLDER)):
        if match := _FILE.fullmatch(objects.name_of(file.url)):
            numbers[match[2]].append(int(match[1]))
    return {suffix: sorted(found) for suffix, found in numbers.items()}


def names(dataset: str) -> tuple[str, ...]:
    """The names of the files with tombstones: other names mean other tombstones."""
    return tuple(f"{number:06d}" for number in _found(dataset)["parquet"])


def read(dataset: str) -> Tombstones:
    """All tombstones of a dataset. Raises IgptError when a file is damaged: builds must not go on without."""
    found = names(dataset)
    rows = [row for name in found for row in read_one(dataset, int(name))]
    return Tombstones(
        files=found,
        keys=frozenset(row.key for row in rows),
        contents=frozenset(row.content for row in rows if row.content is not None),
    )


def read_one(dataset: str, number: int) -> list[Tombstone]:
    """The tombstones of one erasure. Raises IgptError when the file is damaged."""
    url = _path(dataset, number, "parquet")
    try:
        table = pq.read_table(io.BytesIO(objects.read_bytes(url)), schema=_SCHEMA)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise IgptError(f"{url}: the list of what was erased is damaged ({error}); restore it") from None
    pairs = zip(table["key"].to_pylist(), table["content"].to_pylist(), strict=True)
    return [Tombstone(key=key, content=content) for key, content in pairs]


def begin(dataset: str, rows: Sequence[Tombstone]) -> int:
    """Write tombstones, from which on builds keep these images out; returns the number of the erasure."""
    found = _found(dataset)
    number = max((*found["parquet"], *found["json"]), default=0) + 1
    ordered = sorted(rows, key=lambda row: (row.key, row.content or b""))
    table = pa.table([[row.key for row in ordered], [row.content for row in ordered]], schema=_SCHEMA)
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    objects.write_bytes(_path(dataset, number, "parquet"), buffer.getvalue())
    return number


def unfinished(dataset: str) -> list[int]:
    """The numbers of the erasures that were begun and have not ended."""
    found = _found(dataset)
    return [number for number in found["parquet"] if number not in found["json"]]


def read_plan(dataset: str, number: int) -> dict[str, Any]:
    """The plan of an erasure that is under way; empty when it has none yet."""
    return _json(_path(dataset, number, "plan.json")) or {}


def write_plan(dataset: str, number: int, plan: dict[str, Any]) -> None:
    """Keep the plan of an erasure, before anything that it names is removed."""
    objects.write_bytes(_path(dataset, number, "plan.json"), _text(plan))


def end(dataset: str, number: int, receipt: dict[str, Any]) -> str:
    """Write the receipt of an erasure, which ends it; returns its URL."""
    url = _path(dataset, number, "json")
    objects.write_bytes(url, _text(receipt))
    objects.delete(_path(dataset, number, "plan.json"))
    return url


def receipts(dataset: str) -> list[dict[str, Any]]:
    """The receipts of a dataset, and the plans of erasures that are under way, the oldest first."""
    found = _found(dataset)
    paths = [(number, "json") for number in found["json"]]
    paths += [(number, "plan.json") for number in found["plan.json"] if number not in found["json"]]
    read = [_json(_path(dataset, number, suffix)) for number, suffix in sorted(paths)]
    return [fields for fields in read if fields is not None]


def why_gone(dataset: str, is_it: Callable[[dict[str, Any]], bool]) -> str | None:
    """In words, that images were erased, from the first erasure of which `is_it` says so; None: none did."""
    for fields in receipts(dataset):
        if is_it(fields):
            return f"images were erased from it ({dataset}/{FOLDER}/{fields['number']:06d}.json)"
    return None


def _text(fields: dict[str, Any]) -> bytes:
    return (json.dumps(fields, indent=1, sort_keys=True) + "\n").encode()


def _json(url: str) -> dict[str, Any] | None:
    try:
        return dict(json.loads(objects.read_bytes(url)))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):
        raise IgptError(f"{url}: damaged; restore it, or delete it if it is a .plan.json") from None

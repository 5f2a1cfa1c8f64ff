"""Keys of images: their identity across builds, as numbers compact enough to hold those of a whole dataset."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.dataset.shards import KEY_LENGTH
from pipeline.hashing import sha256

# XORed into the version of an image that is rejected as a duplicate, so that it counts as changed once it is none.
DUPLICATE = np.uint64(0x9E3779B97F4A7C15)


def key_of(name: str) -> str:
    """The key of an image: the first 80 bits of its name's SHA-256, in hex."""
    return sha256(name.encode())[:KEY_LENGTH]


def version_of(etag: str, length: int, label: str | None, kept: str | None = None) -> int:
    """A 64-bit number that changes with the content, the label or the kept columns of an image.

    `kept` is the JSON of the kept columns, None when none are kept.
    """
    text = f"{etag}\0{length}\0{'' if label is None else '=' + label}"
    if kept is not None:
        text += f"\0{kept}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


@dataclass(frozen=True, kw_only=True)
class Keys:
    """Keys as numbers, 10 bytes each: the upper 64 bits and the lower 16 bits, [N]."""

    high: np.ndarray  # uint64
    low: np.ndarray  # uint16

    def __len__(self) -> int:
        return len(self.high)

    def take(self, rows: np.ndarray) -> "Keys":
        """The keys of some rows, in that order."""
        return Keys(high=self.high[rows], low=self.low[rows])

    def text(self) -> list[str]:
        """The keys in hex."""
        return [f"{high:016x}{low:04x}" for high, low in zip(self.high.tolist(), self.low.tolist(), strict=True)]

    @classmethod
    def of(cls, keys: Sequence[str]) -> "Keys":
        """Keys from hex."""
        raw = np.frombuffer(bytes.fromhex("".join(keys)), np.uint8).reshape(len(keys), KEY_LENGTH // 2)
        return cls(
            high=raw[:, :8].copy().view(">u8").reshape(-1).astype(np.uint64),
            low=raw[:, 8:].copy().view(">u2").reshape(-1).astype(np.uint16),
        )

    @classmethod
    def join(cls, parts: Sequence["Keys"]) -> "Keys":
        """Concatenate keys."""
        return cls(
            high=np.concatenate([np.zeros(0, np.uint64), *(part.high for part in parts)]),
            low=np.concatenate([np.zeros(0, np.uint16), *(part.low for part in parts)]),
        )


@dataclass(frozen=True, kw_only=True)
class ParentRows:
    """The images of a parent snapshot, [N]: those in its shards and those in quarantine."""

    keys: Keys
    versions: np.ndarray  # uint64
    shards: np.ndarray  # int32, positions in the snapshot's shards

    def __len__(self) -> int:
        return len(self.versions)

    def without(self, keys: Keys) -> "ParentRows":
        """The images other than some."""
        positions = match(keys, self.keys)
        kept = np.ones(len(self), bool)
        kept[positions[positions >= 0]] = False
        rows = np.flatnonzero(kept)
        return ParentRows(keys=self.keys.take(rows), versions=self.versions[rows], shards=self.shards[rows])


def match(keys: Keys, among: Keys) -> np.ndarray:
    """The position of every key in `among`, -1 where it is missing; int64 [n]."""
    if not len(among):
        return np.full(len(keys), -1)
    order = np.argsort(among.high, kind="stable")
    positions = order[np.minimum(np.searchsorted(among.high[order], keys.high), len(among) - 1)]
    equal = (among.high[positions] == keys.high) & (among.low[positions] == keys.low)
    return np.where(equal, positions, -1)


def source_digest(keys: Keys, versions: np.ndarray, splits: np.ndarray) -> str:
    """SHA-256, in hex, of a set of images with their versions and splits; independent of their order."""
    order = np.argsort(keys.high, kind="stable")
    content = hashlib.sha256()
    for column, kind in ((keys.high, "<u8"), (keys.low, "<u2"), (versions, "<u8"), (splits, "<i1")):
        content.update(column[order].astype(kind).tobytes())
    return content.hexdigest()

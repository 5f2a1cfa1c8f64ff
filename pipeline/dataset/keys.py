"""Keys of images: what an image is known by from build to build, as numbers that a plan can hold for all of them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.dataset.shards import KEY_LENGTH
from pipeline.hashing import sha256


def key_of(name: str) -> str:
    """The key of an image: 80 bits of its name's SHA-256, in hex."""
    return sha256(name.encode())[:KEY_LENGTH]


def version_of(etag: str, length: int, label: str | None) -> int:
    """A 64-bit number that changes when the content or the label of an image does."""
    text = f"{etag}\0{length}\0{'' if label is None else '=' + label}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


@dataclass(frozen=True, kw_only=True)
class Keys:
    """Keys as numbers, 10 bytes each: the upper 64 bits and the lower 16, [N]."""

    high: np.ndarray  # uint64
    low: np.ndarray  # uint16

    def __len__(self) -> int:
        return len(self.high)

    def take(self, rows: np.ndarray) -> "Keys":
        """The keys of some rows, in their order."""
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
        """Keys one after the other."""
        return cls(
            high=np.concatenate([np.zeros(0, np.uint64), *(part.high for part in parts)]),
            low=np.concatenate([np.zeros(0, np.uint16), *(part.low for part in parts)]),
        )


@dataclass(frozen=True, kw_only=True)
class ParentRows:
    """What a parent snapshot accounts for, [N]: images in its shards and in its quarantine."""

    keys: Keys
    versions: np.ndarray  # uint64
    shards: np.ndarray  # int32, an index into the snapshot's shards

    def __len__(self) -> int:
        return len(self.versions)


def match(keys: Keys, among: Keys) -> np.ndarray:
    """For every key its place among others, -1 without one; int64 [n]."""
    if not len(among):
        return np.full(len(keys), -1)
    order = np.argsort(among.high, kind="stable")
    place = order[np.minimum(np.searchsorted(among.high[order], keys.high), len(among) - 1)]
    return np.where((among.high[place] == keys.high) & (among.low[place] == keys.low), place, -1)


def source_digest(keys: Keys, versions: np.ndarray, splits: np.ndarray) -> str:
    """SHA-256, in hex, of which images in which versions are in which splits, whatever their order."""
    order = np.argsort(keys.high, kind="stable")
    content = hashlib.sha256()
    for column, kind in ((keys.high, "<u8"), (keys.low, "<u2"), (versions, "<u8"), (splits, "<i1")):
        content.update(column[order].astype(kind).tobytes())
    return content.hexdigest()

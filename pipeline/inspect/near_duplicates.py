"""Images that look like one of another split: found by a hash of their tokens, and compared by their colours.

The hash is a difference hash (Krawetz 2013): whether the brightness grows from each of 8x9 fields to the next. Every
held-out image is compared with all others, a thousand million pairs in some seconds.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from pipeline.dataset import index, record
from pipeline.dataset.shards import ShardView
from pipeline.dataset.snapshot import ShardEntry, Snapshot
from pipeline.errors import IgptError
from pipeline.hashing import sha256
from pipeline.progress import Progress, silent
from pipeline.store import objects

# Largest number of bits, and largest mean difference of colours (of 255), of images that are taken for the same.
_LARGEST_BITS = 10
_LARGEST_DIFFERENCE = 6.0
_ROWS, _FIELDS = 8, 9
_COLOUR_SIDE = 4
_SAMPLES_AT_ONCE = 4096
_PAIRS_AT_ONCE = 1 << 22
_READS_AT_ONCE = 4
# Those of the split on the left are compared with those of the splits on the right.
_AGAINST = {"validation": ("train",), "test": ("train", "validation")}


@dataclass(frozen=True, kw_only=True)
class Traits:
    """What is compared of the samples of some shards, [N]."""

    hashes: np.ndarray  # uint64
    colours: np.ndarray  # uint8 [N, 4, 4, 3], the picture at 4x4
    shards: np.ndarray  # int32, positions in the snapshot's shards
    images: np.ndarray  # int32, rows of the shards' indexes


@dataclass(frozen=True, kw_only=True)
class NearDuplicate:
    """An image that is held out, and one of another split that looks like it."""

    split: str
    key: str
    uri: str
    other_split: str
    other_key: str
    other_uri: str
    bits: int
    """In how many of 64 bits their hashes differ."""
    difference: float
    """Mean difference of their colours at 4x4, of 255."""


def traits_of(tokens_NHW: np.ndarray, palette_K3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The hashes, uint64 [N], and colours, uint8 [N, 4, 4, 3], of token images of a palette in [-1, 1]."""
    side = tokens_NHW.shape[1]
    colours_K3 = 127.5 * (palette_K3.astype(np.float32) + 1)
    brightness_K = colours_K3 @ np.array([0.299, 0.587, 0.114], np.float32)
    rows, fields, small = (_means(side, count) for count in (_ROWS, _FIELDS, _COLOUR_SIDE))
    hashes, colours = [], []
    for start in range(0, len(tokens_NHW), _SAMPLES_AT_ONCE):
        part = tokens_NHW[start : start + _SAMPLES_AT_ONCE]
        fields_N89 = rows @ brightness_K[part] @ fields.T
        bits = (np.diff(fields_N89, axis=2) > 0).reshape(len(part), 64)
        hashes.append(np.packbits(bits, axis=1).view(">u8").reshape(-1).astype(np.uint64))
        small_N443 = np.einsum("ah,nhwc,bw->nabc", small, colours_K3[part], small, optimize=True)
        colours.append(np.rint(small_N443).astype(np.uint8))
    empty = np.zeros(0, np.uint64), np.zeros((0, _COLOUR_SIDE, _COLOUR_SIDE, 3), np.uint8)
    return np.concatenate([empty[0], *hashes]), np.concatenate([empty[1], *colours])


def _means(size: int, fields: int) -> np.ndarray:
    """The weights that average `size` pixels to some fields of equal size, float32 [fields, size]."""
    edges = np.arange(fields + 1) * size / fields
    pixels = np.arange(size)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    weights = np.clip(overlap, 0, None)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def find_near_duplicates(chosen: Snapshot, *, progress: Progress = silent) -> list[NearDuplicate]:
    """Images of the held-out splits that look like one of another split, each with the most similar one.

    Raises IgptError when a shard is missing or damaged.
    """
    traits = _read(chosen, progress)
    splits = np.array([shard.split for shard in chosen.shards])
    pairs = []
    for split, others in _AGAINST.items():
        held_out = np.flatnonzero(splits[traits.shards] == split)
        against = np.flatnonzero(np.isin(splits[traits.shards], others))
        pairs += _most_similar(traits, held_out, against)
    return _named(chosen, traits, pairs)


def _read(chosen: Snapshot, progress: Progress) -> Traits:
    palette_K3 = chosen.palette()
    hashes, colours, shards, images = [], [], [], []
    numbers = [number for number, shard in enumerate(chosen.shards) if shard.samples]
    progress("compare", 0, len(numbers), "shards")
    with ThreadPoolExecutor(_READS_AT_ONCE) as pool:
        views = pool.map(lambda number: _view(chosen, chosen.shards[number]), numbers)
        for done, (number, view) in enumerate(zip(numbers, views, strict=True), 1):
            shard = chosen.shards[number]
            of_shard = traits_of(view.tokens_NHW, palette_K3)
            hashes.append(of_shard[0])
            colours.append(of_shard[1])
            shards.append(np.full(shard.samples, number, np.int32))
            images.append((np.arange(shard.samples) // (shard.samples // shard.images)).astype(np.int32))
            progress("compare", done, len(numbers), "shards")
    return Traits(
        hashes=np.concatenate([np.zeros(0, np.uint64), *hashes]),
        colours=np.concatenate([np.zeros((0, _COLOUR_SIDE, _COLOUR_SIDE, 3), np.uint8), *colours]),
        shards=np.concatenate([np.zeros(0, np.int32), *shards]),
        images=np.concatenate([np.zeros(0, np.int32), *images]),
    )


def _view(chosen: Snapshot, shard: ShardEntry) -> ShardView:
    url = objects.join(chosen.dataset, shard.path)
    try:
        data = objects.read_bytes(url)
    except FileNotFoundError:
        raise IgptError(f"{url}: the shard is gone; see `igpt dataset verify`") from None
    if sha256(data) != shard.sha256:
        raise IgptError(f"{url}: the shard is damaged (another checksum); see `igpt dataset verify`")
    return ShardView(np.frombuffer(data, np.uint8), samples=shard.samples, side=chosen.resolution, name=shard.path)


_Pair = tuple[int, int, int, float]  # the two samples, bits and difference


def _most_similar(traits: Traits, held_out: np.ndarray, against: np.ndarray) -> list[_Pair]:
    """For each held-out sample that looks like one of `against`, the most similar one."""
    best: list[_Pair] = []
    step = max(1, _PAIRS_AT_ONCE // max(1, len(against)))
    for start in range(0, len(held_out), step):
        some = held_out[start : start + step]
        bits = np.bitwise_count(traits.hashes[some][:, None] ^ traits.hashes[against])
        rows, columns = np.nonzero(bits <= _LARGEST_BITS)
        one, other, differing = some[rows], against[columns], bits[rows, columns]
        difference = np.abs(traits.colours[one].astype(np.int16) - traits.colours[other]).mean((1, 2, 3))
        alike = np.flatnonzero(difference <= _LARGEST_DIFFERENCE)
        alike = alike[np.lexsort((other[alike], difference[alike], differing[alike], one[alike]))]
        first = np.flatnonzero(np.diff(one[alike], prepend=-1))
        best += [
            (int(one[row]), int(other[row]), int(differing[row]), float(difference[row]))
            for row in alike[first].tolist()
        ]
    return best


def _named(chosen: Snapshot, traits: Traits, pairs: Sequence[_Pair]) -> list[NearDuplicate]:
    """The pairs with keys and addresses; of an image with several crops the most similar pair."""
    samples = sorted({sample for pair in pairs for sample in pair[:2]})
    addresses = record.of_addresses(chosen)
    names: dict[int, tuple[str, str, str]] = {}
    for number in sorted({int(traits.shards[sample]) for sample in samples}):
        shard = chosen.shards[number]
        table = index.with_addresses(index.read(chosen.dataset, shard.index_path), addresses)
        for sample in samples:
            if traits.shards[sample] == number:
                row = int(traits.images[sample])
                names[sample] = (shard.split, table["key"][row].as_py(), table["uri"][row].as_py())
    return [
        NearDuplicate(
            split=names[one][0],
            key=names[one][1],
            uri=names[one][2],
            other_split=names[other][0],
            other_key=names[other][1],
            other_uri=names[other][2],
            bits=bits,
            difference=round(difference, 2),
        )
        for one, other, bits, difference in pairs
    ]

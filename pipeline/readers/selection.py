"""What a reader reads: the shards of a snapshot or of one split, as tokens or as RGB, and the names of classes."""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np

from pipeline.dataset import snapshot as snapshots
from pipeline.dataset.shards import KEY_LENGTH
from pipeline.dataset.snapshot import SPLITS, ShardEntry, Snapshot
from pipeline.errors import IgptError
from pipeline.images import palette
from pipeline.store import objects

Pixels = Literal["tokens", "rgb"]


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The shards of a snapshot that a reader reads, all with samples, by split and number."""

    snapshot: Snapshot
    split: str | None
    shards: tuple[ShardEntry, ...]
    pixels: Pixels

    @property
    def samples(self) -> int:
        """Number of samples."""
        return sum(shard.samples for shard in self.shards)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of a sample: (H, W) of tokens, (H, W, 3) of RGB."""
        side = self.snapshot.resolution
        return (side, side) if self.pixels == "tokens" else (side, side, 3)

    @cached_property
    def colours(self) -> np.ndarray:
        """The palette as uint8 [K, 3]. Raises IgptError when it is missing or damaged."""
        return palette.to_pixels(np.arange(self.snapshot.colours), self.snapshot.palette())

    def present(self, tokens: np.ndarray) -> np.ndarray:
        """Tokens [..., H, W] as what was asked for: uint16 [..., H, W], or uint8 [..., H, W, 3]."""
        return tokens.astype(np.uint16) if self.pixels == "tokens" else self.colours[tokens]

    def class_name(self, label: int) -> str | None:
        """The name of a class by its number; None for -1."""
        return None if label < 0 else self.snapshot.classes[label]

    def url(self, shard: ShardEntry) -> str:
        """The address of a shard."""
        return objects.join(self.snapshot.dataset, shard.path)


def select(dataset: str, *, split: str | None, snapshot: int | None, pixels: str) -> Selection:
    """Choose what to read: a split or, without one, all; of a snapshot by number or, without one, of the newest.

    Raises IgptError for a split or a kind of pixels that does not exist, and when there is nothing to read.
    """
    if split not in (None, *SPLITS):
        raise IgptError(f"split is {split!r}: it must be one of {', '.join(SPLITS)}, or None for all")
    if pixels not in get_args(Pixels):
        raise IgptError(f"pixels is {pixels!r}: it must be 'tokens' or 'rgb'")
    chosen = snapshots.read(dataset, snapshot)
    shards = tuple(shard for shard in chosen.shards if shard.samples) if split is None else chosen.of_split(split)
    if not shards:
        raise IgptError(f"{chosen.dataset}: snapshot {chosen.number} has no images; build it from a source with some")
    return Selection(snapshot=chosen, split=split, shards=shards, pixels=pixels)  # type: ignore[arg-type]


def image_of(key: str) -> tuple[str, int]:
    """The key of the image that a sample was made from, as in the index, and the number of the crop.

    A sample's key is its image's, or KEY-003 where the images of the split have several random crops.
    """
    return key[:KEY_LENGTH], int(key[KEY_LENGTH + 1 :] or 0)

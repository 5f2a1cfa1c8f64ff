"""The order of samples: a pure function of the snapshot and the seed.

Epochs follow each other without a gap: position p of the infinite sequence is position p mod N of epoch p div N. A
global batch is a range of positions, so the order does not depend on the number of workers, and the state is one
integer, the cursor.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from pipeline.partition import part_of


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Locations of samples: shard numbers and rows within their shard, int64 [n] each."""

    shards: np.ndarray
    rows: np.ndarray


class SampleOrder:
    """Every sample once per epoch: shards in random order, grouped into windows; samples shuffled in each window.

    Without `shuffle`, every epoch is in the order of the shards and of the samples in them.
    """

    def __init__(
        self, shard_samples: Sequence[int], *, seed: int = 0, window_shards: int = 1, shuffle: bool = True
    ) -> None:
        self._counts = np.asarray(shard_samples, np.int64)
        self._shuffle = shuffle
        self._seed, self._window_shards = seed, window_shards
        self.samples = int(self._counts.sum())
        if self.samples < 1:
            raise ValueError("no samples to order")
        # Two epochs and two windows, because a batch can cross a boundary.
        self._epoch = lru_cache(maxsize=2)(self._plan_epoch)
        self._window = lru_cache(maxsize=2)(self._shuffle_window)

    def _plan_epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The shards of an epoch in order, and the position at which each window ends."""
        shards = np.arange(len(self._counts))
        if self._shuffle:
            shards = np.random.default_rng([self._seed, epoch]).permutation(len(self._counts))
        ends = np.cumsum(self._counts[shards])
        last = np.append(np.arange(self._window_shards, len(shards), self._window_shards), len(shards)) - 1
        return shards, ends[last]

    def _shuffle_window(self, epoch: int, window: int) -> Samples:
        shards, _ = self._epoch(epoch)
        window_shards = shards[window * self._window_shards : (window + 1) * self._window_shards]
        counts = self._counts[window_shards]
        permutation = np.arange(counts.sum())
        if self._shuffle:
            permutation = np.random.default_rng([self._seed, epoch, window]).permutation(counts.sum())
        starts = np.cumsum(counts) - counts
        shard_index = np.searchsorted(starts + counts, permutation, side="right")
        return Samples(shards=window_shards[shard_index], rows=permutation - starts[shard_index])

    def window_of(self, position: int) -> tuple[int, int]:
        """The epoch of a position and its window within the epoch."""
        epoch, within = divmod(position, self.samples)
        return epoch, int(np.searchsorted(self._epoch(epoch)[1], within, side="right"))

    def window_shards(self, epoch: int, window: int) -> list[int]:
        """The shard numbers of a window."""
        first = window * self._window_shards
        return self._epoch(epoch)[0][first : first + self._window_shards].tolist()

    def next_window(self, epoch: int, window: int) -> tuple[int, int]:
        """The epoch and window that follow a window."""
        return (epoch, window + 1) if window + 1 < len(self._epoch(epoch)[1]) else (epoch + 1, 0)

    def at(self, start: int, stop: int) -> Samples:
        """The samples at positions `start` to `stop`, exclusive."""
        shards, rows = [], []
        while start < stop:
            epoch, window = self.window_of(start)
            _, window_ends = self._epoch(epoch)
            position = start - epoch * self.samples
            window_start = int(window_ends[window - 1]) if window else 0
            take = min(stop - start, int(window_ends[window]) - position)
            shuffled = self._window(epoch, window)
            part = slice(position - window_start, position - window_start + take)
            shards.append(shuffled.shards[part])
            rows.append(shuffled.rows[part])
            start += take
        empty = np.zeros(0, np.int64)
        return Samples(shards=np.concatenate([empty, *shards]), rows=np.concatenate([empty, *rows]))


def rank_range(cursor: int, global_batch: int, rank: int, world_size: int) -> range:
    """A rank's positions in the global batch that starts at `cursor`: contiguous; sizes differ by at most one."""
    share = part_of(global_batch, rank, world_size)
    return range(cursor + share.start, cursor + share.stop)


def micro_ranges(cursor: int, global_batch: int, rank: int, world_size: int, micro_batch: int | None) -> list[range]:
    """A rank's positions split into micro batches of at most `micro_batch` (None: one micro batch).

    Every rank has the same number of micro batches, because FSDP needs the same number of forward passes on all ranks.
    If the shares of the ranks differ by one, the first micro batch of a rank may be empty.
    """
    positions = rank_range(cursor, global_batch, rank, world_size)
    largest = -(-global_batch // world_size)
    count = 1 if micro_batch is None else -(-largest // micro_batch)
    return [positions[share.start : share.stop] for share in (part_of(len(positions), i, count) for i in range(count))]

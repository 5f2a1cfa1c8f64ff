"""The pixel counts of a new snapshot: those of the parent, and the difference that the shards of a build make."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from pipeline.build.shard_tasks import ShardResult
from pipeline.dataset import count_shards, pixel_counts
from pipeline.dataset.snapshot import SPLITS, ShardEntry, Snapshot
from pipeline.errors import IgptError
from pipeline.progress import Progress


class PixelDifference:
    """Adds up what the shards of a build change."""

    def __init__(self) -> None:
        self._added: dict[str, np.ndarray] = {}  # int64 [T, K] by split
        self._to_add: list[ShardEntry] = []
        self._to_remove: list[ShardEntry] = []

    def collect(self, result: ShardResult, replaced: ShardEntry | None) -> ShardResult:
        """Add the counts of a finished shard; returns the result without them, so that few are in memory."""
        split = result.entry.split
        if result.added_pixels is None:
            self._to_add.append(result.entry)
            self._to_remove += [] if replaced is None else [replaced]
        elif split in self._added:
            self._added[split] += result.added_pixels
        else:
            self._added[split] = result.added_pixels.astype(np.int64)
        return replace(result, added_pixels=None)

    def write(
        self, new: Snapshot, parent: Snapshot | None, dropped: Sequence[ShardEntry], progress: Progress
    ) -> dict[str, str]:
        """Write the counts of the new snapshot; returns the name of the file of each split that has samples.

        `parent` is None when all shards are new. Where the parent has no counts, all shards of a split are counted.
        """
        if not pixel_counts.are_kept(new.resolution, new.colours):
            return {}
        counts_of = {split: self._of_parent(parent, split) for split in SPLITS}
        add, remove = defaultdict(list), defaultdict(list)
        for entry in self._to_add:
            add[entry.split].append(entry)
        for entry in (*self._to_remove, *dropped):
            remove[entry.split].append(entry)
        names: dict[str, str] = {}
        for split in SPLITS:
            shards = [shard for shard in new.shards if shard.split == split and shard.samples]
            base = counts_of[split]
            unchanged = split not in self._added and not add[split] and not remove[split]
            if not shards:
                continue
            if parent is not None and base is not None and unchanged:
                names[split] = parent.pixel_counts[split]
                continue
            total = None
            if base is not None:
                more, less = (count_shards.total(new, part[split], progress) for part in (add, remove))
                if more is not None and less is not None:
                    total = base + self._added.get(split, 0) + more - less
            if total is None:
                total = count_shards.total(new, shards, progress)
            if total is not None:
                names[split] = pixel_counts.write(new.dataset, total)
        return names

    @staticmethod
    def _of_parent(parent: Snapshot | None, split: str) -> np.ndarray | int | None:
        """The counts of the parent, 0 for a split without samples; None where nobody has counted them."""
        if parent is None or not parent.samples(split):
            return 0
        try:
            return parent.counted_pixels(split)
        except IgptError:  # they are missing or damaged
            return None
